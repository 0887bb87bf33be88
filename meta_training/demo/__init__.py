"""The built-in demo: a corpus from Python's own documentation, a rater, a table."""
