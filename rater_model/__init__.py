"""What meta-training and curation share: documents, tokens, the rater, its checkpoint, scoring, selection."""

__version__ = "0.1.0"
