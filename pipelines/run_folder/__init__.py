"""The run folder: its files, and how they are committed, listed and leased."""
