"""Objectives that predict each element of a sequence from those before it."""
