"""What a rater looks at, and which groups it drops: scores against properties of documents."""
