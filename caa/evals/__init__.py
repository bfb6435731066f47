"""Questions, asked of a steered, finetuned model. What they leave behind is rows."""
