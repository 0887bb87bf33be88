"""Measurements of what a rater is worth."""
