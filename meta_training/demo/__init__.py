"""The demo: a corpus from Python's own documentation, a rater trained on it, and a table."""
