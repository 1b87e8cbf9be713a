"""Objectives that predict hidden parts of an example from the rest."""
