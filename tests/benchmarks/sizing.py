"""Workers, hours and price of scoring a corpus, from the rate of one worker.

    python -m tests.benchmarks.sizing --documents 1e9 --tokens_per_document 500 \
        --tokens_per_second 1e5 --hours 6 --stored_bytes 1.5e12

A worker is a core, or a GPU. With D documents of T tokens each, a rate of R tokens per second and
worker, and an allowance of a for startup, retries and the last splits, W workers need

    H = D T (1 + a) / (3600 R W)

hours. A machine of M workers at a price of P per hour then makes the bill H P W / M. Give either
the workers or the hours; the other is computed. Tokens are those of whole documents, as
`datarater status` counts them. Selecting afterwards is bound by reading, and is not included.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datarater.pipelines.commands.estimate import WorkerType

SPLIT_BYTES = 16 << 20
ALLOWANCE = 0.1


@dataclass(frozen=True)
class Sizing:
    """What a scoring takes.

    Attributes:
        documents: Number of documents.
        tokens: Number of their tokens.
        worker_hours: Hours that one worker would need.
        workers: Number of workers, in whole machines.
        machines: Number of machines.
        hours: Hours that the workers need.
        price: Price of the machines for these hours.
        splits: Number of splits; None if the stored bytes are not given.
        seconds_per_split: Seconds that a worker needs for a split; None without splits.
    """

    documents: int
    tokens: int
    worker_hours: float
    workers: int
    machines: int
    hours: float
    price: float
    splits: int | None = None
    seconds_per_split: float | None = None


def size(
    documents: int,
    tokens_per_document: float,
    tokens_per_second: float,
    machine: WorkerType,
    *,
    workers_per_machine: int | None = None,
    workers: int | None = None,
    hours: float | None = None,
    allowance: float = ALLOWANCE,
    stored_bytes: int | None = None,
    split_bytes: int = SPLIT_BYTES,
) -> Sizing:
    """Returns what a scoring takes; see the module's docstring for the formula.

    Args:
        documents: Number of documents.
        tokens_per_document: Mean number of tokens of a document.
        tokens_per_second: Rate of one worker.
        machine: Type of the machines, with its price per hour.
        workers_per_machine: Number of workers of a machine; None for one per vCPU.
        workers: Number of workers, rounded up to whole machines; None to compute it from `hours`.
        hours: Maximum number of hours; None to compute it from `workers`.
        allowance: Share of time that is added for startup, retries and the last splits.
        stored_bytes: Size of the input.
        split_bytes: Size of a split.

    Raises:
        ValueError: A number is not positive, or not exactly one of `workers` and `hours` is given.
    """
    if (workers is None) == (hours is None):
        raise ValueError("give exactly one of the number of workers and the hours")
    per_machine = machine.vcpus if workers_per_machine is None else workers_per_machine
    limit = workers if hours is None else hours
    assert limit is not None
    if min(documents, tokens_per_document, tokens_per_second, per_machine, limit) <= 0:
        raise ValueError("documents, tokens, rates, workers and hours must be positive")

    tokens = round(documents * tokens_per_document)
    seconds = tokens / tokens_per_second
    worker_hours = seconds * (1 + allowance) / 3600
    needed = workers if hours is None else math.ceil(worker_hours / hours)
    assert needed is not None
    machines = math.ceil(needed / per_machine)
    taken = worker_hours / (machines * per_machine)

    splits = None if stored_bytes is None else max(1, math.ceil(stored_bytes / split_bytes))
    return Sizing(
        documents=documents,
        tokens=tokens,
        worker_hours=worker_hours,
        workers=machines * per_machine,
        machines=machines,
        hours=taken,
        price=machines * taken * machine.price,
        splits=splits,
        seconds_per_split=None if splits is None else seconds / splits,
    )


def _whole(text: str) -> int:
    """Reads a number such as 1e9."""
    return round(float(text))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    from datarater.pipelines.commands.estimate import worker_type
    from datarater.pipelines.errors import UsageError

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--documents", type=_whole, required=True, help="number of documents, such as 1e9")
    add("--tokens_per_document", type=float, required=True, help="mean number of tokens")
    add("--tokens_per_second", type=float, required=True, help="rate of one worker")
    add("--workers", type=int, help="number of workers; else --hours")
    add("--hours", type=float, help="maximum number of hours; else --workers")
    add("--worker_type", default="n2-standard-8", help="machine type")
    add("--worker_price", type=float, help="USD for a machine-hour; default: the list price")
    add("--workers_per_machine", type=int, help="default: one per vCPU; with GPUs, their number")
    add("--allowance", type=float, default=ALLOWANCE, help="share of time for startup and retries")
    add("--stored_bytes", type=_whole, help="size of the input, for the number of splits")
    add("--split_bytes", type=_whole, default=SPLIT_BYTES, help="--split_bytes of the run")
    add("--output", type=Path, help="JSON file of the figures")
    args = parser.parse_args(arguments)
    try:
        machine = worker_type(args.worker_type, args.worker_price)
        result = size(
            args.documents,
            args.tokens_per_document,
            args.tokens_per_second,
            machine,
            workers_per_machine=args.workers_per_machine,
            workers=args.workers,
            hours=args.hours,
            allowance=args.allowance,
            stored_bytes=args.stored_bytes,
            split_bytes=args.split_bytes,
        )
    except (UsageError, ValueError) as error:
        parser.error(str(error))

    rows = [
        ("documents", f"{result.documents:,}"),
        ("tokens", f"{result.tokens:,}"),
        ("worker-hours", f"{result.worker_hours:,.0f}"),
        ("workers", f"{result.workers:,} on {result.machines:,} {machine.name}"),
        ("hours", f"{result.hours:,.2f}"),
        ("price", f"${result.price:,.2f} at ${machine.price:,.4f} a machine-hour"),
    ]
    if result.splits is not None:
        rows.append(("splits", f"{result.splits:,} of {result.seconds_per_split:,.0f} seconds"))
        rows.append(("splits per worker", f"{result.splits / result.workers:,.0f}"))
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    if args.output:
        args.output.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
