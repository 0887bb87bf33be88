"""Training data: texts, token windows, inner and outer sets."""
