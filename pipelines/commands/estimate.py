"""Estimates what a scoring costs, from a sample of its input, before anything is submitted."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import re
import time
from collections.abc import Sequence

from apache_beam.options.pipeline_options import WorkerOptions

from datarater.pipelines import errors
from datarater.pipelines.commands.printing import say
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.decompression import unpacked_size
from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.reading import plan_file, read_split
from datarater.rater_model.documents.records import (
    Compression,
    Document,
    FileInfo,
    ReadOptions,
    Record,
)
from datarater.rater_model.scoring_options import limit_cpu_threads

_SAMPLED_FILES = 16
_SAMPLED_RECORDS = 64  # of each sampled file
_SAMPLE_SPLIT_BYTES = 2**20
_MIN_SECONDS = 1.0  # of processor time, for the rate of scoring

_DEFAULT_WORKER_TYPE = "n2-standard-8"
_AWS_VCPUS = {"large": 2, "xlarge": 4}

VCPU_PRICES = {
    "e2-standard": 0.0335,
    "n1-standard": 0.0475,
    "n2-standard": 0.0486,
    "n2d-standard": 0.0423,
    "c2-standard": 0.0522,
    "t2d-standard": 0.0423,
}
"""USD for a vCPU-hour with its memory, by machine family: on-demand list prices of Compute Engine
in us-central1. Dataflow's own charge is not in them. `--worker_price` takes the place of these."""


@dataclasses.dataclass(frozen=True)
class WorkerType:
    """A machine type, its size and its price.

    Attributes:
        name: The cloud's name of the type.
        vcpus: Number of vCPUs; each runs one worker process.
        price: USD for one machine-hour.
    """

    name: str
    vcpus: int
    price: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a scoring would read and take.

    Attributes:
        files: Number of input files.
        stored_bytes: Their size.
        records: Estimated number of records.
        documents: Estimated number of records that can be scored.
        tokens: Estimated number of tokens in them.
        sampled_documents: Number of documents that the estimate is based on.
        seconds_per_document: Processor seconds for scoring one document on this machine.
    """

    files: int
    stored_bytes: int
    records: int
    documents: int
    tokens: int
    sampled_documents: int
    seconds_per_document: float

    @property
    def core_hours(self) -> float:
        """Processor hours of scoring on cores like this machine's."""
        return self.documents * self.seconds_per_document / 3600


def worker_type(name: str, price: float | None) -> WorkerType:
    """Returns a machine type by its name.

    Args:
        name: A Compute Engine type such as `n2-standard-8`, or an EC2 type such as `m7i.2xlarge`.
        price: USD for one machine-hour; None for the list price, which is known for some families.

    Raises:
        UsageError: The size or the price of the type is not known.
    """
    family, vcpus = "", 0
    if match := re.fullmatch(r"([a-z]\d[a-z]?-[a-z]+)-(\d+)", name):
        family, vcpus = match[1], int(match[2])
    elif match := re.fullmatch(r"[a-z]+\d+[a-z-]*\.(\d*)(x?large)", name):
        vcpus = int(match[1] or 1) * _AWS_VCPUS[match[2]]
    if vcpus < 1:
        raise UsageError(
            f"--worker_type: {name} does not contain a number of vCPUs; give a type such as "
            "n2-standard-8 or m7i.2xlarge"
        )
    if price is None and family not in VCPU_PRICES:
        raise UsageError(
            f"--worker_type: the price of {name} is not known; give it as --worker_price USD (per "
            "machine-hour)"
        )
    return WorkerType(name, vcpus, VCPU_PRICES[family] * vcpus if price is None else price)


def prices_from_flags(args: argparse.Namespace, execution: Execution) -> WorkerType:
    """Returns the machine type of `--worker_type`, else of Beam's `--machine_type`.

    Raises:
        UsageError: The size or the price of the type is not known.
    """
    machine_type = execution.options.view_as(WorkerOptions).machine_type
    return worker_type(args.worker_type or machine_type or _DEFAULT_WORKER_TYPE, args.worker_price)


def estimate(request: ScoringRequest) -> Estimate:
    """Estimates a scoring from records of up to 16 of its files.

    The number of records is exact for Parquet and ArrayRecord; other files are estimated from the
    stored bytes of the sampled records. The rate is measured on one core of this machine.

    Raises:
        NoMatchError: No file matches.
        UnreadableInputError: A file cannot be read.
    """
    files = list(request.inputs.files())
    stored_bytes = sum(file.size for file in files)

    # Files of every size are sampled alike: every k-th of them by size.
    by_size = sorted((file for file in files if file.size), key=lambda file: (file.size, file.path))
    step = max(1, -(-len(by_size) // _SAMPLED_FILES))
    sample = by_size[step // 2 :: step]

    records, sampled_bytes = 0.0, 0
    seen: list[Record] = []
    for file in sample:
        try:
            count, part = _sample_file(file, request.options.read)
        except OSError as error:
            raise errors.reading_failed(file.path, error) from error
        records += count
        sampled_bytes += file.size
        seen += part
    all_records = round(records * stored_bytes / sampled_bytes) if sampled_bytes else 0

    # Records that cannot be scored are left out in the proportion in which they were met.
    texts = [record.text for record in seen if isinstance(record, Document)]
    documents = round(all_records * len(texts) / len(seen)) if seen else 0
    tokens, seconds = _score(request, texts) if texts else (0.0, 0.0)
    return Estimate(
        files=len(files),
        stored_bytes=stored_bytes,
        records=all_records,
        documents=documents,
        tokens=round(documents * tokens),
        sampled_documents=len(texts),
        seconds_per_document=seconds,
    )


def _sample_file(file: FileInfo, options: ReadOptions) -> tuple[float, list[Record]]:
    """Returns the estimated number of records of a file, and its first records."""
    split = plan_file(file, options, _SAMPLE_SPLIT_BYTES)[0]
    part = list(itertools.islice(read_split(split, options), _SAMPLED_RECORDS))
    if len(part) < _SAMPLED_RECORDS:  # the split ended: its share of the file is known
        return len(part) * file.size / (split.size or file.size), part

    exact = format_named(split.format).count_records(file.path)
    if exact is not None:
        return exact, part

    # Positions of text formats are offsets in the decompressed stream.
    bytes_per_record = (part[-1].position - part[0].position) / (len(part) - 1)
    total = file.size
    if split.compression is not Compression.NONE:
        with open_file(file.path, in_order_to=0) as stream:
            total = unpacked_size(stream, split.compression, file.size)
    return total / max(bytes_per_record, 1), part


def _score(request: ScoringRequest, texts: Sequence[str]) -> tuple[float, float]:
    """Returns the mean number of tokens of texts, and the processor seconds for scoring one."""
    # Loads JAX, which selecting does without.
    from datarater.rater_model.several_raters import make_several

    limit_cpu_threads()  # as workers do: one scoring thread for each core
    others = {name: load_rater(path) for name, path in request.other_raters.items()}
    scorer = make_several(load_rater(request.rater), others, request.options.scoring)
    tokens = scorer.score(texts).tokens_N.mean()  # compiles, so it is not timed
    rounds, began = 0, time.process_time()
    while rounds == 0 or time.process_time() - began < _MIN_SECONDS:
        scorer.score(texts)
        rounds += 1
    return float(tokens), (time.process_time() - began) / (rounds * len(texts))


def print_estimate(request: ScoringRequest, execution: Execution, worker: WorkerType) -> None:
    """Prints the estimate of a scoring; nothing is submitted or written.

    Raises:
        CurationError: The input cannot be listed or read.
    """
    result = estimate(request)
    say(
        f"dry run: estimated from {counted(result.sampled_documents, 'document')}; nothing was "
        "submitted or written"
    )
    say(f"files          {result.files:>16,}  ({_size(result.stored_bytes)})")
    say(f"records        {result.records:>16,}")
    say(f"documents      {result.documents:>16,}  ({counted(result.tokens, 'token')})")
    say(f"one core       {_duration(result.core_hours):>16}  (scoring, on a core like these here)")

    cascade = request.options.cascade
    if cascade is not None:
        in_doubt = cascade.surely_dropped - cascade.surely_kept
        say(
            f"the hours are those of the rater alone; --student leaves it about {in_doubt:.1%} of "
            "the documents"
        )

    machine_hours = result.core_hours / worker.vcpus
    say(
        f"one machine    {_duration(machine_hours):>16}  ({worker.name}, {worker.vcpus} vCPUs, "
        f"about ${machine_hours * worker.price:,.2f} at ${worker.price:,.4f} an hour)"
    )

    machines = execution.options.view_as(WorkerOptions).max_num_workers
    if machines and not execution.local:
        hours = machine_hours / machines
        say(f"this run       {_duration(hours):>16}  (with {machines:,} machines)")
    elif execution.workers:
        hours = result.core_hours / execution.workers
        workers = counted(execution.workers, "process", "processes")
        say(f"this run       {_duration(hours):>16}  (here, with {workers})")


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.1f} seconds"


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:,.0f} bytes"
    power = min(int(math.log10(count)) // 3, 5)
    return f"{count / 1000**power:,.1f} {('KB', 'MB', 'GB', 'TB', 'PB')[power - 1]}"
