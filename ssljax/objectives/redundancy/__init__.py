"""Objectives that keep the dimensions of embeddings informative, without negatives."""
