"""Cost of the data path: preparing, drawing batches, and resuming, here and in an earlier version.

    git worktree add ../before b6061e8
    DATARATER_CORPORA=corpora python -m tests.benchmarks.data_path --before ../before

Makes a corpus of JSONL in a temporary folder: the documents of `dev/` again and again, with a
tenth of their small letters replaced at random, so that no copy is a near-duplicate. Then measures,
with byte tokens:

    preparation   tokens per second, from texts to windows of 2,048 tokens
    draws         tokens per second of batches of 256 such windows, by a shuffle over the whole set,
                  for options of the ArrayRecord files
    share         processor time of the draws of a meta-step of the default config, over the wall
                  time of that step on this machine
    resume        processor seconds, wall seconds and bytes read from an opened workdir to the first
                  batch, in this checkout and with --before in another one

The files were written just before, so reads come from the operating system's cache: bytes read are
those that the programs asked it for.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datarater.meta_training.configs import default
from datarater.meta_training.data.prepared import INDEX, PreparedWindows, read_index
from datarater.meta_training.data.windows import draw_batches
from tests.benchmarks.benchmark_support import machine, read_documents, train

RESULTS = Path(__file__).parent / "data_path_results"
LENGTH, BATCH = 2048, 256
REPLACED = 0.1  # of the small letters of a copy
OPTIONS = (
    "group_size:1,uncompressed",
    "group_size:1,snappy",
    "group_size:1,zstd:3",
    "group_size:16,uncompressed",
    "group_size:16,zstd:3",
)

# The program of a child, which imports the modules of its own checkout. It prints what it read
# and how long it took from the workdir to a first batch.
CHILD = """
import json, pathlib, resource, sys, time
from datarater.meta_training.configs import default
from datarater.meta_training.data.windows import draw_batches, restore_iterator
from datarater.meta_training.run import prepared_run
try:
    from datarater.meta_training.run.preparation import prepare_in_workdir
except ImportError:
    prepare_in_workdir = None

pattern, folder, length, batch, begun = sys.argv[1:]
config = default.get_config()
config.data.inner, config.length = pattern, int(length)

def used():
    spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    io = dict(line.split(": ") for line in open("/proc/self/io"))
    return time.monotonic(), sum(s.ru_utime + s.ru_stime for s in spent), int(io["rchar"])

before = used()
if prepare_in_workdir:
    path = pathlib.Path(folder)
    prepare_in_workdir(config, path, None, begun == "begun")
    experiment = prepared_run.open_experiment(config, path)
else:
    experiment = prepared_run.prepare(config)
batches = draw_batches(experiment.inner, (int(batch),), 1)
restore_iterator(batches, {"next_index": 100})
tokens = next(batches).tokens_BxL
after = used()
batches.close()
wall, processor, read = (b - a for a, b in zip(before, after))
print(json.dumps({"seconds": wall, "processor_seconds": processor, "bytes_read": read}))
"""


def write_corpus(documents: Sequence[tuple[str, str]], folder: Path, size: int) -> None:
    """Writes JSONL files of at least `size` bytes from (text, source), each copy changed."""
    rng, written, number = np.random.default_rng(0), 0, 0
    while written < size:
        with open(folder / f"copy-{number:03d}.jsonl", "w") as file:
            for text, source in documents:
                content = np.frombuffer(text.encode(), np.uint8).copy()
                small = (content >= ord("a")) & (content <= ord("z"))
                if number:
                    small &= rng.random(len(content)) < REPLACED
                    content[small] = rng.integers(ord("a"), ord("z") + 1, small.sum())
                record = {"text": content.tobytes().decode(), "source": source}
                written += file.write(json.dumps(record) + "\n")
                if written >= size:
                    break
        number += 1


def child(checkout: Path, *arguments: object) -> dict[str, float]:
    """Runs the child in a checkout and returns what it measured."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=checkout,  # Python looks for modules there first
        env={**os.environ, "PYTHONPATH": str(checkout.resolve()), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the child in {checkout} failed: {done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


@contextlib.contextmanager
def rewritten(folder: Path, options: str, limit: int) -> Iterator[Path]:
    """Yields a folder with the inner windows in files of other options, `limit` shards at most."""
    from array_record.python import array_record_module  # type: ignore[import-untyped]

    index = json.loads((folder / INDEX).read_bytes())
    shards = index["sets"]["inner"]["shards"] = index["sets"]["inner"]["shards"][:limit]
    windows = sum(shard["windows"] for shard in shards)
    with tempfile.TemporaryDirectory(dir=folder.parent) as other:
        path = Path(other)
        (path / INDEX).write_text(json.dumps(index))
        for table in ("lengths", "sources"):
            rows = np.load(folder / f"inner.{table}.npy", mmap_mode="r")[:windows]
            np.save(path / f"inner.{table}.npy", rows)
        for shard in shards:
            reader = array_record_module.ArrayRecordReader(str(folder / shard["file"]))
            writer = array_record_module.ArrayRecordWriter(str(path / shard["file"]), options)
            for record in reader.read_all():
                writer.write(record)
            writer.close()
        yield path


def draw_speed(folder: Path, batch: int, seconds: float) -> dict[str, float]:
    """Returns tokens per second of wall and of processor time, of draws from a prepared folder."""
    batches = draw_batches(PreparedWindows(folder, "inner"), (batch,), 0)
    tokens = np.asarray(next(batches).tokens_BxL).size
    count = 0
    processor, started = time.process_time(), time.monotonic()
    while time.monotonic() - started < seconds:
        next(batches)
        count += 1
    wall, processor = time.monotonic() - started, time.process_time() - processor
    batches.close()
    return {
        "tokens_per_second": count * tokens / wall,
        "tokens_per_processor_second": count * tokens / processor,
    }


def share_of_a_step(pattern: str, folder: Path, seconds: float) -> dict[str, float]:
    """Returns the time of a meta-step of the default config, and of the draws for it."""
    workdir, config = folder / "work", default.get_config()
    overrides = {"data.inner": pattern, "meta_steps": 8, "population.warmup_steps": 0}
    overrides |= {"population.lifetime": 0, "export.reference_documents": 4}
    train("default", workdir, [f"--config.{key}={value}" for key, value in overrides.items()])
    with open(workdir / "metrics" / "metrics.csv") as file:
        steps = [float(row["step_seconds"]) for row in csv.DictReader(file)]
    step = statistics.median(steps[2:])

    windows = config.population.size * (
        config.inner_updates * config.inner_batch + config.outer_batch
    )
    speed = draw_speed(workdir / "prepared", windows, seconds)
    drawn = windows * config.length / speed["tokens_per_processor_second"]
    return {"step_seconds": step, "draw_processor_seconds": drawn, "share": drawn / step}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="folder of a checkout to compare resuming with")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the corpus")
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each draw measurement")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args(argv)

    corpora = os.environ["DATARATER_CORPORA"]
    pattern = f"{corpora}/dev/*.jsonl.gz"
    documents = [(each.text, each.source) for each, _ in read_documents(pattern)]
    results: dict[str, Any] = {"machine": machine(), "gigabytes": arguments.gigabytes}

    def report(name: str, values: dict[str, float]) -> None:
        results[name] = values
        print(f"{name}: " + ", ".join(f"{k} {v:,.4g}" for k, v in values.items()), flush=True)

    with tempfile.TemporaryDirectory(prefix="datarater-data-path-") as temporary:
        folder = Path(temporary)
        corpus, prepared = folder / "corpus", folder / "prepared"
        corpus.mkdir()
        write_corpus(documents, corpus, round(arguments.gigabytes * 1e9))
        here, files = Path(__file__).parents[2], f"{corpus}/*.jsonl"

        preparing = child(here, files, prepared, LENGTH, BATCH, "new")
        index = read_index(prepared)
        assert index is not None
        tokens = sum(each.tokens for each in index.sets.values())
        preparing["tokens_per_processor_second"] = tokens / preparing["processor_seconds"]
        preparing["tokens_per_second"] = tokens / preparing["seconds"]
        report("preparation", preparing)

        report("resume", child(here, files, prepared, LENGTH, BATCH, "begun"))
        if arguments.before:
            report("resume before", child(arguments.before, files, prepared, LENGTH, BATCH, ""))

        report("draws", draw_speed(prepared, BATCH, arguments.seconds))
        for options in OPTIONS:
            with rewritten(prepared, options, 2) as other:
                size = sum(path.stat().st_size for path in other.glob("*.array_record"))
                original = sum(
                    (prepared / path.name).stat().st_size for path in other.glob("*.array_record")
                )
                speed = draw_speed(other, BATCH, arguments.seconds)
                report(f"draws, {options}", {**speed, "size": size / original})

        report("meta-step", share_of_a_step(pattern, folder, arguments.seconds))

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "data_path.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
