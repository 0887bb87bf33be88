"""The run folder: what it holds, and how it is committed, listed and leased."""
