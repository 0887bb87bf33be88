"""A run that another version of the scorer began is resumed if only rounding differs."""

from __future__ import annotations

import pytest

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    Identity,
    InputDifferences,
    InputsDigest,
    PlanNumbers,
    check_identity,
    cost_changes,
)
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.rater_model.scoring_options import SCORER_VERSION
from tests.support.run_folders import run_options

INPUTS = InputsDigest(files=1, bytes=10, sha256="")


def identity(scorer_version: int) -> Identity:
    return Identity(**vars(run_options(scorer_version=scorer_version)), inputs=INPUTS)


def committed(scorer_version: int) -> CommittedIdentity:
    return CommittedIdentity(**vars(identity(scorer_version)), plan=PlanNumbers("id", 1, 1))


def test_a_run_of_the_first_scorer_is_resumed_with_a_note() -> None:
    resumed = check_identity(
        RunFolder("run"), committed(1), identity(SCORER_VERSION), InputDifferences
    )
    assert resumed == InputDifferences()
    (note,) = cost_changes(identity(SCORER_VERSION), committed(1))
    assert "version 2 of the scorer from here on; the run began with version 1" in note
    assert cost_changes(identity(SCORER_VERSION), committed(SCORER_VERSION)) == []


def test_a_run_of_a_scorer_with_other_scores_is_refused() -> None:
    with pytest.raises(RunFolderMismatchError, match="scorer_version is 99 there, but 2 now"):
        check_identity(RunFolder("run"), committed(99), identity(SCORER_VERSION), InputDifferences)
