"""What is prepared: the sets, how their documents are tokenized and cut, and their ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from datarater.meta_training.data.cutting import CutOptions
from datarater.meta_training.data.prepared import FORMAT
from datarater.meta_training.data.sets import INNER, OUTER, TEST, VALIDATION, TextSet
from datarater.rater_model.tokenizer import Tokenizer

_UNIT_BYTES = 2**24
_SHARD_BYTES = 2**27


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder is prepared from and how.

    Attributes:
        sets: The sets by role.
        tokenizer: Tokenizer of all documents.
        cutting: How documents are cut; `within_sources` is of the inner set.
        exclude_near_duplicates: Whether near-duplicates of a held-out set leave the sets below it.
        reference_documents: Maximum number of inner documents on which scores are centered.
        made_with: Values of the config's fields, for the index.
        data: Identity of the texts of all sets.
        shard_bytes: Tokens of a shard, in bytes.
        unit_bytes: Text of a unit, in bytes.
    """

    sets: dict[str, TextSet]
    tokenizer: Tokenizer
    cutting: CutOptions
    exclude_near_duplicates: bool
    reference_documents: int
    made_with: dict[str, Any]
    data: str
    shard_bytes: int = _SHARD_BYTES
    unit_bytes: int = _UNIT_BYTES

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of stored token ids."""
        return np.dtype("<u2" if self.tokenizer.vocabulary_size <= 2**16 else "<u4")

    def identity(self) -> str:
        """Returns the digest of everything that decides what a unit comes to."""
        parts = [
            FORMAT,
            self.made_with,
            self.data,
            hashlib.sha256(self.tokenizer.serialise()).hexdigest(),
            self.exclude_near_duplicates,
            self.unit_bytes,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def ranks_of(roles: Iterable[str]) -> dict[str, int]:
    """Returns the rank of each set: a document stays in the set of the lowest rank.

    Example:
        >>> ranks_of(["inner", "outer", "test"])
        {'test': 0, 'outer': 1, 'inner': 2}
    """
    order = (TEST, VALIDATION, OUTER, INNER)
    ranked = sorted(roles, key=lambda role: order.index(role.partition(" ")[0]))
    return {role: rank for rank, role in enumerate(ranked)}
