"""Objectives whose labels are made from the images."""
