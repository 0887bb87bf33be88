"""One config file an experiment; each opens with its command, its running time and the result to expect."""
