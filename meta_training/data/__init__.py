"""Training data: texts, token windows, and the inner and outer sets."""
