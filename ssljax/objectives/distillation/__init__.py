"""Objectives in which a student predicts the output of a teacher."""
