"""The layout of a run folder.

    OUTPUT/
      plan/identity.json           identity of the run: inputs, rater, options that change a score
      plan/ID/index.json           where the inputs and the splits of every group are
      plan/inputs/KEY.jsonl        a thousand input files with their fingerprints
      plan/splits/KEY-000.jsonl    the splits of one group, in order
      scores/3f/00000017.parquet   the score file of one split
      summaries/000000.json        the counts of one group of splits
      rejected/000000.jsonl        the rejected records of one group
      scoring.json                 the counts of the whole corpus, once everything is scored
      plan/identity-0001.json,     the same after more files were appended, once
      scoring-0001.json
      student/                     the run folder of a student's scores, in a run with one
      selections/NAME/rule.json    the rule of the selection and its options
      selections/NAME/ranking/     what it ranks by, if that is not the score alone: scores/,
                                   summaries/ and scoring.json as above, and joins.json
      selections/NAME/counts/      how much it keeps of every split, by group
      selections/NAME/second_read.json  how much there is to write, for the progress
      selections/NAME/kept/        the kept documents
      selections/NAME/pieces/      parts of such files, until they are put together
      selections/NAME/incomplete/  rows that lack columns which are damaged in the input, if any
      selections/NAME/manifest.json, report.html, _SUCCESS
      duplicates/NAME/options.json what makes two documents near-duplicates
      duplicates/NAME/documents/   the near-duplicates of every split, as score files are stored
      duplicates/NAME/signatures/  what documents are compared by, until all are compared
      duplicates/NAME/summary.json, _SUCCESS

      selections/NAME/manifest.json, mixture.json, report.html, _SUCCESS

Every file is created once and never replaced (`datarater.pipelines.run_folder.commits`), except
`report.html`, which can be made again. There is no other state: a file that exists is done, a file
that is missing is still to do. The folder also
has `lease/`, which names the running launch, and `attempts/`, which marks the splits in progress.
Neither of them can change a result.

The folder `scores/` has no other files, so that any Parquet reader opens it as one table. Version
0.1.0 wrote the summaries to `scores/summaries/`; they are read from there.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.json_codec import DecodingError, decode, to_plain

FORMAT_VERSION = 1
FIRST_PASS = "student"
"""Name of the run folder of a student's scores."""

T = TypeVar("T")


def to_json(value: Any) -> bytes:
    """Returns JSON for people and programs: indented, with sorted keys and a final newline."""
    return orjson.dumps(
        to_plain(value),
        option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE,
    )


def read_json(path: str, kind: type[T]) -> T | None:
    """Reads a JSON file of the run folder; None if there is no such file.

    Raises:
        CountsError: The file is damaged, or a later version wrote it.
    """
    data = commits.read_if_there(path)
    return None if data is None else decode_file(path, kind, data)


def decode_file(path: str, kind: type[T], data: bytes) -> T:
    """Returns the value in the content of a file; `path` is for the message of `read_json`."""
    try:
        return decode(kind, data)
    except DecodingError as error:
        raise CountsError(
            f"{path} is damaged, or a later version of datarater wrote it: {error}"
        ) from error


def now() -> str:
    """Returns the time in UTC, for people."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Returns the versions of datarater, Beam and JAX."""
    known = {}
    for name, distribution in (("datarater", "datarater"), ("beam", "apache-beam"), ("jax", "jax")):
        try:
            known[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            known[name] = "unknown"
    return known


@dataclasses.dataclass(frozen=True)
class SelectionFolder:
    """Paths of the files of one selection.

    Attributes:
        path: The folder, OUTPUT/selections/NAME.
    """

    path: str

    @property
    def rule_path(self) -> str:
        """The file with the rule and its options, committed first."""
        return f"{self.path}/rule.json"

    @property
    def manifest_path(self) -> str:
        """The manifest: the list of files with kept documents, for readers."""
        return f"{self.path}/manifest.json"

    @property
    def mixture_path(self) -> str:
        """The shares of the sources in what is kept, for a trainer."""
        return f"{self.path}/mixture.json"

    @property
    def copies_path(self) -> str:
        """The number of copies by score, in a selection that samples documents by temperature."""
        return f"{self.path}/copies.json"

    @property
    def report_path(self) -> str:
        """A page for people, which can be made again; no result depends on it."""
        return f"{self.path}/report.html"

    @property
    def success_path(self) -> str:
        """An empty file, committed last."""
        return f"{self.path}/_SUCCESS"

    @property
    def ranking_path(self) -> str:
        """The folder of what the selection ranks by, if that is not the score alone."""
        return f"{self.path}/ranking"

    @property
    def counts_folder(self) -> str:
        """The folder of the counts of what is kept."""
        return f"{self.path}/counts"

    @property
    def second_read_path(self) -> str:
        """The size of the second read, for its progress; no result depends on it."""
        return f"{self.path}/second_read.json"

    def counts_path(self, group: int) -> str:
        """Returns the path of the counts of what is kept of each split of a group."""
        return f"{self.counts_folder}/{group:06d}.json"

    def kept_path(self, name: str) -> str:
        """Returns the path of one file of kept documents."""
        return f"{self.path}/kept/{name}"

    @property
    def pieces_folder(self) -> str:
        """The folder of pieces of files of kept documents, until they are put together."""
        return f"{self.path}/pieces"

    def piece_path(self, name: str, piece: int, pieces: int) -> str:
        """Returns the path of one of several pieces of a file of kept documents."""
        return f"{self.pieces_folder}/{quote(name, safe='')}.{piece:05d}-of-{pieces:05d}"

    @property
    def incomplete_folder(self) -> str:
        """The folder of the lists of rows that are written without columns that are damaged."""
        return f"{self.path}/incomplete"

    def incomplete_path(self, name: str) -> str:
        """Returns the path of the list of one file of kept documents."""
        return f"{self.incomplete_folder}/{name}.jsonl"


@dataclasses.dataclass(frozen=True)
class DuplicatesFolder:
    """Paths of the files of one deduplication.

    Attributes:
        path: The folder, OUTPUT/duplicates/NAME.
    """

    path: str

    @property
    def options_path(self) -> str:
        """The file with the options, committed first."""
        return f"{self.path}/options.json"

    @property
    def documents_folder(self) -> str:
        """The folder of the near-duplicates; any Parquet reader opens it as one table."""
        return f"{self.path}/documents"

    @property
    def signatures_folder(self) -> str:
        """The folder of what documents are compared by, until all are compared."""
        return f"{self.path}/signatures"

    @property
    def summary_path(self) -> str:
        """The counts of the whole corpus."""
        return f"{self.path}/summary.json"

    @property
    def success_path(self) -> str:
        """An empty file, committed last."""
        return f"{self.path}/_SUCCESS"

    def documents_path(self, ordinal: int) -> str:
        """Returns the path of the near-duplicates among the documents of a split."""
        return f"{self.documents_folder}/{prefix_of(ordinal)}/{ordinal:08d}.parquet"

    def signatures_path(self, ordinal: int) -> str:
        """Returns the path of the signatures of a split."""
        return f"{self.signatures_folder}/{prefix_of(ordinal)}/{ordinal:08d}.bin"


def prefix_of(ordinal: int) -> str:
    """Returns the folder of a split's file.

    It is a hash, because object stores balance load by prefix.
    """
    return hashlib.blake2b(b"%d" % ordinal, digest_size=1).hexdigest()


def _suffix(plan: int) -> str:
    """Returns what the names of files of a plan end with: nothing for the first plan."""
    return f"-{plan:04d}" if plan else ""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run.

    Attributes:
        path: The folder, on the local disk or on any file system of fsspec that can create a file
            only if it is absent.
    """

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.rstrip("/") or "/")

    @property
    def identity_path(self) -> str:
        """The identity of the run; the plan is valid once this file exists."""
        return f"{self.path}/plan/identity.json"

    def identity_path_of(self, plan: int) -> str:
        """Returns the path of the identity once a plan is committed, given by its number from 0."""
        return f"{self.path}/plan/identity{_suffix(plan)}.json"

    def inputs_path(self, key: str) -> str:
        """Returns the path of a chunk of a list of input files."""
        return f"{self.path}/plan/inputs/{key}.jsonl"

    def splits_path(self, key: str, part: int) -> str:
        """Returns the path of the splits of one group of a chunk."""
        return f"{self.path}/plan/splits/{key}-{part:03d}.jsonl"

    def chunk_plan_path(self, key: str) -> str:
        """Returns the path of the plan of a chunk, which is committed after its splits."""
        return f"{self.path}/plan/splits/{key}.json"

    def old_inputs_path(self, plan: str) -> str:
        """Returns the path of the list of input files of a plan that version 0.1.0 made."""
        return f"{self.path}/plan/{plan}/inputs.jsonl"

    def old_splits_path(self, plan: str, group: int) -> str:
        """Returns the path of the splits of one group of a plan that version 0.1.0 made."""
        return f"{self.path}/plan/{plan}/splits-{group:05d}.jsonl"

    def plan_index_path(self, plan: str) -> str:
        """Returns the path of the index of a plan; version 0.1.0 wrote none."""
        return f"{self.path}/plan/{plan}/index.json"

    def score_path(self, ordinal: int) -> str:
        """Returns the path of the score file of a split."""
        return f"{self.scores_path}/{prefix_of(ordinal)}/{ordinal:08d}.parquet"

    @property
    def scores_path(self) -> str:
        """The folder of the score files."""
        return f"{self.path}/scores"

    @property
    def scoring_lease_path(self) -> str:
        """The folder of the lease of scoring (`datarater.pipelines.run_folder.lease`)."""
        return f"{self.path}/lease/scoring"

    @property
    def selection_leases_path(self) -> str:
        """The folder of the leases of all selections."""
        return f"{self.path}/lease/selections"

    def selection_lease_path(self, name: str) -> str:
        """Returns the folder of the lease of a selection."""
        return f"{self.selection_leases_path}/{name}"

    @property
    def duplicates_leases_path(self) -> str:
        """The folder of the leases of all deduplications."""
        return f"{self.path}/lease/duplicates"

    def duplicates_lease_path(self, name: str) -> str:
        """Returns the folder of the lease of a deduplication."""
        return f"{self.duplicates_leases_path}/{name}"

    @property
    def attempts_path(self) -> str:
        """The folder of the marks of splits in progress (`run_folder.split_marks`)."""
        return f"{self.path}/attempts"

    @property
    def scoring_folders(self) -> list[str]:
        """The folders that only scoring writes to."""
        return [
            f"{self.path}/{name}"
            for name in ("plan", "scores", "summaries", "rejected", "attempts")
        ]

    @property
    def first_pass_path(self) -> str:
        """The run folder of a student's scores, in a run with one."""
        return f"{self.path}/{FIRST_PASS}"

    @property
    def summaries_path(self) -> str:
        """The folder of the summaries."""
        return f"{self.path}/summaries"

    @property
    def old_summaries_path(self) -> str:
        """The folder of the summaries that version 0.1.0 wrote."""
        return f"{self.path}/scores/summaries"

    def summary_path(self, group: int) -> str:
        """Returns the path of the summary of a group of splits."""
        return f"{self.summaries_path}/{group:06d}.json"

    def old_summary_path(self, group: int) -> str:
        """Returns the path of the summary of a group of splits that version 0.1.0 wrote."""
        return f"{self.old_summaries_path}/{group:06d}.json"

    @property
    def rejected_folder(self) -> str:
        """The folder of the lists of rejected records."""
        return f"{self.path}/rejected"

    def rejected_path(self, group: int) -> str:
        """Returns the path of the rejected records of a group of splits."""
        return f"{self.rejected_folder}/{group:06d}.jsonl"

    @property
    def scoring_path(self) -> str:
        """The counts of the whole corpus, committed once everything is scored."""
        return f"{self.path}/scoring.json"

    def scoring_path_of(self, plan: int) -> str:
        """Returns the path of the counts once the splits of a plan are scored."""
        return f"{self.path}/scoring{_suffix(plan)}.json"

    def selection(self, name: str) -> SelectionFolder:
        """Returns the paths of a selection."""
        return SelectionFolder(f"{self.path}/selections/{name}")

    @property
    def duplicates_path(self) -> str:
        """The folder of all deduplications."""
        return f"{self.path}/duplicates"

    def duplicates(self, name: str) -> DuplicatesFolder:
        """Returns the paths of a deduplication."""
        return DuplicatesFolder(f"{self.duplicates_path}/{name}")

    def ranking(self, name: str) -> RankingFolder:
        """Returns the run folder as a selection with a ranking of its own sees it."""
        return RankingFolder(self.path, self.selection(name).ranking_path)


@dataclasses.dataclass(frozen=True)
class RankingFolder(RunFolder):
    """A run folder whose score files, summaries and counts are those of a selection's ranking.

    The plan is that of the run.

    Attributes:
        ranking_path: Folder of the ranking.
    """

    ranking_path: str

    @property
    def scores_path(self) -> str:
        """The folder of the score files of the ranking."""
        return f"{self.ranking_path}/scores"

    @property
    def summaries_path(self) -> str:
        """The folder of the summaries of the ranking."""
        return f"{self.ranking_path}/summaries"

    @property
    def old_summaries_path(self) -> str:
        """The same folder: version 0.1.0 wrote no ranking."""
        return self.summaries_path

    @property
    def scoring_path(self) -> str:
        """The counts of all ranked documents, committed once everything is ranked."""
        return self.scoring_path_of(0)

    def scoring_path_of(self, plan: int) -> str:
        """Returns the path of the counts once the documents of a plan are ranked."""
        return f"{self.ranking_path}/scoring{_suffix(plan)}.json"

    @property
    def joins_path(self) -> str:
        """The counts of the joined tables, committed before those of the documents."""
        return f"{self.ranking_path}/joins.json"


def json_lines(rows: Iterable[Any]) -> bytes:
    """Returns values as JSONL."""
    # Not a list: each result of orjson keeps kilobytes beyond its length.
    lines = bytearray()
    for row in rows:
        lines += orjson.dumps(to_plain(row), option=orjson.OPT_APPEND_NEWLINE)
    return bytes(lines)


def read_json_lines(path: str, kind: type[T]) -> list[T]:
    """Reads the values in a JSONL file; raises as `read_json` does."""
    return decode_lines(path, kind, commits.read_bytes(path))


def decode_lines(path: str, kind: type[T], data: bytes) -> list[T]:
    """Returns the values in the content of a JSONL file."""
    return [decode_file(path, kind, line) for line in data.split(b"\n") if line]


def stream_json_lines(path: str, kind: type[T]) -> Iterator[T]:
    """Yields the values in a JSONL file, one in memory at a time; raises as `read_json` does."""
    with raising_os_errors(path), commits.open_committed(path) as file:
        for line in file:
            yield decode_file(path, kind, line)
