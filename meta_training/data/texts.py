"""Sources of training texts: files matched by globs, or a prepared TensorFlow dataset.

A source returns texts by index, so that its users can shuffle without keeping them in memory.
TensorFlow datasets are read in place (array_record, without TensorFlow). Files cannot be, since a
gzip stream has no random access: their texts are copied once into a temporary file, which the
operating system pages in as needed.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import itertools
import logging
import mmap
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from datarater.rater_model.documents.array_record import is_file_system_failure
from datarater.rater_model.documents.files import file_info, list_files, split_on_commas
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    BadRecord,
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
    """

    name: str
    identity: str

    @property
    def rejected(self) -> Mapping[str, int]:
        """Number of unusable records by reason; for a dataset, among those read so far."""

    def __len__(self) -> int:
        """Returns the number of texts, including unusable ones."""

    def __getitem__(self, index: int) -> str | None:
        """Returns a text, or None if it is unusable."""


def text_hash(text: str) -> int:
    """Returns 64 bits of the text's BLAKE2b digest, which decide the set of a document."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()[:8], "little"
    )


class FileTexts:
    """The texts of files.

    They are copied into a temporary file in `$TMPDIR`, which is deleted when the process ends. A
    file is read once, however often and in whatever spelling it is named.

    Args:
        patterns: Paths or globs.
        options: Options for reading the files.

    Attributes:
        source_N: Number of each text's source, counted from 0 in the order of first appearance.
        source_names: Names of the sources by their number; "" for texts without one.

    Raises:
        NoInputError: If no file matches a pattern.
        OSError: If a file cannot be read.
    """

    def __init__(self, patterns: Sequence[str], options: ReadOptions | None = None) -> None:
        self.name = ",".join(patterns)

        # The file lives as long as the source.
        self._file = tempfile.TemporaryFile(prefix="datarater-texts-")  # noqa: SIM115
        rejected: collections.Counter[str] = collections.Counter()
        ends = array.array("q", [0])  # 8 bytes per text; a list would take four times as much
        sources: dict[str, int] = {}
        source_numbers = array.array("i")
        digest = hashlib.sha256()
        for info in list_files(patterns):
            for record in read_file(info.path, options):
                if isinstance(record, BadRecord):
                    rejected[str(record.reason)] += record.records
                    continue
                text = record.text.encode("utf-8")
                self._file.write(text)
                ends.append(ends[-1] + len(text))
                source_numbers.append(sources.setdefault(record.source, len(sources)))
                digest.update(hashlib.blake2b(text, digest_size=16).digest())
        self._file.flush()

        self._ends_N = np.frombuffer(ends, np.int64)
        self.source_N = np.frombuffer(source_numbers, np.int32)
        self.source_names = tuple(sources)
        # An empty file cannot be mapped.
        self._bytes = (
            mmap.mmap(self._file.fileno(), ends[-1], access=mmap.ACCESS_READ) if ends[-1] else b""
        )
        self.identity = digest.hexdigest()
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

    def __len__(self) -> int:
        return len(self._ends_N) - 1

    def __getitem__(self, index: int) -> str:
        return self._bytes[self._ends_N[index] : self._ends_N[index + 1]].decode("utf-8")

    def __repr__(self) -> str:
        return f"FileTexts({self.name!r})"


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

    Raises:
        DataError: If there is no such dataset, version, split or text feature, or the dataset is
            not stored as array_record; the message names those that exist.
        OSError: If a shard cannot be read.
    """

    def __init__(self, name: str, text_field: str = "text", data_dir: str = "") -> None:
        self.name = TFDS_PREFIX + name
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
        digest = self._digest(shards, sizes)
        self.identity = (
            f"{builder.info.full_name}:{parsed.split} {len(self._source)} examples {digest}"
        )

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
                text, reason = self._read(int(index))
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
        text, reason = self._read(int(index))
        if reason:
            if not self._rejected[reason]:
                _LOG.warning(
                    "%s: skipping example %d and others like it: %s", self.name, index, reason
                )
            self._rejected[reason] += 1
        return text

    def _read(self, index: int) -> tuple[str | None, str]:
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


def _folder(data_dir: str) -> str:
    """Returns the folder of prepared datasets."""
    import tensorflow_datasets as tfds

    return str(data_dir or tfds.core.constants.DATA_DIR)


def open_source(
    name: str, text_field: str, tfds_data_dir: str = "", source_field: str = "source"
) -> TextSource:
    """Opens a source of texts by its name in the config.

    Args:
        name: `tfds:...` for a TensorFlow dataset (see `TfdsTexts`), otherwise comma-separated paths
            or globs.
        text_field: Field with the text.
        tfds_data_dir: Folder of prepared TensorFlow datasets.
        source_field: Field with the name of a record's source; of files only.

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
        )
    return TfdsTexts(name.removeprefix(TFDS_PREFIX), text_field, tfds_data_dir)


@dataclasses.dataclass(frozen=True)
class Membership:
    """Decides which documents of a source belong to a set, by a hash of their text alone.

    Attributes:
        low: Smallest hash in the set.
        high: One more than the largest hash in the set.
        excluded_N: Sorted uint64 hashes of documents that are not in the set.
    """

    low: int = 0
    high: int = 2**64
    excluded_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    def holds(self, text: str) -> bool:
        """Returns whether a text belongs to the set."""
        value = text_hash(text)
        if not self.low <= value < self.high:
            return False
        i = int(np.searchsorted(self.excluded_N, np.uint64(value)))
        return i == len(self.excluded_N) or int(self.excluded_N[i]) != value


@dataclasses.dataclass(frozen=True)
class TextSet:
    """The documents of a source that belong to one set.

    Attributes:
        role: "inner", "outer", or "outer NAME" of one of several, for messages.
        source: Source of the texts.
        membership: Which of its documents belong to the set.
    """

    role: str
    source: TextSource
    membership: Membership

    def get(self, index: int) -> str | None:
        """Returns the source's text at an index, or None if it is unusable or not in the set."""
        text = self.source[index]
        return text if text is not None and self.membership.holds(text) else None

    def __iter__(self) -> Iterator[str]:
        return (text for text in map(self.get, range(len(self.source))) if text is not None)

    def by_source(self) -> Iterator[tuple[int, str]]:
        """Yields (number of its source, text) of each document, one source after the other.

        A source of texts that does not know where they come from is one source.
        """
        if not isinstance(self.source, FileTexts):
            yield from ((0, text) for text in self)
            return
        source_N = self.source.source_N
        for index in np.argsort(source_N, kind="stable"):
            text = self.get(int(index))
            if text is not None:
                yield int(source_N[index]), text

    def spread(self, count: int) -> list[str]:
        """Returns documents spread over the whole source, without reading all of it.

        Args:
            count: Maximum number of documents; fewer are returned if the set has fewer.

        Returns:
            The documents, the same ones each time.
        """
        size = len(self.source)
        # A step that has no factor in common with the size visits every index once.
        step = (
            next(
                s
                for s in itertools.count(max(1, round(size * 0.6180339887)))
                if np.gcd(s, size) == 1
            )
            if size
            else 1
        )

        texts = (self.get(i * step % size) for i in range(size))
        return list(itertools.islice((text for text in texts if text is not None), count))


def open_sets(
    inner: str,
    outer: str | Mapping[str, str],
    outer_share: float,
    text_field: str = "text",
    tfds_data_dir: str = "",
    source_field: str = "source",
) -> tuple[TextSet, ...]:
    """Opens the inner set and the outer sets, which never share a document with it.

    If outer sets have sources of their own, documents whose text occurs in one are excluded from
    the inner set. Otherwise the outer set is a share of the inner source, chosen by a hash of each
    document's text.

    Args:
        inner: Name of the inner source, as for `open_source`.
        outer: Name of the outer source, or the names of several by the name of their set; empty for
            a share of the inner one.
        outer_share: That share, between 0 and 1.
        text_field: Field with the text.
        tfds_data_dir: Folder of prepared TensorFlow datasets.
        source_field: Field with the name of a record's source; of files only.

    Returns:
        The inner set and the outer sets.

    Raises:
        EmptySetError: If a set is empty.
        DataError: If a dataset cannot be read.
        NoInputError: If no file matches.
    """
    source = open_source(inner, text_field, tfds_data_dir, source_field)

    if outer:
        named = {"outer": outer} if isinstance(outer, str) else outer
        sources = {
            name: open_source(each, text_field, tfds_data_dir, source_field)
            for name, each in named.items()
        }
        excluded_N = np.unique(np.concatenate([_hashes(each) for each in sources.values()]))
        sets: tuple[TextSet, ...] = (
            TextSet("inner", source, Membership(excluded_N=excluded_N)),
            *(
                TextSet("outer" if len(named) == 1 else f"outer {name}", each, Membership())
                for name, each in sources.items()
            ),
        )
    else:
        border = min(2**64 - 1, max(1, round(outer_share * 2**64)))
        sets = (
            TextSet("inner", source, Membership(low=border)),
            TextSet("outer", source, Membership(high=border)),
        )

    for texts in sets:
        if not texts.spread(1):
            raise EmptySetError(
                f"the {texts.role} set has no document: {texts.source.name} has "
                f"{len(texts.source)} texts, none of which belongs to the set "
                f"(rejected: {dict(texts.source.rejected)})"
            )
    return sets


def _hashes(source: TextSource) -> np.ndarray:
    """Returns the sorted hashes of all texts of a source, 8 bytes per document."""
    if len(source) > 1_000_000:
        _LOG.info(
            "reading the %s outer documents once, to exclude them from the inner set",
            f"{len(source):,}",
        )
    texts = (source[index] for index in range(len(source)))
    return np.unique(
        np.fromiter((text_hash(text) for text in texts if text is not None), np.uint64)
    )
