"""Transformer layers: noise, masks, attention, norms, the block, embeddings, heads."""
