"""Objectives that predict the clusters of examples."""
