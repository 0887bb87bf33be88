"""Dataflow Flex Templates: their metadata, and what their launcher runs."""
