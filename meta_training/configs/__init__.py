"""Training configs, one file per experiment.

Each opens with its command, its running time and the result to expect.
"""
