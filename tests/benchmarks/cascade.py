r"""Agreement of a cascade with its rater against its cost, on documents that the student never saw.

    python -m tests.benchmarks.cascade --corpus '../shared/corpora/dev/*' --rater RATER \
        --output /tmp/cascade

The rater scores the corpus (`datarater score`, which resumes). A student is distilled from the
scores of every second file (`datarater distil`). For each kept share and wished agreement, the
cascade's own code ranks the documents of the other files. The rater's part of it looks up the
scores of the run.

Agreement is the share of the documents that the rater alone keeps among those that the cascade
keeps. The cost is that of scoring these documents by the cascade as a share of that by the rater
alone: in floating-point operations, and in processor time on one thread, measured in turns. That of
the distillation, which is paid once per rater, is not included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater import cli
from datarater.meta_training.evaluate.gains import forward_flops
from datarater.pipelines.graph.cascade import CascadeScorer, Doubt
from datarater.pipelines.run_folder.identity import CascadeOptions
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys
from datarater.rater_model.cascade import Band, HeldOut
from datarater.rater_model.checkpoint import RaterCheckpoint, load_rater
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from datarater.rater_model.ngram_rater import NgramConfig
from datarater.rater_model.ngram_scorer import NgramScorer, make_scorer
from datarater.rater_model.rater import RaterConfig
from datarater.rater_model.scoring_options import ScoringOptions, limit_cpu_threads
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.benchmarks.benchmark_support import machine

KEEPS = (0.5, 0.25, 0.1)
AGREEMENTS = (0.9, 0.95, 0.98, 0.99, 0.995)
TIMED_DOCUMENTS = 256


class KnownScores(TextScorer):
    """Looks up the scores of a run, and records how many tokens the rater would have scored."""

    def __init__(self, texts: Sequence[str], scores_N: NDArray[np.float32]) -> None:
        self.digest = "known"
        self.tokens = 0
        self._scores = dict(zip(texts, scores_N.tolist(), strict=True))

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the scores of the run."""
        scores_N = np.asarray([self._scores[text] for text in texts], np.float32)
        tokens_N = np.asarray([len(text.encode()) for text in texts], np.int64)
        self.tokens += int(tokens_N.sum())
        return ScoredTexts(scores_N, tokens_N)


@dataclass(frozen=True)
class Prices:
    """Costs of scoring, each in floating-point operations and in seconds of processor time.

    Attributes:
        rater: Cost of a byte by the rater.
        student: Cost of a byte by the student.
    """

    rater: tuple[float, float]
    student: tuple[float, float]

    def shares(self, in_doubt: float) -> tuple[float, float]:
        """Returns the cost of a cascade as shares of that of the rater.

        Args:
            in_doubt: Share of the bytes that the rater scores.
        """
        flops, seconds = (
            in_doubt + student / rater
            for student, rater in zip(self.student, self.rater, strict=True)
        )
        return flops, seconds


def measure_prices(
    rater: RaterCheckpoint, student: RaterCheckpoint, texts: Sequence[str], rounds: int
) -> Prices:
    """Scores texts by both in turns; returns the costs of a byte, with the medians of the times."""
    assert isinstance(rater.config, RaterConfig)
    assert isinstance(student.config, NgramConfig)
    tokens = sum(len(rater.tokenizer.encode(text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    scorers = [make_scorer(checkpoint) for checkpoint in (rater, student)]
    scorers[0].score(texts)  # compiles
    times = []
    for _ in range(rounds):
        for scorer in scorers:
            started = time.process_time()
            scorer.score(texts)
            times.append(time.process_time() - started)
    by_rater, by_student = (float(np.median(times[turn::2])) / size for turn in (0, 1))

    # An n-gram rater adds one weight of each order per byte.
    flops = forward_flops(rater.config.transformer, rater.config.window) * tokens / size
    return Prices((flops, by_rater), (float(len(student.config.orders)), by_student))


def kept(scores_N: NDArray[np.floating], keep: float) -> NDArray[np.bool_]:
    """Returns a mask of the best share of documents."""
    kept_N = np.zeros(len(scores_N), bool)
    kept_N[np.argsort(-scores_N, kind="stable")[: round(keep * len(scores_N))]] = True
    return kept_N


def agreement_of(kept_N: NDArray[np.bool_], scores_N: NDArray[np.floating], keep: float) -> float:
    """Returns the share of the rater's own kept documents among others."""
    return float(kept_N[kept(scores_N, keep)].mean())


def row_of(
    texts: Sequence[str],
    scores_N: NDArray[np.float32],
    student: NgramScorer,
    histogram: Histogram,
    held_out: HeldOut,
    keep: float,
    wished: float,
    prices: Prices,
) -> dict[str, Any]:
    """Ranks documents by a cascade; returns its agreement and its costs."""
    band = held_out.band(keep, wished)
    cascade = CascadeOptions(
        student.digest, str(keep), wished, band.kept, band.dropped, held_out.offset()
    )
    rater = KnownScores(texts, scores_N)
    doubt = Doubt.of(histogram, cascade)
    scorer = CascadeScorer(student, rater, ByteTokenizer(), doubt, cascade.offset)
    scored = scorer.score(texts)

    in_doubt = rater.tokens / sum(len(text.encode()) for text in texts)
    flops, seconds = prices.shares(in_doubt)
    return {
        "keep": keep,
        "wished": wished,
        "agreement": agreement_of(kept(scored.scores_N, keep), scores_N, keep),
        "surely_kept": band.kept,
        "surely_dropped": band.dropped,
        "in_doubt": in_doubt,
        "expected_in_doubt": held_out.share(Band(band.kept, band.dropped)),
        "flops": flops,
        "processor_time": seconds,
    }


def read_run(run: Path, files: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Returns the texts of files and their scores in a run folder, without rejected documents."""
    import datarater

    columns = datarater.read_scores(run, ["key", "score"]).drop_null()
    scores = dict(zip(columns["key"].to_pylist(), columns["score"].to_pylist(), strict=True))
    documents = [
        record
        for path in files
        for record in read_file(path)
        if isinstance(record, Document) and record.key in scores
    ]
    return (
        [document.text for document in documents],
        np.asarray([scores[document.key] for document in documents], np.float32),
    )


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, metavar="GLOB", help="files to score")
    parser.add_argument("--rater", required=True, metavar="DIR", help="a rater checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the timing")
    parser.add_argument("--output", required=True, type=Path, help="folder for runs and results")
    args = parser.parse_args()
    limit_cpu_threads()

    # Score the corpus by the rater, and distil a student from half of its files.
    run, folder = args.output / "run", args.output / "student"
    flags = ["--input", args.corpus, "--rater", args.rater, "--output", str(run)]
    if cli.main(["score", *flags]):
        raise SystemExit("datarater score failed")
    files = [info.path for info in list_files([args.corpus])]
    distilled = ["--run", str(run), "--output", str(folder), "--input", ",".join(files[::2])]
    if cli.main(["distil", *distilled]):
        raise SystemExit("datarater distil failed")

    # The student scores the other half, which it has never seen.
    texts, scores_N = read_run(run, files[1::2])
    rater, checkpoint = load_rater(args.rater), load_rater(folder)
    held_out, student = HeldOut.of(checkpoint), NgramScorer(checkpoint)
    prices = measure_prices(rater, checkpoint, texts[:TIMED_DOCUMENTS], args.rounds)
    student_N = student.score(texts).scores_N
    count = len(texts)
    keys = RankKeys.of(
        student_N, np.arange(count, dtype=np.uint64), 0, 0, range(count), np.zeros(count)
    )
    histogram = Histogram.of(keys, 0)
    print(
        f"{count:,} documents; the rater takes {prices.rater[0]:,.0f} operations and "
        f"{prices.rater[1] * 1e9:,.0f} ns per byte, the student {prices.student[0]:,.0f} and "
        f"{prices.student[1] * 1e9:,.0f} ns ({1e-6 / prices.student[1]:,.0f} MB/s)"
    )

    # One row for the student alone, and one for each wished agreement.
    heads = "keep", "wished", "agreement", "in doubt", "FLOPs", "processor time"
    print(" ".join(f"{head:>14}" for head in heads))
    rows: list[dict[str, Any]] = []
    for keep in KEEPS:
        alone = agreement_of(kept(student_N, keep), scores_N, keep)
        flops, seconds = prices.shares(0)
        rows.append(
            {
                "keep": keep,
                "wished": "student alone",
                "agreement": alone,
                "in_doubt": 0.0,
                "flops": flops,
                "processor_time": seconds,
            }
        )
        rows += [
            row_of(texts, scores_N, student, histogram, held_out, keep, wished, prices)
            for wished in AGREEMENTS
        ]
    for row in rows:
        shares = (row[name] for name in ("agreement", "in_doubt", "flops", "processor_time"))
        cells = [f"{row['keep']:g}", str(row["wished"]), *(f"{share:.1%}" for share in shares)]
        print(" ".join(f"{cell:>14}" for cell in cells))

    result = {
        "machine": machine(),
        "options": vars(ScoringOptions()),
        "rater": rater.digest,
        "student": {"digest": checkpoint.digest, **checkpoint.provenance},
        "documents": count,
        "prices": vars(prices),
        "rows": rows,
    }
    (args.output / "cascade.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
