"""Objectives that generate images from a code."""
