"""Provides what meta-training and curation share: documents, tokenizers, raters and scoring."""

from __future__ import annotations
