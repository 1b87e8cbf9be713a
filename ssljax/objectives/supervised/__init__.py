"""Objectives with labels."""
