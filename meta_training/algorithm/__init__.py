"""Algorithm 1 of the DataRater paper: inner models, meta-gradients, the population."""
