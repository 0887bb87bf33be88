"""Documents: reads every supported file format from any file system."""
