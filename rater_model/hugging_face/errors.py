"""The error of a model that cannot be read or written."""

from __future__ import annotations


class HuggingFaceError(ValueError):
    """A model of Hugging Face cannot be used; the message names the file and what does not fit."""
