"""What happens with a split that cannot be scored (`--on_bad_split`).

This module is light: the parsers of flags load it.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def among(rejected_by_reason: Mapping[str, int]) -> dict[str, int]:
    """Returns how many files or splits were rejected whole, by reason, of all that is rejected."""
    return {
        reason: rejected_by_reason[reason] for reason in REASONS if rejected_by_reason.get(reason)
    }
