"""Reading: contrast pairs, texts and prompts in, activations and directions out."""
