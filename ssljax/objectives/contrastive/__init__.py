"""Objectives that tell the partner of an example from other examples."""
