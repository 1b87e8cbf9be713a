"""Position schemes, one file each: terms added to the logits of self-attention."""
