"""The corpus of the corruption experiment: equally long sequences of prose at known noise levels.

The text is the built-in corpus's intact prose (see `datarater.meta_training.demo.corpus`), cut into
sequences of 128 characters. A quarter of the modules and topics that the prose comes from is set
apart for evaluation; a clean target, from yet other ones, is the outer set. So no sequence that a
rater is evaluated on stands in its training, clean or damaged; up to one in a hundred shares 13
words in a row with it, since modules repeat each other's phrases.

    python -m datarater.meta_training.demo.corruption_corpus --output corruption_output

writes

    pool/        what a rater is trained on: each sequence dealt some of the kinds and noise levels
    target/      the outer set: clean sequences, which the pool does not hold
    evaluation/  sequences dealt to the kinds in turn, each at every noise level of its kind

as gzip JSONL with the fields `id`, `text`, `source` (the kind of damage) and `noise_level`; the
last two are for reading results and never given to training. The same Python installation and
options always give the same bytes.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from datarater.meta_training.demo.corpus import (
    DemoDocument,
    Kind,
    make_documents,
)
from datarater.meta_training.demo.corruption import (
    NOISE_LEVELS,
    CorruptedDocument,
    CorruptionKind,
    bytes_to_text,
    corrupt_documents,
    replace_from_unigram,
    shuffle_within,
    text_to_bytes,
    unigram_distribution,
)
from datarater.meta_training.demo.errors import TooLittleTextError

SEQUENCE_CHARACTERS = 128
EVALUATION_SHARE = 0.25
"""The share of the prose's modules and topics that is set apart for evaluation."""
EVALUATION_SEQUENCES = 600
"""Sequences set apart for each kind of damage, at most."""
POOL_COPIES = 3
"""Kinds and noise levels dealt to each sequence of the pool."""


def cut(texts: Iterable[str], length: int = SEQUENCE_CHARACTERS) -> list[str]:
    """Cuts texts into sequences of exactly `length` characters; what is left at a text's end is dropped.

    Args:
        texts: The texts.
        length: Characters of a sequence.

    Returns:
        The sequences, in the order of the texts.

    Example:
        >>> cut(["abcdefgh", "ijk"], length=3)
        ['abc', 'def', 'ijk']
    """
    return [
        text[start : start + length]
        for text in texts
        for start in range(0, len(text) - length + 1, length)
    ]


def split_documents(
    documents: Sequence[DemoDocument], rng: np.random.Generator, share: float = EVALUATION_SHARE
) -> tuple[list[DemoDocument], list[DemoDocument]]:
    """Splits documents by origin: no module or topic stands on both sides.

    Args:
        documents: Intact documents of the built-in corpus.
        rng: Where chance comes from.
        share: The share of the origins that goes to the second side.

    Returns:
        The documents to train on, and those to evaluate on.
    """
    origins = sorted({_origin(document) for document in documents})
    apart = {origins[i] for i in rng.permutation(len(origins))[: round(share * len(origins))]}
    training = [document for document in documents if _origin(document) not in apart]
    evaluation = [document for document in documents if _origin(document) in apart]
    return training, evaluation


def damage_at_every_level(
    sequences: Sequence[str], kinds: Sequence[CorruptionKind], rng: np.random.Generator
) -> list[CorruptedDocument]:
    """Deals sequences to the kinds of damage in turn and gives each at every noise level, 0 among them.

    Every level of every kind then has as many sequences, and no two kinds share a clean one.

    Args:
        sequences: Clean sequences in Latin-1.
        kinds: Kinds of damage.
        rng: Where chance comes from.

    Returns:
        len(sequences) x 5 sequences.
    """
    unigram_V = unigram_distribution(text_to_bytes(text) for text in sequences)
    documents = []
    for original, text in enumerate(sequences):
        bytes_L = text_to_bytes(text)
        kind = kinds[original % len(kinds)]
        for level in NOISE_LEVELS:
            if kind is CorruptionKind.REDRAWN:
                damaged_L = replace_from_unigram(bytes_L, level, unigram_V, rng)
            else:
                damaged_L = shuffle_within(bytes_L, level, rng)
            documents.append(
                CorruptedDocument(bytes_to_text(damaged_L.astype(np.uint8)), kind, level, original)
            )
    return documents


def write_corruption_corpus(
    output: Path,
    kinds: Sequence[CorruptionKind] = tuple(CorruptionKind),
    seed: int = 0,
) -> dict[str, int]:
    """Writes `pool/`, `target/` and `evaluation/`.

    Args:
        output: The folder to write to; files of the same names are replaced.
        kinds: Kinds of damage.
        seed: Of the damage and of the split between training and evaluation.

    Returns:
        How many sequences each of the three holds.

    Raises:
        TooLittleTextError: If the Python installation carries too little text.
        ValueError: If no kind is given.
        OSError: If the folder cannot be written.
    """
    rng = np.random.default_rng(seed)
    pool, held_out = make_documents()
    training, apart = split_documents([d for d in pool if d.kind is Kind.INTACT], rng)
    sequences = cut(document.text for document in apart)
    evaluation = [
        sequences[i] for i in rng.permutation(len(sequences))[: EVALUATION_SEQUENCES * len(kinds)]
    ]
    target = [
        CorruptedDocument(text, kinds[0], 0.0, i)
        for i, text in enumerate(cut(d.text for d in held_out))
    ]
    copies = min(POOL_COPIES, len(kinds) * len(NOISE_LEVELS))
    dealt = corrupt_documents(cut(d.text for d in training), rng, kinds=kinds, copies=copies)
    sets = {
        "pool": [dealt[i] for i in rng.permutation(len(dealt))],
        "target": target,
        "evaluation": damage_at_every_level(evaluation, kinds, rng),
    }
    for name, documents in sets.items():
        (output / name).mkdir(parents=True, exist_ok=True)
        path = output / name / f"{name}-00000-of-00001.jsonl.gz"
        # No time and no name in the header, so that the same text gives the same bytes.
        with (
            open(path, "wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream,
        ):
            for number, document in enumerate(documents):
                record = {
                    "id": f"{name}-{number}",
                    "text": document.text,
                    "source": "target" if name == "target" else document.kind.value,
                    "noise_level": document.noise_level,
                }
                stream.write(json.dumps(record).encode() + b"\n")
    return {name: len(documents) for name, documents in sets.items()}


def _origin(document: DemoDocument) -> str:
    return document.id.rpartition("#")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0 done, 1 failed, 2 wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m datarater.meta_training.demo.corruption_corpus",
        description="Write the corruption experiment's corpus: prose at known noise levels.",
        epilog="example: python -m datarater.meta_training.demo.corruption_corpus --output corruption_output",
    )
    parser.add_argument(
        "--output", default="corruption_output", type=Path, help="folder to write to"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(CorruptionKind),
        type=CorruptionKind,
        help=f"kinds of damage: {' '.join(CorruptionKind)} (default: all)",
    )
    parser.add_argument(
        "--seed", default=0, type=int, help="of the damage and the split (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    try:
        counts = write_corruption_corpus(options.output, options.kinds, options.seed)
    except (TooLittleTextError, OSError) as error:
        print(f"corruption_corpus: {error}", file=sys.stderr)
        return 1
    for name, count in counts.items():
        print(f"{name:10s} {count:7,d} sequences  {options.output / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
