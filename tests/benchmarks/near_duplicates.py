r"""Precision, recall and cost of `datarater dedup`, beside MinHashLSH of datasketch.

    python -m tests.benchmarks.near_duplicates --output /tmp/near_duplicates

Takes the documents of `dev/` in $DATARATER_CORPORA, by default `../shared/corpora`, and plants
2,000 near-duplicates of some: 0 to 12% of the words are replaced, removed, moved or added. A rater
without a meaning scores all documents (`datarater score`); then `datarater dedup` and datasketch
look for near-duplicates.

Two documents are near-duplicates if the exact Jaccard similarity of their 5-word shingles, which
other code computes here, is at least 0.8. Prefix filtering finds all such pairs, also those that
the corpus had before. A document is a duplicate if it has such a neighbor above it in the order of
the run. datasketch compares the same sets, with as many permutations and the same bands. It drops a
document with a candidate above it; a second row verifies candidates with whole minima.

Times are processor seconds. Those of datasketch begin with sets of shingles; those of `datarater
dedup` include reading the input and the overhead of the runner.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

import datarater
from datarater import cli
from datarater.pipelines.dedup.entries import signed
from datarater.pipelines.dedup.signatures import PERMUTATIONS, Bands
from datarater.pipelines.selection.ranking import seeded_hash
from datarater.rater_model.checkpoint import save_rater
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from tests.benchmarks.benchmark_support import machine
from tests.support import corpora_folder
from tests.support.near_duplicates import shingles
from tests.support.raters import random_student

SIMILARITY = 0.8
PLANTED = 2000
MIN_WORDS = 20
SHARES = (0.0, 0.01, 0.02, 0.05, 0.12)
MARGIN = 0.1
"""Pairs within this distance of the required similarity may be decided either way by chance."""


def edited(text: str, share: float, rng: random.Random) -> str:
    """Returns a text in which about a share of the words was replaced, removed, moved or added."""
    words = re.split(r"(?<=\s)(?=\S)", text)
    if not share:
        return text.upper() if rng.random() < 0.5 else " ".join(text.split()) + "\n"
    number = max(1, round(share * len(words)))
    kind = rng.randrange(4)
    if kind == 3:
        return text + "\n\n" + " ".join(rng.choice(words).strip()[::-1] for _ in range(number))
    for place in rng.sample(range(len(words)), min(number, len(words))):
        if kind == 0:
            words[place] = rng.choice(words)
        elif kind == 1:
            words[place] = ""
        else:
            other = rng.randrange(len(words))
            words[place], words[other] = words[other], words[place]
    return "".join(words)


def documents_with_planted(corpus: Path, planted: int, seed: int) -> list[dict[str, str]]:
    """Returns the documents of a corpus and edited copies of some, shuffled."""
    rng = random.Random(seed)
    texts = [
        record.text
        for info in list_files([f"{corpus}/*"])
        for record in read_file(info.path)
        if isinstance(record, Document)
    ]
    long = [text for text in texts if len(text.split()) >= MIN_WORDS]
    copies = [edited(rng.choice(long), rng.choice(SHARES), rng) for _ in range(planted)]
    records = [
        {"id": f"{'copy' if number >= len(texts) else 'own'}-{number}", "text": text}
        for number, text in enumerate([*texts, *copies])
    ]
    rng.shuffle(records)
    return records


def true_pairs(sets: Sequence[frozenset[int]], minimum: float) -> Iterator[tuple[int, int, float]]:
    """Yields all pairs of sets with a Jaccard similarity of at least a minimum, exactly.

    Sets are compared if their prefixes share an element: the rarest (1 - minimum) |A| + 1 ones.
    Source: Chaudhuri, Ganti, Kaushik, "A primitive operator for similarity joins", ICDE 2006.
    """
    frequency = Counter(element for one in sets for element in one)
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(sets):
        rarest = sorted(one, key=lambda element: (frequency[element], element))
        candidates: set[int] = set()
        for element in rarest[: len(one) - int(np.ceil(minimum * len(one))) + 1]:
            candidates.update(holders[element])
            holders[element].append(number)
        for other in candidates:
            sizes = sorted((len(one), len(sets[other])))
            if sizes[0] < minimum * sizes[1]:
                continue
            both = len(one & sets[other])
            similarity = both / (sum(sizes) - both)
            if similarity >= minimum:
                yield other, number, similarity


def closest_above(pairs: Sequence[tuple[int, int, float]], rank: Sequence[int]) -> dict[int, float]:
    """Returns the greatest similarity of each document with one above it."""
    best: dict[int, float] = {}
    for one, other, similarity in pairs:
        worse = one if rank[one] > rank[other] else other
        best[worse] = max(best.get(worse, 0.0), similarity)
    return best


def by_datasketch(
    sets: Sequence[frozenset[int]], rank: Sequence[int]
) -> tuple[set[int], set[int], float]:
    """Returns what MinHashLSH drops, what it drops of that after verifying, and the seconds."""
    bands = Bands.for_similarity(SIMILARITY)
    started = time.process_time()
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(bands.count, bands.rows))
    hashed = []
    for number, one in enumerate(sets):
        hashed.append(MinHash(PERMUTATIONS))
        hashed[-1].update_batch([b"%d" % shingle for shingle in one])
        if one:
            index.insert(number, hashed[-1])
    found, verified = set(), set()
    for number, one in enumerate(sets):
        above = [other for other in index.query(hashed[number]) if rank[other] < rank[number]]
        if one and above:
            found.add(number)
            if any(hashed[number].jaccard(hashed[other]) >= SIMILARITY for other in above):
                verified.add(number)
    return found, verified, time.process_time() - started


def quality(dropped: set[int], closest: dict[int, float]) -> dict[str, Any]:
    """Returns precision and recall of what is dropped, at the similarity and beyond a margin."""
    true = {number for number, similarity in closest.items() if similarity >= SIMILARITY}
    surely = {number for number, value in closest.items() if value >= SIMILARITY + MARGIN}
    nearly = {number for number, value in closest.items() if value >= SIMILARITY - MARGIN}
    return {
        "dropped": len(dropped),
        "precision": len(dropped & true) / len(dropped),
        "recall": len(dropped & true) / len(true),
        "precision_with_margin": len(dropped & nearly) / len(dropped),
        "recall_with_margin": len(dropped & surely) / len(surely),
    }


def seconds_of(command: Sequence[str]) -> float:
    """Runs a command of `datarater` in this process; returns its processor seconds."""
    started = time.process_time()
    if cli.main(command):
        raise SystemExit(f"datarater {' '.join(command)} failed")
    return time.process_time() - started


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for runs and results")
    parser.add_argument("--planted", type=int, default=PLANTED, help="number of near-duplicates")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus")
    args = parser.parse_args()

    # A corpus in four files, scored by a rater that is only fast.
    shutil.rmtree(args.output, ignore_errors=True)
    (args.output / "in").mkdir(parents=True)
    records = documents_with_planted(corpora_folder() / "dev", args.planted, args.seed)
    for number in range(4):
        lines = [json.dumps(record) for record in records[number::4]]
        (args.output / "in" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    save_rater(args.output / "rater", random_student())
    run = str(args.output / "run")
    flags = ["--input", f"{args.output}/in/*", "--rater", f"{args.output}/rater", "--output", run]
    seconds_of(["score", *flags, "--split_bytes", "4MB"])
    dedup = seconds_of(["dedup", "--output", run, "--similarity", str(SIMILARITY)])
    select = seconds_of(["select", "--output", run, "--keep_fraction", "0.5"])

    # The order of the run, and the truth.
    place = {json.dumps(record["id"]): number for number, record in enumerate(records)}
    scores = datarater.read_scores(run, ["key", "score", "key_hash"]).drop_null()
    ties_N = seeded_hash(scores["key_hash"].to_numpy(), 0)
    best_first = np.lexsort([ties_N, -scores["score"].to_numpy()])
    rank = [0] * len(records)
    for number, key in enumerate(scores["key"].take(best_first).to_pylist()):
        rank[place[key]] = number
    table = pq.read_table(Path(run) / "duplicates" / f"similarity-{SIMILARITY:g}" / "documents")
    own = {place[key] for key in table["key"].to_pylist()}
    sets = [frozenset(map(hash, shingles(record["text"]))) for record in records]
    closest = closest_above(list(true_pairs(sets, SIMILARITY - MARGIN)), rank)

    started = time.process_time()
    zeros_N = np.zeros(len(records), np.uint32)
    for first in range(0, len(records), 1024):
        part = slice(first, first + 1024)
        texts = [record["text"] for record in records[part]]
        signed(
            texts,
            Bands.for_similarity(SIMILARITY),
            zeros_N[part],
            zeros_N[part],
            zeros_N[part].astype(np.uint64),
        )
    signing = time.process_time() - started
    found, verified, theirs = by_datasketch(sets, rank)
    per_thousand = 1000 / len(records)
    rows = [
        {"tool": "datarater dedup", **quality(own, closest), "seconds": dedup * per_thousand},
        {"tool": "datasketch, candidates", **quality(found, closest)},
        {
            "tool": "datasketch, verified",
            **quality(verified, closest),
            "seconds": theirs * per_thousand,
        },
    ]

    kinds = Counter(similarity >= SIMILARITY for similarity in closest.values())
    print(
        f"{len(records):,} documents, {args.planted:,} planted; {kinds[True]:,} have a neighbor "
        f"above them with an exact similarity of {SIMILARITY} or more"
    )
    names = "dropped", "precision", "recall", "precision_with_margin", "recall_with_margin"
    heads = "tool", "dropped", "precision", "recall", "at 0.7", "at 0.9", "s per 1,000"
    print(" ".join(f"{head:>22}" if head == "tool" else f"{head:>11}" for head in heads))
    for row in rows:
        cells = [f"{row['tool']:>22}", f"{row['dropped']:>11,}"]
        cells += [f"{row[name]:>11.2%}" for name in names[1:]]
        print(" ".join([*cells, f"{row['seconds']:>11.3f}" if "seconds" in row else " " * 11]))
    print(
        f"signatures alone take {signing * per_thousand:.3f} s per 1,000 documents, "
        f"a selection {select * per_thousand:.3f} s"
    )
    result = {
        "machine": machine(),
        "processors": os.cpu_count(),
        "documents": len(records),
        "planted": args.planted,
        "similarity": SIMILARITY,
        "duplicates": kinds[True],
        "signing_seconds": signing * per_thousand,
        "select_seconds": select * per_thousand,
        "rows": rows,
    }
    (args.output / "near_duplicates.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
