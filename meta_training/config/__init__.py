"""Training configs: their names, their ranges, and the parts of a run that they describe."""
