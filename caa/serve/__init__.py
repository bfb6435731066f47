"""A server that speaks OpenAI's language: every request picks its finetune and its steering, all share one batch."""
