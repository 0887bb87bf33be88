"""DataRater: meta-learn what training data is worth, and curate web-scale corpora with it."""

__version__ = "0.1.0"
