"""Studies of one vector: which setting pays, over which prompts it holds, how much of it a finetune withstands."""
