"""LoRA: a behavior taught for or against, on whole answers, as an adapter that plain PEFT loads."""
