"""The commands that score, select, curate and report."""
