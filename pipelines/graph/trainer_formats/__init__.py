"""Formats that trainers read: each puts the kept documents into files of its own kind."""
