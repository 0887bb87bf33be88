"""Measures what a rater is worth."""
