"""Objectives with few labelled and many unlabelled examples."""
