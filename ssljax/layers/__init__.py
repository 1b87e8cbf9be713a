"""The parts of a transformer: noise, masks, attention, norms, the one block, embeddings, heads."""
