"""The data of an evaluation: a tokenized pool, and a target split in two.

    OUTPUT/data/DIGEST/
      documents.parquet   key, source, label, hash and sizes of each document of the pool
      texts.bin           their UTF-8 texts, one after the other
      tokens.bin          their token ids, uint8 for bytes and uint16 or uint32 for BPE
      tokenizer.json
      data.json           counts, digests and how the target was split
    OUTPUT/target/
      learning.jsonl.gz   the part of the target that raters and rivals may learn from
      validation.jsonl.gz the part that only the evaluation uses

The folder of the data is named by the input files' fingerprints and the options, so that a second
run reads nothing again. Documents of the pool that are in the target are left out of the pool.

N counts documents, T tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.meta_training.evaluate.errors import EmptyDataError
from datarater.meta_training.evaluate.keeping import text_hash
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions
from datarater.rater_model.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

DATA_VERSION = 1
"""Raised whenever the same files and options would give other data."""
_BPE_DOCUMENTS = 20_000


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Every option that changes the data.

    Attributes:
        pool: Paths or globs of the pool.
        target: Paths or globs of the target.
        validation: Paths or globs that only the evaluation uses; empty to split the target.
        validation_share: Share of the target's documents that only the evaluation uses.
        split_seed: Seed of the target's split.
        text_field: Field of the text.
        id_field: Field of the id.
        source_field: Field of the source.
        label_field: Field of a quality label of the pool's documents; empty for none.
        tokenizer: "byte", or "bpe", trained on the pool.
        vocabulary_size: Ids of the BPE.
    """

    pool: tuple[str, ...]
    target: tuple[str, ...]
    validation: tuple[str, ...] = ()
    validation_share: float = 0.5
    split_seed: int = 0
    text_field: str = "text"
    id_field: str = "id"
    source_field: str = "source"
    label_field: str = ""
    tokenizer: str = "byte"
    vocabulary_size: int = 8192

    @property
    def read_options(self) -> ReadOptions:
        """Options for reading documents with their sources."""
        return ReadOptions(self.text_field, self.id_field, self.source_field)


@dataclasses.dataclass(frozen=True)
class TargetDocument:
    """A document of the target."""

    text: str
    source: str


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of an evaluation.

    Attributes:
        folder: Folder of the data; the tokens and texts in it are memory-mapped.
        digest: Digest of the pool's texts and the tokenizer, and so of what can be trained on.
        validation_digest: Digest of the validation documents.
        hashes_N: `text_hash` of each document of the pool, uint64.
        bytes_N: UTF-8 bytes of each document, int64.
        token_ends_N: Index of the token after each document's last, int64.
        tokens_T: Token ids of the whole pool.
        tokenizer: The tokenizer.
        learning: Documents of the target that raters and rivals may learn from.
        validation: Documents that only the evaluation uses.
        counts: Numbers of documents read, left out and rejected.
    """

    folder: Path
    digest: str
    validation_digest: str
    hashes_N: NDArray[np.uint64]
    bytes_N: NDArray[np.int64]
    token_ends_N: NDArray[np.int64]
    tokens_T: NDArray[np.generic]
    tokenizer: Tokenizer
    learning: tuple[TargetDocument, ...]
    validation: tuple[TargetDocument, ...]
    counts: dict[str, Any]

    @property
    def tokens_N(self) -> NDArray[np.int64]:  # noqa: N802 - the name carries the shape
        """Tokens of each document."""
        return np.diff(self.token_ends_N, prepend=0)

    def column(self, name: str) -> list[str]:
        """Returns a column of the pool's documents: `key`, `source` or `label`."""
        return cast(
            list[str],
            pq.read_table(self.folder / "documents.parquet", columns=[name])[name].to_pylist(),
        )

    def texts(self, first: int = 0, last: int | None = None) -> Iterator[str]:
        """Yields the texts of the pool's documents from `first` to before `last`."""
        ends_N = np.cumsum(self.bytes_N)
        last = len(ends_N) if last is None else last
        with (self.folder / "texts.bin").open("rb") as file:
            file.seek(int(ends_N[first] - self.bytes_N[first]) if first < last else 0)
            for index in range(first, last):
                yield file.read(int(self.bytes_N[index])).decode("utf-8")


def prepare_data(options: DataOptions, output: Path) -> Data:
    """Reads, splits and tokenizes the data, or opens what an earlier run prepared.

    Args:
        options: Files and options.
        output: Output folder of the evaluation.

    Raises:
        NoInputError: If a pattern matches no file.
        EmptyDataError: If the pool, the target or the validation set has no document.
        OSError: If a file cannot be read or written.
    """
    folder = output / "data" / _inputs_digest(options)
    if not (folder / "data.json").is_file():
        temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        temporary.mkdir(parents=True)
        try:
            _write_data(options, temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    data = open_data(str(folder))
    for name, documents in (("learning", data.learning), ("validation", data.validation)):
        _write_target(output / "target" / f"{name}.jsonl.gz", documents)
    return data


@functools.lru_cache(maxsize=1)
def open_data(folder: str) -> Data:
    """Opens a folder of data; a process opens the same folder once."""
    root = Path(folder)
    values = json.loads((root / "data.json").read_text(encoding="utf-8"))
    table = pq.read_table(root / "documents.parquet", columns=["hash", "bytes", "tokens"])
    return Data(
        folder=root,
        digest=values["digest"],
        validation_digest=values["validation_digest"],
        hashes_N=table["hash"].to_numpy(),
        bytes_N=table["bytes"].to_numpy(),
        token_ends_N=np.cumsum(table["tokens"].to_numpy()),
        tokens_T=np.memmap(root / "tokens.bin", dtype=values["dtype"], mode="r"),
        tokenizer=load_tokenizer(values["tokenizer"], (root / "tokenizer.json").read_bytes()),
        learning=tuple(TargetDocument(**each) for each in values["learning"]),
        validation=tuple(TargetDocument(**each) for each in values["validation"]),
        counts=values["counts"],
    )


def _inputs_digest(options: DataOptions) -> str:
    files = {
        name: [dataclasses.asdict(info) for info in list_files(patterns)] if patterns else []
        for name, patterns in (
            ("pool", options.pool),
            ("target", options.target),
            ("validation", options.validation),
        )
    }
    values = {"version": DATA_VERSION, "options": dataclasses.asdict(options), "files": files}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _write_data(options: DataOptions, folder: Path) -> None:
    counts: dict[str, Any] = {}
    learning, validation = _read_target(options, counts)
    in_target = {text_hash(document.text) for document in (*learning, *validation)}

    # The texts first: a BPE is trained on them before they can be encoded.
    columns: dict[str, list[Any]] = {"key": [], "source": [], "hash": [], "bytes": []}
    digest = hashlib.sha256()
    left_out: list[int] = []
    with (folder / "texts.bin").open("wb") as file:
        for index, document in enumerate(_documents(options.pool, options.read_options, counts)):
            hashed = text_hash(document.text)
            if hashed in in_target:
                left_out.append(index)
                continue
            text = document.text.encode("utf-8")
            file.write(text)
            digest.update(hashlib.blake2b(text, digest_size=16).digest())
            for name, value in (
                ("key", document.key),
                ("source", document.source),
                ("hash", hashed),
                ("bytes", len(text)),
            ):
                columns[name].append(value)
    counts["pool_documents_in_target"] = len(left_out)
    counts["pool_documents"] = len(columns["key"])
    counts["pool_bytes"] = sum(columns["bytes"])
    if not columns["key"]:
        raise EmptyDataError(
            "--pool has no document that is not in the target: "
            f"{len(left_out)} of its documents are in --target or --validation"
        )
    columns["label"] = (
        _labels(options, set(left_out)) if options.label_field else [""] * len(columns["key"])
    )

    tokenizer = _make_tokenizer(options, folder, columns["bytes"])
    (folder / "tokenizer.json").write_bytes(tokenizer.serialise())
    digest.update(tokenizer.serialise())
    dtype, columns["tokens"] = _write_tokens(tokenizer, folder, columns["bytes"])
    counts["pool_tokens"] = sum(columns["tokens"])

    table = {**columns, "hash": pa.array(columns["hash"], pa.uint64())}
    pq.write_table(pa.table(table), folder / "documents.parquet")
    values = {
        "digest": digest.hexdigest(),
        "validation_digest": _digest_of(document.text for document in validation),
        "tokenizer": tokenizer.kind,
        "dtype": dtype,
        "counts": counts,
        "learning": [dataclasses.asdict(document) for document in learning],
        "validation": [dataclasses.asdict(document) for document in validation],
    }
    (folder / "data.json").write_text(json.dumps(values), encoding="utf-8")


def _documents(
    patterns: Sequence[str], options: ReadOptions, counts: dict[str, Any] | None = None
) -> Iterator[Document]:
    """Yields the documents of files, and adds the records that cannot be read to the counts."""
    rejected: Counter[str] = Counter()
    for info in list_files(patterns):
        for record in read_file(info.path, options):
            if isinstance(record, BadRecord):
                rejected[str(record.reason)] += 1
            else:
                yield record
    if counts is not None:
        counts.setdefault("rejected", {})
        counts["rejected"] = dict(Counter(counts["rejected"]) + rejected)


def _read_target(
    options: DataOptions, counts: dict[str, Any]
) -> tuple[list[TargetDocument], list[TargetDocument]]:
    """Returns the learning and the validation part of the target, without a text in common."""

    def read(patterns: Sequence[str]) -> dict[int, TargetDocument]:
        return {
            text_hash(document.text): TargetDocument(document.text, document.source)
            for document in _documents(patterns, options.read_options, counts)
        }

    target = read(options.target)
    if options.validation:
        validation = read(options.validation)
        shared = target.keys() & validation.keys()
    else:
        limit = options.validation_share * 2.0**64
        mixed = {hashed: _mix(hashed, options.split_seed) for hashed in target}
        validation = {hashed: target[hashed] for hashed in target if mixed[hashed] < limit}
        shared = set()
    learning = {hashed: document for hashed, document in target.items() if hashed not in validation}
    counts["target_documents_in_validation"] = len(shared)
    counts["learning_documents"], counts["validation_documents"] = len(learning), len(validation)
    for part, flag in ((learning, "--target"), (validation, "--validation or --target")):
        if not part:
            raise EmptyDataError(
                f"{flag} leaves no document for {'learning' if part is learning else 'validation'}"
                "; give more documents, or another --validation_share"
            )
    return list(learning.values()), list(validation.values())


def _mix(hashed: int, seed: int) -> int:
    digest = hashlib.blake2b(f"{hashed} {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _labels(options: DataOptions, left_out: set[int]) -> list[str]:
    """Returns the label of each document that stays, read as a source to suit every format."""
    as_source = dataclasses.replace(options.read_options, source_field=options.label_field)
    return [
        document.source
        for index, document in enumerate(_documents(options.pool, as_source))
        if index not in left_out
    ]


def _make_tokenizer(options: DataOptions, folder: Path, sizes: Sequence[int]) -> Tokenizer:
    if options.tokenizer == ByteTokenizer.kind:
        return ByteTokenizer()
    return train_bpe(_stored_texts(folder, sizes[:_BPE_DOCUMENTS]), options.vocabulary_size)


def _stored_texts(folder: Path, sizes: Sequence[int]) -> Iterator[str]:
    with (folder / "texts.bin").open("rb") as file:
        for size in sizes:
            yield file.read(size).decode("utf-8")


def _write_tokens(
    tokenizer: Tokenizer, folder: Path, sizes: Sequence[int]
) -> tuple[str, list[int]]:
    """Writes the token ids; returns their data type and the number of each document."""
    if not isinstance(tokenizer, BpeTokenizer):
        # A text's bytes are its tokens.
        os.link(folder / "texts.bin", folder / "tokens.bin")
        return "uint8", list(sizes)
    dtype = "uint16" if tokenizer.vocabulary_size <= 2**16 else "uint32"
    counts = []
    with (folder / "tokens.bin").open("wb") as file:
        for text in _stored_texts(folder, sizes):
            ids = tokenizer.encode(text).astype(dtype)
            file.write(ids.tobytes())
            counts.append(len(ids))
    return dtype, counts


def _digest_of(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest())
    return digest.hexdigest()


def _write_target(path: Path, documents: Sequence[TargetDocument]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(
        json.dumps(dataclasses.asdict(document), ensure_ascii=False) + "\n"
        for document in documents
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))
    os.replace(temporary, path)
