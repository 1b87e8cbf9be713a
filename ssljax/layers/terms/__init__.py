"""Position schemes: terms that are added to the logits of self-attention, one file each."""
