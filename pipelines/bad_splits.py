"""What happens with a split that cannot be scored (`--on_bad_split`).

This module is light: the parsers of flags load it.
"""

from __future__ import annotations

FAIL, REJECT = "fail", "reject"
ON_BAD_SPLIT = (FAIL, REJECT)

SPLIT_UNREADABLE = "split_unreadable"
"""The file cannot be read."""
SPLIT_CHANGED = "split_changed"
"""The file was modified or removed after the run was planned."""
SPLIT_CRASHED = "split_crashed"
"""The split repeatedly ended the worker that scored it."""
SPLIT_OUT_OF_MEMORY = "split_out_of_memory"
"""The split needs more memory than is available."""
REASONS = (SPLIT_UNREADABLE, SPLIT_CHANGED, SPLIT_CRASHED, SPLIT_OUT_OF_MEMORY)
"""Reasons for which a split is rejected whole, as one record, where that is asked for."""
