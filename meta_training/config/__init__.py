"""Training configs: ranges, and the parts of a run built from them."""
