"""The data of an evaluation: a tokenized pool, and a target in three folds.

    OUTPUT/data/DIGEST/
      documents.parquet   key, source, label, hash and sizes of each document of the pool
      texts.bin           their UTF-8 texts, one after the other
      tokens.bin          their token ids, uint8 for bytes and uint16 or uint32 for BPE
      tokenizer.json
      data.json           counts, digests and the folds of the target
      pool.jsonl.gz       the pool as a rater reads it, where the command trains raters
    OUTPUT/target/ROTATION/
      learning.jsonl.gz   what raters and rivals may learn from
      choice.jsonl.gz     what fractions are chosen on
      test.jsonl.gz       what the reported losses are measured on

The folder of the data is named by the input files' fingerprints and the options, so that a second
run reads nothing again. Documents of the pool that are in the target, or nearly, are left out of
the pool. Without a target, a share of the pool is held out as one (the paper's own setting).

N counts documents, T tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.meta_training.evaluate.clusters import (
    near_duplicate_clusters,
    near_duplicates_of,
)
from datarater.meta_training.evaluate.errors import EmptyDataError, FlagError
from datarater.meta_training.evaluate.keeping import seeded_hash, text_hash
from datarater.meta_training.evaluate.target import (
    ROLES,
    Roles,
    Target,
    TargetDocument,
    assign_folds,
    target_digest,
)
from datarater.rater_model.atomic_files import replacing, replacing_folder
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    BadRecord,
    Document,
    ReadOptions,
)
from datarater.rater_model.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

DATA_VERSION = 2
"""Raised whenever the same files and options would give other data."""
_BPE_DOCUMENTS = 20_000
_FOLDS = len(ROLES)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Every option that changes the data.

    Attributes:
        pool: Paths or globs of the pool.
        target: Paths or globs of the target; empty to hold out a share of the pool.
        validation: Paths or globs that choices and the test use; empty to take folds of the target.
        target_share: Share of the pool's clusters that is held out, where there is no `target`.
        split_seed: Seed of the held-out share.
        text_field: Field of the text.
        id_field: Field of the id.
        source_field: Field of the source.
        work_field: Field of the work (the book, the site) that a document of the target belongs to;
            empty for none.
        label_field: Field of a quality label of the pool's documents; empty for none.
        tokenizer: "byte", or "bpe", trained on the pool.
        vocabulary_size: Ids of the BPE.
    """

    pool: tuple[str, ...]
    target: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    target_share: float = 0.1
    split_seed: int = 0
    text_field: str = "text"
    id_field: str = "id"
    source_field: str = "source"
    work_field: str = ""
    label_field: str = ""
    tokenizer: str = "byte"
    vocabulary_size: int = 8192

    @property
    def read_options(self) -> ReadOptions:
        """Options for reading documents with their sources."""
        return ReadOptions(
            self.text_field,
            self.id_field,
            self.source_field,
            max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES,
        )

    def reading(self, field: str) -> ReadOptions:
        """Options for reading a field in place of the source, which suits every format."""
        return dataclasses.replace(self.read_options, source_field=field)


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of an evaluation.

    Attributes:
        folder: Folder of the data; the tokens and texts in it are memory-mapped.
        digest: Digest of the pool's texts and the tokenizer, and so of what can be trained on.
        hashes_N: `text_hash` of each document of the pool, uint64.
        bytes_N: UTF-8 bytes of each document, int64.
        token_ends_N: Index of the token after each document's last, int64.
        tokens_T: Token ids of the whole pool.
        tokenizer: The tokenizer.
        target: The folds of the target.
        counts: Numbers of documents read, left out and rejected.
        rotation: Which folds of the target have which role.
    """

    folder: Path
    digest: str
    hashes_N: NDArray[np.uint64]
    bytes_N: NDArray[np.int64]
    token_ends_N: NDArray[np.int64]
    tokens_T: NDArray[np.generic]
    tokenizer: Tokenizer
    target: Target
    counts: dict[str, Any]
    rotation: int = 0

    def at(self, rotation: int) -> Data:
        """Returns the data with the folds of the target in other roles."""
        return dataclasses.replace(self, rotation=rotation % self.target.rotations)

    @property
    def roles(self) -> Roles:
        """The documents of the target by role."""
        return self.target.roles(self.rotation)

    @property
    def learning(self) -> tuple[TargetDocument, ...]:
        """Documents of the target that raters and rivals may learn from."""
        return self.roles.learning

    @functools.cached_property
    def validation_digest(self) -> str:
        """Digest of the documents that losses are measured on."""
        return target_digest(self.roles.choice) + target_digest(self.roles.test)

    @functools.cached_property
    def learning_digest(self) -> str:
        """Digest of the documents to learn from."""
        return target_digest(self.learning)

    @property
    def learning_file(self) -> Path:
        """File of the documents to learn from, for training a rater."""
        return self.folder.parents[1] / "target" / str(self.rotation) / "learning.jsonl.gz"

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

    def pool_file(self) -> Path:
        """Returns a file of the pool for training a rater, written on first use."""
        path = self.folder / "pool.jsonl.gz"
        if not path.is_file():
            _write_documents(path, zip(self.texts(), self.column("source"), strict=True))
        return path


def prepare_data(options: DataOptions, output: Path) -> Data:
    """Reads, splits and tokenizes the data, or opens what an earlier run prepared.

    Args:
        options: Files and options.
        output: Output folder of the evaluation.

    Raises:
        NoInputError: If a pattern matches no file.
        EmptyDataError: If the pool or a fold of the target has no document.
        OSError: If a file cannot be read or written.
    """
    folder = output / "data" / _inputs_digest(options)
    if not (folder / "data.json").is_file():
        with replacing_folder(folder) as new:
            _write_data(options, new)
    return write_target(open_data(str(folder)), output)


def take_data(prepared: Path, output: Path) -> Data:
    """Copies data that an earlier evaluation prepared, perhaps on another machine, and opens it.

    Args:
        prepared: A folder `OUTPUT/data/DIGEST` of that evaluation.
        output: Output folder of this evaluation.

    Raises:
        FlagError: If the folder is not one of prepared data.
        OSError: If a file cannot be read or written.
    """
    if not (prepared / "data.json").is_file():
        raise FlagError(
            f"--prepared: {prepared} has no data.json; give a folder OUTPUT/data/... that an "
            "evaluation made"
        )
    folder = output / "data" / prepared.resolve().name
    if not folder.exists():
        with replacing_folder(folder) as new:
            shutil.copytree(prepared, new, dirs_exist_ok=True)
    return write_target(open_data(str(folder)), output)


def write_target(data: Data, output: Path) -> Data:
    """Writes the documents of the target by role, in each rotation, and returns the data."""
    for rotation in range(data.target.rotations):
        for role, documents in zip(ROLES, data.target.roles(rotation), strict=True):
            _write_documents(
                output / "target" / str(rotation) / f"{role}.jsonl.gz",
                ((document.text, document.source) for document in documents),
            )
    return data


@functools.lru_cache(maxsize=1)
def open_data(folder: str) -> Data:
    """Opens a folder of data; a process opens the same folder once."""
    root = Path(folder)
    values = json.loads((root / "data.json").read_text(encoding="utf-8"))
    table = pq.read_table(root / "documents.parquet", columns=["hash", "bytes", "tokens"])

    def documents(stored: list[dict[str, str]]) -> tuple[TargetDocument, ...]:
        return tuple(TargetDocument(**each) for each in stored)

    return Data(
        folder=root,
        digest=values["digest"],
        hashes_N=table["hash"].to_numpy(),
        bytes_N=table["bytes"].to_numpy(),
        token_ends_N=np.cumsum(table["tokens"].to_numpy()),
        tokens_T=np.memmap(root / "tokens.bin", dtype=values["dtype"], mode="r"),
        tokenizer=load_tokenizer(values["tokenizer"], (root / "tokenizer.json").read_bytes()),
        target=Target(
            tuple(documents(fold) for fold in values["folds"]), documents(values["learning"])
        ),
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


@dataclasses.dataclass
class _Read:
    """Documents of one set as they were read; the texts of the pool are in a file."""

    texts: Iterable[str]
    sources: list[str]
    hashes: list[int]
    bytes: list[int]
    works: list[str]

    def documents(self, chosen: Iterable[int]) -> list[TargetDocument]:
        """Returns the documents at some indices."""
        wanted = set(chosen)
        return [
            TargetDocument(text, self.sources[index])
            for index, text in enumerate(self.texts)
            if index in wanted
        ]


def _write_data(options: DataOptions, folder: Path) -> None:
    counts: dict[str, Any] = {}
    target = _read_target(options, options.target, counts)
    validation = _read_target(options, options.validation, counts)
    pool, keys = _read_pool(options, folder / "all.bin", counts)

    held_out_N = near_N = copies_N = np.zeros(len(keys), bool)
    if options.target:
        folds, learning = _folds_of_files(target, validation, counts)
        # Exact copies are counted apart from texts that are nearly the same.
        copies_N = np.isin(pool.hashes, [*target.hashes, *validation.hashes])
        texts_of_target = itertools.chain(target.texts, validation.texts)
        near_N = near_duplicates_of(pool.texts, texts_of_target) & ~copies_N
    else:
        clusters_N = near_duplicate_clusters(pool.texts, pool.works)
        held_out_N = _held_out(clusters_N, pool.hashes, options)
        folds, learning = _folds(pool, clusters_N, np.flatnonzero(held_out_N)), []
    counts["learning_documents"] = len(learning or folds[0])
    counts["validation_documents"] = sum(map(len, folds)) - (0 if learning else len(folds[0]))
    counts["pool_documents_in_target"] = int(copies_N.sum())
    counts["pool_documents_near_target"] = int(near_N.sum())
    counts["pool_documents_held_out"] = int(held_out_N.sum())
    stays_N = ~(copies_N | near_N | held_out_N)
    if not stays_N.any():
        raise EmptyDataError(
            f"--pool has no document that is not in the target: of its {len(stays_N)} documents, "
            f"{counts['pool_documents_in_target']} are in --target or --validation and "
            f"{counts['pool_documents_near_target']} nearly"
        )

    _write_pool(options, folder, pool, keys, stays_N, counts)
    values = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    values |= {
        "counts": counts,
        "learning": [dataclasses.asdict(document) for document in learning],
        "folds": [[dataclasses.asdict(document) for document in fold] for fold in folds],
    }
    (folder / "data.json").write_text(json.dumps(values), encoding="utf-8")


def _folds_of_files(
    target: _Read, validation: _Read, counts: dict[str, Any]
) -> tuple[list[list[TargetDocument]], list[TargetDocument]]:
    """Returns the folds, and the documents to learn from where validation files were given."""
    clusters_N = near_duplicate_clusters(
        itertools.chain(target.texts, validation.texts), [*target.works, *validation.works]
    )
    of_target, of_validation = np.split(clusters_N, [len(target.hashes)])
    if not validation.hashes:
        return _folds(target, of_target, np.arange(len(of_target))), []

    shared_N = np.isin(of_target, of_validation)
    counts["target_documents_in_validation"] = int(shared_N.sum())
    learning = target.documents(np.flatnonzero(~shared_N).tolist())
    if not learning:
        raise EmptyDataError(
            "every document of --target is in --validation, or nearly; give other documents"
        )
    everything = np.arange(len(of_validation))
    return _folds(validation, of_validation, everything, _FOLDS - 1), learning


def _held_out(
    clusters_N: NDArray[np.int64], hashes: Sequence[int], options: DataOptions
) -> NDArray[np.bool_]:
    """Returns which documents of the pool are held out, whole clusters by a seeded hash."""
    _, first_N, inverse_N = np.unique(clusters_N, return_index=True, return_inverse=True)
    mixed = seeded_hash(np.array(hashes, np.uint64)[first_N], options.split_seed, draw=3)
    return (mixed < np.uint64(options.target_share * 2.0**64))[inverse_N]


def _folds(
    documents: _Read,
    clusters_N: NDArray[np.int64],
    chosen_M: NDArray[np.int64],
    folds: int = _FOLDS,
) -> list[list[TargetDocument]]:
    fold_M = assign_folds(
        clusters_N[chosen_M],
        np.array(documents.bytes, np.int64)[chosen_M],
        [documents.sources[index] for index in chosen_M],
        [documents.hashes[index] for index in chosen_M],
        folds,
    )
    found = [documents.documents(chosen_M[fold_M == fold].tolist()) for fold in range(folds)]
    if not all(found):
        raise EmptyDataError(
            f"{len(chosen_M)} documents of the target in {len(set(clusters_N[chosen_M]))} clusters "
            f"of near-duplicates and works do not fill {folds} folds (learning, choice, test); "
            "give more documents to --target, or a larger --target_share"
        )
    return found


def _documents(
    patterns: Sequence[str], options: ReadOptions, counts: dict[str, Any] | None = None
) -> Iterator[Document]:
    """Yields the documents of files, and adds the records that cannot be read to the counts."""
    rejected: Counter[str] = Counter()
    for info in list_files(patterns):
        for record in read_file(info.path, options):
            if isinstance(record, BadRecord):
                rejected[str(record.reason)] += record.records
            else:
                yield record
    if counts is not None:
        counts.setdefault("rejected", {})
        counts["rejected"] = dict(Counter(counts["rejected"]) + rejected)


def _field(options: DataOptions, patterns: Sequence[str], field: str, count: int) -> list[str]:
    """Returns a field of every document; "" without a name of a field."""
    if not field or not patterns:
        return [""] * count
    return [document.source for document in _documents(patterns, options.reading(field))]


def _read_target(options: DataOptions, patterns: Sequence[str], counts: dict[str, Any]) -> _Read:
    """Returns the documents of the target; of equal texts, the first."""
    read = list(_documents(patterns, options.read_options, counts)) if patterns else []
    works = _field(options, patterns, options.work_field, len(read))
    first = {text_hash(document.text): index for index, document in reversed([*enumerate(read)])}
    kept = sorted(first.values())
    return _Read(
        [read[index].text for index in kept],
        [read[index].source for index in kept],
        [text_hash(read[index].text) for index in kept],
        [len(read[index].text.encode("utf-8")) for index in kept],
        [works[index] for index in kept],
    )


class _StoredTexts:
    """Texts in a file, one after the other, that can be read again and again."""

    def __init__(self, path: Path, sizes: Sequence[int]) -> None:
        self._path, self._sizes = path, sizes

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for size in self._sizes:
                yield file.read(size).decode("utf-8")


def _read_pool(options: DataOptions, path: Path, counts: dict[str, Any]) -> tuple[_Read, list[str]]:
    """Writes the texts of the pool to a file; returns its documents and their keys."""
    sizes: list[int] = []
    read = _Read(_StoredTexts(path, sizes), [], [], sizes, [])
    keys = []
    with path.open("wb") as file:
        for document in _documents(options.pool, options.read_options, counts):
            text = document.text.encode("utf-8")
            file.write(text)
            sizes.append(len(text))
            keys.append(document.key)
            read.sources.append(document.source)
            read.hashes.append(text_hash(document.text))
    # A work keeps documents of the pool together where they may become the target.
    work_field = "" if options.target else options.work_field
    read.works.extend(_field(options, options.pool, work_field, len(keys)))
    return read, keys


def _write_pool(
    options: DataOptions,
    folder: Path,
    pool: _Read,
    keys: Sequence[str],
    stays_N: NDArray[np.bool_],
    counts: dict[str, Any],
) -> None:
    """Writes the texts, tokens and columns of the documents that stay."""
    digest = hashlib.sha256()
    with (folder / "texts.bin").open("wb") as file:
        for text in itertools.compress(pool.texts, stays_N):
            encoded = text.encode("utf-8")
            file.write(encoded)
            digest.update(hashlib.blake2b(encoded, digest_size=16).digest())
    (folder / "all.bin").unlink()

    sizes = list(itertools.compress(pool.bytes, stays_N))
    texts = _StoredTexts(folder / "texts.bin", sizes)
    tokenizer = _make_tokenizer(options, texts)
    (folder / "tokenizer.json").write_bytes(tokenizer.serialise())
    digest.update(tokenizer.serialise())
    dtype, tokens = _write_tokens(tokenizer, folder, texts, sizes)
    labels = _field(options, options.pool, options.label_field, len(keys))

    columns = {
        "key": list(itertools.compress(keys, stays_N)),
        "source": list(itertools.compress(pool.sources, stays_N)),
        "hash": pa.array(itertools.compress(pool.hashes, stays_N), pa.uint64()),
        "bytes": sizes,
        "label": list(itertools.compress(labels, stays_N)),
        "tokens": tokens,
    }
    pq.write_table(pa.table(columns), folder / "documents.parquet")
    counts["pool_documents"] = len(sizes)
    counts["pool_bytes"], counts["pool_tokens"] = sum(sizes), sum(tokens)
    values = {"digest": digest.hexdigest(), "tokenizer": tokenizer.kind, "dtype": dtype}
    (folder / "data.json").write_text(json.dumps(values), encoding="utf-8")


def _make_tokenizer(options: DataOptions, texts: Iterable[str]) -> Tokenizer:
    if options.tokenizer == ByteTokenizer.kind:
        return ByteTokenizer()
    return train_bpe(itertools.islice(texts, _BPE_DOCUMENTS), options.vocabulary_size)


def _write_tokens(
    tokenizer: Tokenizer, folder: Path, texts: Iterable[str], sizes: Sequence[int]
) -> tuple[str, list[int]]:
    """Writes the token ids; returns their data type and the number of each document."""
    if not isinstance(tokenizer, BpeTokenizer):
        # A text's bytes are its tokens.
        os.link(folder / "texts.bin", folder / "tokens.bin")
        return "uint8", list(sizes)
    dtype = "uint16" if tokenizer.vocabulary_size <= 2**16 else "uint32"
    counts = []
    with (folder / "tokens.bin").open("wb") as file:
        for text in texts:
            ids = tokenizer.encode(text).astype(dtype)
            file.write(ids.tobytes())
            counts.append(len(ids))
    return dtype, counts


def _write_documents(path: Path, documents: Iterable[tuple[str, str]]) -> None:
    """Writes texts and sources as gzip JSONL, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a name and a time in its header, equal documents are equal bytes.
    with (
        replacing(path) as new,
        new.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file,
    ):
        for text, source in documents:
            line = json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n"
            file.write(line.encode("utf-8"))
