"""The corpus of the corruption experiment: sequences of prose at known noise levels.

    python -m datarater.meta_training.demo.corruption_corpus --output=corruption_output

The text is the intact prose of the built-in corpus (`datarater.meta_training.demo.corpus`), cut
into sequences of 128 characters. A quarter of the modules and topics that the prose comes from is
set aside for evaluation; the outer set is clean text from other modules and topics. So no sequence
that a rater is evaluated on occurs in its training, clean or damaged. Up to one in a hundred shares
13 words in a row with it, since modules repeat each other's phrases.

The command writes

    pool/        what a rater is trained on: each sequence at some of the kinds and noise levels
    target/      the outer set: clean sequences that are not in the pool
    evaluation/  sequences dealt to the kinds in turn, each at every noise level of its kind

as gzip JSONL with the fields `id`, `text`, `source` (the kind of damage) and `noise_level`. The
last two are for reading results; training never sees them. The same Python installation and options
always produce the same bytes.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from datarater.meta_training.demo.corpus import (
    DemoDocument,
    Installation,
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
from datarater.meta_training.demo.errors import DemoError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser

SEQUENCE_CHARACTERS = 128
EVALUATION_SHARE = 0.25
"""Share of the prose's modules and topics that is set aside for evaluation."""
EVALUATION_SEQUENCES = 600
"""Maximum number of sequences set aside for each kind of damage."""
POOL_COPIES = 3
"""Combinations of kind and noise level dealt to each sequence of the pool."""


def cut(texts: Iterable[str], length: int = SEQUENCE_CHARACTERS) -> list[str]:
    """Cuts texts into sequences of exactly `length` characters, and drops what is left of each.

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
    """Splits documents by origin, with no module or topic on both sides.

    Args:
        documents: Intact documents of the built-in corpus.
        rng: Random generator.
        share: Share of the origins set aside for evaluation.

    Returns:
        The documents for training and those for evaluation.
    """
    origins = sorted({_origin(document) for document in documents})
    set_aside = {origins[i] for i in rng.permutation(len(origins))[: round(share * len(origins))]}
    training = [document for document in documents if _origin(document) not in set_aside]
    evaluation = [document for document in documents if _origin(document) in set_aside]
    return training, evaluation


def damage_at_every_level(
    sequences: Sequence[str], kinds: Sequence[CorruptionKind], rng: np.random.Generator
) -> list[CorruptedDocument]:
    """Deals sequences to the kinds of damage in turn, and returns each at every noise level.

    Every level of a kind, 0 included, then has equally many sequences, and no two kinds share a
    clean one.

    Args:
        sequences: Clean sequences in Latin-1.
        kinds: Kinds of damage.
        rng: Random generator.

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
        output: Folder to write to; files of the same names are replaced.
        kinds: Kinds of damage.
        seed: Seed for the damage and for the split between training and evaluation.

    Returns:
        The number of sequences in each of the three.

    Raises:
        TooLittleTextError: If the Python installation contains too little text.
        ValueError: If no kind is given.
        OSError: If the folder cannot be written.
    """
    rng = np.random.default_rng(seed)
    pool, held_out = make_documents(Installation.running())
    training, set_aside = split_documents([d for d in pool if d.kind is Kind.INTACT], rng)

    sequences = cut(document.text for document in set_aside)
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
        # No time and no name in the header, so that the same text always gives the same bytes.
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
    """Writes the corpus from the command line; returns the exit code."""
    parser = CommandParser(
        "python -m datarater.meta_training.demo.corruption_corpus",
        "Writes the corpus of the corruption experiment: prose at known noise levels.",
        "python -m datarater.meta_training.demo.corruption_corpus --output=corruption_output",
        takes_beam_flags=False,
    )
    parser.add_argument(
        "--output",
        default="corruption_output",
        type=Path,
        metavar="DIR",
        help="Folder to write to. Default: %(default)s.",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(CorruptionKind),
        type=CorruptionKind,
        metavar="KIND",
        help=f"Kinds of damage: {' '.join(CorruptionKind)}. Default: all.",
    )
    parser.add_argument(
        "--seed", default=0, type=int, help="Seed for the damage and the split. Default: 0."
    )
    options = parser.parse_args(argv)

    try:
        counts = write_corruption_corpus(options.output.expanduser(), options.kinds, options.seed)
    except (DemoError, OSError) as error:
        print(f"corruption corpus: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, DemoError) else exit_codes.FAILED

    for name, count in counts.items():
        print(f"{name:10s} {count:7,d} sequences  {options.output / name}")
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main())
