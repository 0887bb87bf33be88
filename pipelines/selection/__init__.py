"""Exact selection: ranking, rules and cutoffs, as pure arithmetic on arrays."""

from __future__ import annotations
