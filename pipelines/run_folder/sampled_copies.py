"""`copies.json` of a selection that samples by temperature: the copies of every score, exactly.

The manifest has a few of the steps, for people. With all of them, and the hash of a document's key,
it can be said of any document how many copies were written, without a look at the output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    SelectionFolder,
    read_json,
    to_json,
)
from datarater.pipelines.selection.sampling import Repetition


@dataclasses.dataclass(frozen=True)
class CopySteps:
    """The copies of the documents of a group, as a step function over orders; see `Repetition`.

    Attributes:
        starts: Ascending orders of scores; a step ends where the next begins.
        whole: Copies that every document of a step gets.
        chances: Chance of one more, in units of 2^-53.
    """

    starts: tuple[int, ...]
    whole: tuple[int, ...]
    chances: tuple[int, ...]

    @classmethod
    def of(cls, decision: Repetition) -> CopySteps:
        """Returns the steps of a decision."""
        columns = decision.starts_K, decision.whole_K, decision.chances_K
        return cls(*(tuple(column_K.tolist()) for column_K in columns))

    def decision(self) -> Repetition:
        """Returns the decision, without what it was expected to keep."""
        return Repetition(
            np.asarray(self.starts, np.uint64),
            np.asarray(self.whole, np.int64),
            np.asarray(self.chances, np.uint64),
            (0.0, 0.0),
            0.0,
        )


@dataclasses.dataclass(frozen=True)
class CopiesFile:
    """The content of `copies.json`.

    Attributes:
        groups: The steps by source, or under "" for the corpus.
        format: Version of the format.
    """

    groups: dict[str, CopySteps]
    format: int = FORMAT_VERSION


def commit_copies(selection: SelectionFolder, rule: Mapping[str, object]) -> None:
    """Commits the copies of all scores, unless the rule has no copies.

    Args:
        selection: The selection's folder.
        rule: Decisions of the rule by group.
    """
    steps = {
        group: CopySteps.of(decision)
        for group, decision in sorted(rule.items())
        if isinstance(decision, Repetition)
    }
    if steps:
        commits.commit_if_absent(selection.copies_path, to_json(CopiesFile(steps)))


def read_copies(selection: SelectionFolder) -> dict[str, Repetition]:
    """Reads the decisions by group; none for a selection without copies.

    Raises:
        CountsError: The file is damaged.
    """
    content = read_json(selection.copies_path, CopiesFile)
    if content is None:
        return {}
    return {group: steps.decision() for group, steps in content.groups.items()}
