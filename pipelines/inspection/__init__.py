"""Looks at single documents of a run: chooses them by their scores, and reads no others."""
