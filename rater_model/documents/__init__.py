"""Reads documents in every supported file format from any file system."""

from __future__ import annotations
