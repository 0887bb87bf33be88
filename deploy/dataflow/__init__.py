"""Dataflow Flex Templates: their metadata and the program that their launcher runs."""
