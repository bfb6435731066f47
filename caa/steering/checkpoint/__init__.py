"""Steered adapters: one folder with LoRA, vector, layer, multiplier and where they came from."""
