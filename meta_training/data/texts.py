"""Sources of training texts: files matched by globs, or a prepared TensorFlow dataset.

A source returns texts by index, so that its users can share the work without keeping them in
memory. TensorFlow datasets are read in place (array_record, without TensorFlow). Files cannot be,
since a gzip stream has no random access: their texts are copied once into a folder, from which the
operating system pages them in as needed.
"""

from __future__ import annotations

import array
import collections
import functools
import hashlib
import itertools
import logging
import mmap
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from datarater.rater_model.documents.array_record import is_file_system_failure
from datarater.rater_model.documents.files import file_info, list_files, split_on_commas
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    BadRecord,
    FileInfo,
    ReadOptions,
)
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.documents.tfds import (
    TFDS_PREFIX,
    DatasetError,
    DatasetName,
    describe_prepared,
)

_LOG = logging.getLogger("datarater")
_IDENTITY_SAMPLE = 1000  # minimum number of a dataset's texts that go into its identity
_UNIT_TEXTS = 4096  # of a dataset, whose texts have sizes that are known only once they are read


class DataError(ValueError):
    """The data cannot be used for training; the message says what to do."""


class EmptySetError(DataError):
    """The inner or the outer set has no document."""


class TextSource(Protocol):
    """Texts by index.

    Attributes:
        name: Name of the source as the config gives it, for messages.
        identity: Digest that changes when the texts or their order change. `FileTexts` digests all
            texts and misses no change; `TfdsTexts` digests a sample.
        fingerprint: Digest that changes when the files do, and is found without reading them all.
    """

    name: str
    identity: str
    fingerprint: str

    @property
    def reader(self) -> TextReader:
        """What worker processes read the texts with."""

    @property
    def source_N(self) -> np.ndarray | None:  # noqa: N802
        """Number of each text's source, counted from 0; None if all are of one source."""

    @property
    def source_names(self) -> Sequence[str]:
        """Names of the sources by their number."""

    @property
    def rejected(self) -> Mapping[str, int]:
        """Number of unusable records by reason; for a dataset, among those read so far."""

    def units(self, target_bytes: int) -> list[tuple[int, int]]:
        """Returns ranges of indices that cover the source, of about so many bytes of text."""

    def __len__(self) -> int:
        """Returns the number of texts, including unusable ones."""

    def __getitem__(self, index: int) -> str | None:
        """Returns a text, or None if it is unusable."""


def text_hash(text: str) -> int:
    """Returns 64 bits of the text's BLAKE2b digest, which decide the set of a document."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()[:8], "little"
    )


class TextReader(Protocol):
    """Reads the texts of a source; it pickles, so that worker processes can read as well."""

    def read(self, index: int) -> tuple[str | None, str]:
        """Returns (text, ""), or (None, the reason why it is unusable)."""


class StoredTexts:
    """Texts in a folder, which the operating system pages in as needed.

    Args:
        folder: Folder with the texts one after the other in `texts`, and their ends in `ends.npy`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.ends_N: np.ndarray = np.load(f"{folder}/ends.npy", mmap_mode="r")
        with open(f"{folder}/texts", "rb") as file:
            # An empty file cannot be mapped.
            self._bytes = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.ends_N[-1] else b""
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _stored_texts, (self._folder,)

    def __getitem__(self, index: int) -> str:
        return self._bytes[self.ends_N[index] : self.ends_N[index + 1]].decode("utf-8")

    def read(self, index: int) -> tuple[str | None, str]:
        """Returns (text, ""): all stored texts are usable."""
        return self[index], ""


@functools.lru_cache(maxsize=8)
def _stored_texts(folder: str) -> StoredTexts:
    """Opens a folder of texts in a worker process."""
    return StoredTexts(folder)


class FileTexts:
    """The texts of files.

    They are copied into a folder, since a compressed stream has no random access. A file is read
    once, however often and in whatever spelling it is named.

    Args:
        patterns: Paths or globs.
        options: Options for reading the files.
        folder: Folder for the copy; if None, a temporary one in `$TMPDIR`, which is deleted with
            this object.

    Attributes:
        hash_N: `text_hash` of each text, uint64.
        source_N: Number of each text's source, counted from 0 in the order of first appearance.
        source_names: Names of the sources by their number; "" for texts without one.
        fingerprint: Digest of the files' names, sizes and times or store versions.

    Raises:
        NoInputError: If no file matches a pattern.
        OSError: If a file cannot be read.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        options: ReadOptions | None = None,
        folder: str | None = None,
    ) -> None:
        self.name = ",".join(patterns)
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="datarater-texts-")
            folder = self._temporary.name
        os.makedirs(folder, exist_ok=True)

        rejected: collections.Counter[str] = collections.Counter()
        ends = array.array("q", [0])  # 8 bytes per text; a list would take four times as much
        hashes = array.array("Q")
        sources: dict[str, int] = {}
        source_numbers = array.array("i")
        digest = hashlib.sha256()
        files = list(list_files(patterns))
        with open(f"{folder}/texts", "wb") as file:
            for info in files:
                for record in read_file(info.path, options):
                    if isinstance(record, BadRecord):
                        rejected[str(record.reason)] += record.records
                        continue
                    text = record.text.encode("utf-8")
                    file.write(text)
                    ends.append(ends[-1] + len(text))
                    source_numbers.append(sources.setdefault(record.source, len(sources)))
                    own = hashlib.blake2b(text, digest_size=16).digest()
                    hashes.append(int.from_bytes(own[:8], "little"))
                    digest.update(own)
        np.save(f"{folder}/ends.npy", np.frombuffer(ends, np.int64))

        self.reader = StoredTexts(folder)
        self.hash_N = np.frombuffer(hashes, np.uint64)
        self.source_N = np.frombuffer(source_numbers, np.int32)
        self.source_names = tuple(sources)
        self.identity = digest.hexdigest()
        self.fingerprint = _fingerprint(files)
        self._rejected = dict(rejected)
        if rejected:
            _LOG.warning(
                "skipped %d records that cannot be read: %s",
                rejected.total(),
                dict(rejected),
            )

    @property
    def rejected(self) -> Mapping[str, int]:
        """Number of records that cannot be read, by reason."""
        return self._rejected

    def units(self, target_bytes: int) -> list[tuple[int, int]]:
        """Returns ranges of texts of about so many bytes."""
        ends_N = self.reader.ends_N
        count = max(1, -(-int(ends_N[-1]) // target_bytes))
        cuts_N = np.searchsorted(ends_N, np.arange(1, count) * target_bytes)
        borders = np.unique([0, *cuts_N.tolist(), len(self)]).tolist()
        return list(itertools.pairwise(borders))

    def __len__(self) -> int:
        return len(self.reader.ends_N) - 1

    def __getitem__(self, index: int) -> str:
        return self.reader[index]

    def __repr__(self) -> str:
        return f"FileTexts({self.name!r})"


def _fingerprint(files: Sequence[FileInfo]) -> str:
    lines = [f"{os.path.basename(info.path)} {info.size} {info.fingerprint}" for info in files]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class TfdsTexts:
    """The texts of one split of a prepared TensorFlow dataset, read on demand.

    The identity covers the version, the split, the number of examples and bytes prepared, and for
    each shard its length, its file's size and a sample of its texts, which includes the first, the
    middle and the last (in a small dataset, all texts). A dataset prepared again from other texts
    is thus detected without reading all of it; a few texts replaced by others of the same length
    may go unnoticed.

    Args:
        name: Name of the dataset without the prefix `tfds:`, such as `c4/en`, `c4/en:train` or
            `c4/en:3.0.1:train[:10%]`. The default split is `train`.
        text_field: Name of the feature with the text; a dotted path for nested features.
        data_dir: Folder of prepared datasets; empty for the default of TensorFlow Datasets.
        identified: Whether to compute the identity.

    Raises:
        DataError: If there is no such dataset, version, split or text feature, or the dataset is
            not stored as array_record; the message names those that exist.
        OSError: If a shard cannot be read.
    """

    source_N = None
    source_names = ("",)

    def __init__(
        self, name: str, text_field: str = "text", data_dir: str = "", identified: bool = True
    ) -> None:
        self.name = TFDS_PREFIX + name
        self._opened_with = (name, text_field, data_dir)
        try:
            parsed = DatasetName.parse(self.name)
        except DatasetError as error:
            raise DataError(str(error)) from error

        builder = self._open(parsed, data_dir)
        self._path = self._feature_path(builder, text_field)
        shards, sizes = self._shards(builder, parsed.split)
        try:
            self._source = builder.as_data_source(split=parsed.split)
        except NotImplementedError as error:
            raise DataError(
                f"{self.name} is stored as {builder.info.file_format}, which has no random access; "
                f"convert it: tfds convert_format --root_data_dir={_folder(data_dir)} "
                "--out_file_format=array_record"
            ) from error

        self._rejected: collections.Counter[str] = collections.Counter()
        digest = self._digest(shards, sizes) if identified else ""
        self.identity = self.fingerprint = (
            f"{builder.info.full_name}:{parsed.split} {len(self._source)} examples {digest}"
        )
        self.reader = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened_dataset, self._opened_with

    def _open(self, parsed: DatasetName, data_dir: str) -> Any:
        """Returns the dataset's builder, which has the split that is asked for."""
        import tensorflow_datasets as tfds  # importing it takes half a second

        dataset, version, folder = parsed.name, parsed.version, _folder(data_dir)
        remedy = f"prepare it with: tfds build {dataset} --file_format=array_record"
        try:
            builder = tfds.builder(
                f"{dataset}:{version}" if version else dataset, data_dir=folder, try_gcs=False
            )
        except (
            ValueError,
            AssertionError,
            ImportError,
            tfds.core.registered.DatasetNotFoundError,
        ) as error:
            raise DataError(
                f"{self.name}: there is no dataset {dataset!r}"
                f"{f' of version {version}' if version else ''} in {folder} "
                f"({describe_prepared(folder)}); {remedy}"
            ) from error

        splits = sorted(builder.info.splits)
        if not splits:
            raise DataError(
                f"{self.name}: the dataset {dataset!r} is known but not prepared in {folder} "
                f"({describe_prepared(folder)}); {remedy}"
            )
        if re.split(r"[\[+]", parsed.split)[0] not in splits:
            raise DataError(
                f"{self.name}: there is no split {parsed.split!r}; "
                f"{builder.info.full_name} has {splits}"
            )
        return builder

    def _feature_path(self, builder: Any, text_field: str) -> list[str]:
        """Returns the text feature's name, and those of the features around it, outermost first."""
        import tensorflow_datasets as tfds

        path = text_field.split(".")
        features: Any = builder.info.features
        for part in path:
            if not isinstance(features, tfds.features.FeaturesDict) or part not in features:
                raise DataError(
                    f"{self.name}: data.text_field={text_field!r} is not among its features: "
                    f"{sorted(builder.info.features)}"
                )
            features = features[part]
        return path

    def _shards(self, builder: Any, split: str) -> tuple[Sequence[Any], list[str]]:
        """Returns the split's parts of shards, and a line with the size of each of its splits."""
        import tensorflow_datasets as tfds

        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
            # TensorFlow Datasets would read some of these as another range.
            if any((part.from_ or 0) > part.to for part in parts if part.to is not None):
                raise ValueError("one of its ranges ends before it begins")
            sizes = [
                f"{part.splitname} {builder.info.splits[str(part.splitname)].num_bytes} bytes"
                for part in parts
            ]
            return builder.info.splits[split].file_instructions, sizes
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise DataError(
                f"{self.name}: the split {split!r} cannot be read: {one_line(error)}"
            ) from error

    def _digest(self, shards: Sequence[Any], sizes: Sequence[str]) -> str:
        """Returns the hash of what tells prepared datasets apart; see the class."""
        digest = hashlib.sha256("\n".join(sizes).encode())
        samples = max(3, -(-_IDENTITY_SAMPLE // max(1, len(shards))))
        end = 0
        for shard in shards:
            start, end = end, end + shard.take
            for index in np.unique(np.linspace(start, end - 1, samples).astype(np.int64)):
                text, reason = self.read(int(index))
                digest.update(f"{reason or text_hash(text or '')}\n".encode())
            size = file_info(shard.filename).size
            digest.update(
                f"{shard.skip} {shard.take} {shard.examples_in_shard} {size} bytes\n".encode()
            )
        return digest.hexdigest()

    @property
    def rejected(self) -> Mapping[str, int]:
        """Number of unusable records so far, by reason; a record read twice counts twice."""
        return dict(self._rejected)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> str | None:
        text, reason = self.read(int(index))
        if reason:
            if not self._rejected[reason]:
                _LOG.warning(
                    "%s: skipping example %d and others like it: %s", self.name, index, reason
                )
            self._rejected[reason] += 1
        return text

    def units(self, target_bytes: int) -> list[tuple[int, int]]:
        """Returns ranges of indices; the sizes of the texts are not known."""
        starts = range(0, len(self), _UNIT_TEXTS)
        return [(start, min(len(self), start + _UNIT_TEXTS)) for start in starts]

    def read(self, index: int) -> tuple[str | None, str]:
        """Returns (text, ""), or (None, the reason why it is unusable)."""
        try:
            value = self._source[index]
        except RuntimeError as error:  # array_record's only kind of error
            if is_file_system_failure(error):
                # The file or the disk is missing for now, the record is not damaged. Skipping the
                # document would make a resumed run differ from an uninterrupted one.
                raise OSError(
                    f"{self.name}: example {index} cannot be read: {one_line(error)}"
                ) from error
            return None, "record_corrupt"

        for part in self._path:
            value = value[part]
        if isinstance(value, np.ndarray):
            value = value.item() if value.ndim == 0 else None

        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            return None, "text_not_unicode"
        if not isinstance(text, str):
            return None, "text_not_a_string"
        return (text, "") if text.strip() else (None, "text_empty")

    def __repr__(self) -> str:
        return f"TfdsTexts({self.name!r})"


@functools.lru_cache(maxsize=8)
def _reopened_dataset(name: str, text_field: str, data_dir: str) -> TfdsTexts:
    """Opens a dataset in a worker process, which needs no identity."""
    return TfdsTexts(name, text_field, data_dir, identified=False)


def _folder(data_dir: str) -> str:
    """Returns the folder of prepared datasets."""
    import tensorflow_datasets as tfds

    return str(data_dir or tfds.core.constants.DATA_DIR)


def open_source(
    name: str,
    text_field: str,
    tfds_data_dir: str = "",
    source_field: str = "source",
    folder: str | None = None,
) -> TextSource:
    """Opens a source of texts by its name in the config.

    Args:
        name: `tfds:...` for a TensorFlow dataset (see `TfdsTexts`), otherwise comma-separated paths
            or globs.
        text_field: Field with the text.
        tfds_data_dir: Folder of prepared TensorFlow datasets.
        source_field: Field with the name of a record's source; of files only.
        folder: Folder for a copy of the texts of files; see `FileTexts`.

    Raises:
        DataError: If the dataset cannot be read; see `TfdsTexts`.
        NoInputError: If no file matches.
    """
    if not name.startswith(TFDS_PREFIX):
        if TFDS_PREFIX in name:
            raise DataError(f"{name!r} mixes files and a TensorFlow dataset; name one kind")
        return FileTexts(
            split_on_commas(name),
            ReadOptions(
                text_field=text_field,
                source_field=source_field,
                max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES,
            ),
            folder,
        )
    return TfdsTexts(name.removeprefix(TFDS_PREFIX), text_field, tfds_data_dir)


def current_fingerprint(name: str, text_field: str, tfds_data_dir: str = "") -> str:
    """Returns the fingerprint of a source, without reading its texts.

    Args:
        name: Name of the source, as for `open_source`.
        text_field: Field with the text.
        tfds_data_dir: Folder of prepared TensorFlow datasets.

    Raises:
        DataError: If the dataset cannot be read; see `TfdsTexts`.
        NoInputError: If no file matches.
    """
    if name.startswith(TFDS_PREFIX):
        return open_source(name, text_field, tfds_data_dir).fingerprint
    return _fingerprint(list(list_files(split_on_commas(name))))
