"""Near-duplicates: words and shingles of texts, MinHash signatures, and comparing documents."""
