"""One training run: its folder, checkpoints, metrics and health."""
