"""What an object store serves to plan, score and select, compared with what a reader needs.

    python -m tests.benchmarks.bytes_served --megabytes 32 --json /tmp/bytes_served.json

Three corpora are read from a store on loopback, once by s3:// and once by gs://: JSONL in several
splits, JSONL in one gzip stream, and Parquet files of which the text, the id and the source are a
small part. Each is planned, scored by a rater that gives every text the same score, and its kept
documents are read a second time. The table shows for each of these

- the bytes that were needed: none to plan; to score, the stored bytes of the file or of the three
  columns; to select, the stored bytes of the file;
- the bytes that were served, and the requests.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datarater.pipelines.graph import planning
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.record_writers import open_writer
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.score_split import score_split
from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.plan import plan_of, read_group
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer
from tests.benchmarks.benchmark_support import machine
from tests.support.cloud_storage import cloud_storage, used_here
from tests.support.request_log import RequestLog
from tests.support.run_folders import run_options
from tests.support.s3_storage import s3_storage

BUCKET = "corpus"
READ_COLUMNS = ("text", "id", "source")
UNREAD_COLUMNS = 20
ROW_GROUPS = 4
_WORDS = 2**16


class _EqualScores(TextScorer):
    """A rater that gives every text the score 0."""

    digest = "equal"

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the scores of N texts."""
        zeros_N = np.zeros(len(texts), np.float32)
        return ScoredTexts(zeros_N, np.ones(len(texts), np.int64))


EQUAL_SCORES = _EqualScores()


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Files of one format, and what has to be read of them.

    Attributes:
        name: Description.
        files: Content of each file, by name.
        written: Output format of the second read.
        needed_to_score: Stored bytes that scoring needs.
    """

    name: str
    files: dict[str, bytes]
    written: str
    needed_to_score: int

    @property
    def stored(self) -> int:
        """Stored bytes of all files."""
        return sum(map(len, self.files.values()))


def texts(size: int, rng: np.random.Generator) -> list[str]:
    """Returns texts of about 4 KB that hardly compress, of a size in bytes together."""
    words = rng.integers(0, 16**6, (max(1, size // 4096), 585))
    return [" ".join(f"{word:06x}" for word in row) for row in words.tolist()]


def json_lines(size: int, rng: np.random.Generator) -> bytes:
    """Returns JSONL of about a size in bytes."""
    return b"".join(
        json.dumps({"id": str(row), "source": "web", "text": text}).encode() + b"\n"
        for row, text in enumerate(texts(size, rng))
    )


def wide_parquet(size: int, rng: np.random.Generator) -> tuple[bytes, int]:
    """Returns a Parquet file with many unread columns, and the stored bytes of the read ones."""
    rows = texts(size // (UNREAD_COLUMNS + 1), rng)
    columns: dict[str, Any] = {
        f"more_{number}": [rng.bytes(4096) for _ in rows] for number in range(UNREAD_COLUMNS)
    }
    columns |= {"id": [str(row) for row in range(len(rows))], "text": rows}
    columns |= {"source": ["web"] * len(rows)}
    out = io.BytesIO()
    # Statistics of the long values would fill the footer.
    group_rows = -(-len(rows) // ROW_GROUPS)
    pq.write_table(pa.table(columns), out, row_group_size=group_rows, write_statistics=["id"])

    metadata = pq.read_metadata(io.BytesIO(out.getvalue()))
    needed = sum(
        metadata.row_group(group).column(column).total_compressed_size
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
        if metadata.row_group(group).column(column).path_in_schema in READ_COLUMNS
    )
    return out.getvalue(), needed


def corpora(size: int, seed: int = 0) -> list[Corpus]:
    """Returns the three corpora, each of about a size in stored bytes."""
    rng = np.random.default_rng(seed)
    lines = json_lines(size, rng)
    packed = gzip.compress(json_lines(2 * size, rng), 1)
    table, needed = wide_parquet(size, rng)
    return [
        Corpus("JSONL", {"a.jsonl": lines}, "jsonl", len(lines)),
        Corpus("gzip JSONL", {"a.jsonl.gz": packed}, "jsonl.gz", len(packed)),
        Corpus("wide Parquet", {"a.parquet": table}, "parquet", needed),
    ]


@contextlib.contextmanager
def counting_store(protocol: str) -> Iterator[RequestLog]:
    """Runs a store with a bucket; yields the log of its requests."""
    if protocol == "s3":
        with s3_storage(BUCKET) as s3:
            yield s3.log
    else:
        with cloud_storage(BUCKET) as cloud, used_here(cloud):
            yield cloud.log


def measure(
    protocol: str, corpus: Corpus, split_bytes: int, log: RequestLog, run_folder: Path
) -> list[dict[str, Any]]:
    """Plans, scores and selects a corpus; returns a row for each of the three steps.

    Args:
        protocol: Protocol of the store.
        corpus: The corpus, which is uploaded first.
        split_bytes: Stored bytes of a split.
        log: Log of the store's requests.
        run_folder: A new run folder on the local disk.
    """
    folder = f"{BUCKET}/{corpus.name.replace(' ', '-')}"
    store = fsspec.filesystem(protocol)
    for name, content in corpus.files.items():
        store.pipe_file(f"{folder}/{name}", content)

    options = run_options(split_bytes=split_bytes)
    patterns = Patterns((f"{protocol}://{folder}/*",))
    request = ScoringRequest(patterns, "equal", str(run_folder), options)
    rows = []

    def step(name: str, needed: int, work: Callable[[], None]) -> None:
        log.clear()
        work()
        served = log.bytes_served(folder)
        rows.append(
            {
                "store": f"{protocol}://",
                "corpus": corpus.name,
                "step": name,
                "files": len(corpus.files),
                "splits": plan_of(request.folder).splits,
                "needed": needed,
                "served": served,
                "times": served / needed if needed else None,
                "requests": log.by_kind(folder),
            }
        )

    def plan() -> None:
        planning.plan_now(request)

    def score() -> None:
        for task in read_group(request.folder, 0):
            content = score_split(task, options.read, EQUAL_SCORES)
            commits.commit_file(request.folder.score_path(task.split.ordinal), content)

    def select() -> None:
        writer = open_writer(io.BytesIO(), corpus.written)
        for task in read_group(request.folder, 0):
            file = ScoreFile.read(request.folder, task.split.ordinal)
            rows = [(file.table, np.ones(file.table.num_rows, bool))]
            writer.write(KeptSplit(file.task, file.content, rows, options.read))
        writer.close()

    step("planned", 0, plan)
    step("scored", corpus.needed_to_score, score)
    step("selected", corpus.stored, select)
    return rows


def line(row: dict[str, Any]) -> str:
    """Describes a row."""
    times = f"{row['times']:>7.3f}" if row["times"] is not None else f"{'':>7}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["requests"].items())
    return (
        f"{row['store']:<6}{row['corpus']:<14}{row['step']:<10}{row['splits']:>6}"
        f"{row['needed']:>14,}{row['served']:>14,}{times}  {kinds}"
    )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=32.0, help="stored size of a corpus")
    parser.add_argument(
        "--split_megabytes", type=float, default=16.0, help="stored size of a split"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()

    # gcsfs reads this when it is imported: with it, a store is asked for the kind of its buckets.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    print(
        f"{'store':<6}{'corpus':<14}{'step':<10}{'splits':>6}{'needed':>14}{'served':>14}"
        f"{'times':>7}  requests"
    )
    rows = []
    made = corpora(int(args.megabytes * 2**20))
    for protocol in ("s3", "gs"):
        with counting_store(protocol) as log, tempfile.TemporaryDirectory() as runs:
            for corpus in made:
                run_folder = Path(runs, corpus.name)
                split_bytes = int(args.split_megabytes * 2**20)
                for row in measure(protocol, corpus, split_bytes, log, run_folder):
                    print(line(row), flush=True)
                    rows.append(row)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
