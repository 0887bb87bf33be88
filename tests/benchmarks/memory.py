r"""Peak memory of a worker as the corpus grows and with a huge document, and of gathering the plan.

    python -m tests.benchmarks.memory --corpus '../shared/corpora/dev/*' --rater RATER \
        --output /tmp/memory --times 1,10,50

A run is `datarater score` in one process, so its peak resident memory is that of a worker and the
launcher together. The corpora consist of symbolic links to the files of `--corpus`, several to each
file. The huge document comes after the corpus's own files: once under the default limit on records,
which rejects it, and once under a limit that accepts it.

The plan is gathered for `--splits` splits as the step of the graph does it, once for few files and
once for as many files as splits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from datarater.rater_model.documents.files import list_files
from tests.benchmarks.benchmark_support import machine
from tests.support.made_up_listing import plan_in_a_process


def run(name: str, inputs: list[str], rater: str, output: Path, more: list[str]) -> dict[str, Any]:
    """Scores a corpus in a separate process; returns its peak memory and the counts of records."""
    shutil.rmtree(output, ignore_errors=True)
    arguments = [word for pattern in inputs for word in ("--input", pattern)]
    arguments += ["--rater", rater, "--output", str(output), *more]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "datarater", "score", *arguments],
        stdout=subprocess.DEVNULL,
    )
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise RuntimeError(f"{name}: datarater score ended with {os.waitstatus_to_exitcode(code)}")

    counts = json.loads((output / "scoring.json").read_bytes())["counts"]
    megabytes = usage.ru_maxrss / 1024
    print(
        f"{name:<44} {megabytes:>8.0f} MB {time.monotonic() - started:>8.0f} s  "
        f"{counts['scored']:>9,} scored, {sum(counts['rejected'].values())} rejected",
        flush=True,
    )
    return {"name": name, "megabytes": megabytes, "counts": counts}


def link_corpus(folder: Path, files: list[str], times: int) -> str:
    """Links to each of some files several times; returns the glob of the links."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        for file in files:
            link = folder / f"{number:03d}-{Path(file).name}"
            if not link.exists():
                link.symlink_to(Path(file).resolve())
    return f"{folder}/*"


def huge_document(path: Path, megabytes: int) -> str:
    """Writes a file with one document of a size in megabytes between two small ones."""
    sentence = "One document may be longer than all others together. "
    with open(path, "w") as file:
        file.write('{"text": "a small document"}\n{"text": "')
        for _ in range(megabytes):
            file.write((sentence * (10**6 // len(sentence) + 1))[: 10**6])
        file.write('"}\n{"text": "another small document"}\n')
    return str(path)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, metavar="GLOB", help="files to score")
    parser.add_argument("--rater", required=True, metavar="DIR", help="a rater checkpoint")
    parser.add_argument("--output", required=True, type=Path, help="folder for runs and figures")
    parser.add_argument("--times", default="1,10", help="corpus sizes, as multiples of --corpus")
    parser.add_argument("--document_megabytes", type=int, default=200, help="the huge document")
    parser.add_argument("--splits", type=int, default=1_000_000, help="splits of the plan")
    args, more = parser.parse_known_args()

    args.output.mkdir(parents=True, exist_ok=True)
    files = [info.path for info in list_files([args.corpus])]
    rows = []
    for times in (int(word) for word in args.times.split(",")):
        corpus = link_corpus(args.output / f"corpus-{times}", files, times)
        rows.append(
            run(f"the corpus, {times} times", [corpus], args.rater, args.output / "run", more)
        )

    huge = huge_document(args.output / "huge.jsonl", args.document_megabytes)
    corpus = link_corpus(args.output / "corpus-1", files, 1)
    name = f"and a document of {args.document_megabytes} MB"
    rows.append(run(f"{name}, rejected", [corpus, huge], args.rater, args.output / "run", more))
    allowed = ["--max_record_bytes", f"{args.document_megabytes * 2}MB", *more]
    rows.append(run(f"{name}, scored", [corpus, huge], args.rater, args.output / "run", allowed))
    for row in rows[1:]:
        print(f"{row['name']}: {row['megabytes'] / rows[0]['megabytes']:.2f} times the first")

    gathered = []
    for files_planned in (1000, args.splits):
        output = str(args.output / f"plan-{files_planned}")
        shutil.rmtree(output, ignore_errors=True)
        megabytes, seconds = plan_in_a_process(files_planned, args.splits // files_planned, output)
        print(
            f"plan of {args.splits:,} splits in {files_planned:,} files: "
            f"{megabytes:,.0f} MB, {seconds:.0f} s"
        )
        gathered.append({"files": files_planned, "megabytes": megabytes, "seconds": seconds})
        shutil.rmtree(output)
    result = {"machine": machine(), "rows": rows, "plan": gathered}
    (args.output / "memory.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
