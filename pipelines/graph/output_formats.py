"""All output formats: those of records as they came, and those that trainers read.

`datarater.pipelines.graph.record_writers` writes the first kind, one class in
`datarater.pipelines.graph.trainer_formats` each of the second. The steps that plan, write, join and
publish output files choose between them here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from datarater.pipelines.graph import record_writers
from datarater.pipelines.graph.record_writers import PieceJoiner, Writer
from datarater.pipelines.graph.trainer_formats.array_record import ArrayRecordFormat
from datarater.pipelines.graph.trainer_formats.hugging_face import HuggingFaceFormat
from datarater.pipelines.graph.trainer_formats.mds import MdsFormat
from datarater.pipelines.graph.trainer_formats.megatron import MegatronFormat
from datarater.pipelines.graph.trainer_formats.trainer_format import (
    DocumentJoiner,
    DocumentWriter,
    PieceWriter,
    TrainerFormat,
)

if TYPE_CHECKING:
    from datarater.pipelines.graph.requests import SelectionRequest

_TRAINER_FORMATS: dict[str, TrainerFormat] = {
    trainer_format.name: trainer_format
    for trainer_format in (
        ArrayRecordFormat(),
        HuggingFaceFormat(),
        MdsFormat(),
        MegatronFormat(),
    )
}


def trainer_format(request: SelectionRequest) -> TrainerFormat | None:
    """Returns the format for trainers that a selection asks for; None for any other format."""
    if request.output_format == MegatronFormat.name:
        return MegatronFormat(request.tokenizer_path, request.tokenizer)
    return _TRAINER_FORMATS.get(request.output_format)


def output_format(layout: str, requested: str) -> str:
    """Returns the format in which documents of one layout are written.

    Args:
        layout: Layout from a score file, such as `jsonl/gzip` or `parquet/SCHEMA-DIGEST`.
        requested: A value of `--output_format`.
    """
    if requested in _TRAINER_FORMATS:
        return requested
    return record_writers.output_format(layout, requested)


def file_class(layout: str, requested: str) -> str:
    """Returns the class of a split: splits of one class can share an output file."""
    if requested in _TRAINER_FORMATS:
        return requested
    return record_writers.file_class(layout, requested)


def file_name(written: str, index: int, count: int) -> str:
    """Returns the name of one of several output files.

    Args:
        written: Format from `output_format`.
        index: Number of the file, from 0.
        count: Number of files.
    """
    if written in _TRAINER_FORMATS:
        return _TRAINER_FORMATS[written].file_name(index, count)
    suffix = record_writers.SUFFIXES.get(written, written)
    return f"part-{index:05d}-of-{count:05d}.{suffix}"


def companions(written: str, name: str) -> list[str]:
    """Returns the names of the files that are written beside an output file.

    Args:
        written: Format from `output_format`.
        name: Name of the output file.
    """
    known = _TRAINER_FORMATS.get(written)
    return [] if known is None else known.companions(name)


def ending(written: str, name: str) -> str:
    """Returns what the manifest calls the format of a file.

    Args:
        written: Format of the output file that it is, or is written beside.
        name: Name of the file.
    """
    known = _TRAINER_FORMATS.get(written)
    if known is None:
        return written
    suffixes = (known.suffix, *known.companion_suffixes)
    return next((one for one in suffixes if name.endswith(f".{one}")), name.rpartition(".")[2])


def open_writer(
    files: Sequence[BinaryIO],
    written: str,
    name: str,
    trainer_format: TrainerFormat | None,
    documents: int,
) -> Writer:
    """Returns a writer of an output file and of what is written beside it.

    Args:
        files: Binary files to write to, empty; they stay open.
        written: Format from `output_format`.
        name: Name of the output file.
        trainer_format: The format for trainers, if it is one.
        documents: Number of documents of the file.
    """
    if trainer_format is not None:
        return DocumentWriter(files, trainer_format, documents)
    return record_writers.open_writer(files[0], written, name)


def open_piece(
    file: BinaryIO, written: str, name: str, trainer_format: TrainerFormat | None
) -> Writer:
    """Returns a writer of a piece of an output file; see `open_writer`."""
    if trainer_format is not None:
        return PieceWriter(file, trainer_format)
    return record_writers.open_writer(file, written, name)


def piece_joiner(
    files: Sequence[BinaryIO], written: str, trainer_format: TrainerFormat | None, documents: int
) -> PieceJoiner:
    """Returns what puts the pieces of an output file together; see `open_writer`."""
    if trainer_format is not None:
        return DocumentJoiner(files, trainer_format, documents)
    return record_writers.piece_joiner(files[0], written)
