"""What meta-training and curation share: documents, tokens, the rater, its checkpoint, scoring."""
