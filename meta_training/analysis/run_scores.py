"""The scores of a run folder, as `datarater score` and `datarater curate` leave them.

A run folder is documented in docs/run-folder.md. What is used of it here are the columns `key` and
`score` of `scores/`, and of `plan/` the input files and how their records were read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.meta_training.evaluate.errors import FlagError
from datarater.rater_model.documents.files import NoInputError, list_files, open_file
from datarater.rater_model.documents.records import ReadOptions

_COLUMNS = ("key", "score")


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """What a run read.

    Attributes:
        files: Paths of the input files.
        read: How their records were read.
        has_student: Whether a student gave some of the scores (`datarater curate --student`).
    """

    files: tuple[str, ...]
    read: ReadOptions
    has_student: bool = False


@dataclasses.dataclass(frozen=True)
class RunScores:
    """Scores of documents, from a run folder.

    Attributes:
        scores_N: Score of each document, NaN without one.
        missing: Documents without a score.
        ambiguous: Documents whose key has several scores; they have none here.
        rater: Digest of the rater that scored; "" if the files do not name it.
    """

    scores_N: NDArray[np.float64]
    missing: int
    ambiguous: int
    rater: str


def read_inputs(run: str) -> RunInputs:
    """Returns the inputs of a run folder.

    Raises:
        FlagError: If it is not a run folder.
        OSError: If a file cannot be read.
    """
    try:
        identities = list(_identities(run))
        lists = [path for identity in identities for path in _lists(run, identity["plan"]["id"])]
        lines = [line for path in lists for line in _content(path).splitlines()]
        files = tuple(sorted(json.loads(line)["path"] for line in lines))
        identity = identities[0]
        read = ReadOptions(**identity["read"])
    except FileNotFoundError as error:
        raise FlagError(
            f"--run {run}: there is no {error.filename or 'plan'}; give a folder that datarater "
            "score or datarater curate wrote"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise FlagError(
            f"--run {run}: the plan cannot be read ({error}); give --pool FILES as well"
        ) from error
    return RunInputs(files, read, identity.get("cascade") is not None)


def _identities(run: str) -> Iterator[dict[str, Any]]:
    """Yields the identity of the first plan of a run, and of each plan that was appended.

    Raises:
        FileNotFoundError: If there is no plan.
    """
    yield json.loads(_content(f"{run}/plan/identity.json"))
    for number in itertools.count(1):
        try:
            yield json.loads(_content(f"{run}/plan/identity-{number:04d}.json"))
        except FileNotFoundError:
            return


def _lists(run: str, plan: str) -> list[str]:
    """Returns the paths of the lists of input files of a plan; version 0.1.0 wrote one list."""
    try:
        index = json.loads(_content(f"{run}/plan/{plan}/index.json"))
    except FileNotFoundError:
        return [f"{run}/plan/{plan}/inputs.jsonl"]
    return [f"{run}/plan/inputs/{key}.jsonl" for key in index["inputs"]]


def read_run_scores(run: str, keys: Sequence[str]) -> RunScores:
    """Returns the scores of documents by their keys.

    Args:
        run: Run folder.
        keys: Keys of the N documents.

    Raises:
        FlagError: If the folder has no scores, a column is missing, or no document has a score.
        OSError: If a file cannot be read.
    """
    try:
        infos = list_files([f"{run}/scores"])
    except NoInputError as error:
        raise FlagError(
            f"--run {run}: there are no score files in {run}/scores; give a folder that datarater "
            "score or datarater curate wrote"
        ) from error

    wanted = pa.array(sorted(set(keys)))
    scores: dict[str, float] = {}
    ambiguous: set[str] = set()
    rater = ""
    for info in infos:
        for key, score in _rows(run, info.path, wanted):
            if scores.setdefault(key, score) != score:
                ambiguous.add(key)
        rater = rater or _rater_of(info.path)
    for key in ambiguous:
        del scores[key]

    scores_N = np.array([scores.get(key, np.nan) for key in keys], np.float64)
    if np.isnan(scores_N).all():
        raise FlagError(
            f"--run {run}: no document of the pool has a score there; keys of the pool look like "
            f"{keys[0]}; check --pool and --id_field"
        )
    doubtful = sum(key in ambiguous for key in keys)
    return RunScores(scores_N, int(np.isnan(scores_N).sum()) - doubtful, doubtful, rater)


def _rows(run: str, path: str, wanted: pa.Array) -> list[tuple[str, float]]:
    """Returns the key and the score of the wanted documents in a file."""
    try:
        with open_file(path) as file:
            columns = pq.read_schema(file).names
            missing = [name for name in _COLUMNS if name not in columns]
            if missing:
                raise FlagError(
                    f"--run {run}: {path} has no column {' and no column '.join(missing)}; it has "
                    f"{', '.join(columns)}"
                )
            table = pq.read_table(file, columns=list(_COLUMNS))
    except pa.ArrowInvalid as error:
        raise FlagError(f"--run {run}: {path} is not a Parquet file") from error

    # A run may have scored a billion documents, of which a sample is wanted.
    table = table.filter(pc.is_in(table["key"], value_set=wanted)).drop_null()
    return list(zip(table["key"].to_pylist(), table["score"].to_pylist(), strict=True))


def _rater_of(path: str) -> str:
    with open_file(path) as file:
        metadata = pq.read_schema(file).metadata or {}
    try:
        return str(json.loads(metadata[b"datarater"])["rater"])
    except (KeyError, TypeError, ValueError):
        return ""


def _content(path: str) -> bytes:
    with open_file(path) as file:
        return file.read()
