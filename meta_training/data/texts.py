"""Where training texts come from: files found by glob, or a TensorFlow Datasets builder by name.

A source gives texts by number, so that everything above it can shuffle without holding them in
memory. TensorFlow Datasets are read where they lie (array_record, no TensorFlow needed). Files
cannot be: a gzip stream has no middle to begin at. So their texts are copied once into a temporary
file, from which the operating system pages them in.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import itertools
import logging
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from datarater.rater_model.documents.array_record import is_file_system_failure
from datarater.rater_model.documents.files import file_info, local_path
from datarater.rater_model.documents.reading import BadRecord, ReadOptions, list_files, read_file
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.tfds import (
    TFDS_PREFIX,
    DatasetError,
    DatasetName,
    describe_prepared,
)

_LOG = logging.getLogger("datarater")
_IDENTITY_SAMPLE = 1000  # texts of a dataset, at least


class DataError(ValueError):
    """Data that cannot be trained on, with what to do about it."""


class EmptySetError(DataError):
    """A set without a single document."""


class TextSource(Protocol):
    """Texts by number.

    Attributes:
        name: what the source was asked for by, for messages.
        identity: changes when the texts or their order do. Where it is taken of all texts it cannot
            miss a change; `TfdsTexts` samples them, and says how.
    """

    name: str
    identity: str

    @property
    def rejected(self) -> Mapping[str, int]:
        """Records that could not be used, by reason: in files all, in a dataset those read so far."""

    def __len__(self) -> int:
        """Returns how many texts there are, unusable ones included."""

    def __getitem__(self, index: int) -> str | None:
        """Returns a text, or None for one that cannot be used."""


def text_hash(text: str) -> int:
    """Returns 64 bits of the text's BLAKE2b digest: which of two disjoint sets a document belongs to hangs on it."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()[:8], "little"
    )


def _each_once(files: Sequence[FileInfo]) -> list[FileInfo]:
    """Returns the files without those that are an earlier one by another spelling or through a link."""
    found: dict[str, FileInfo] = {}
    for info in files:
        local = local_path(info.path)
        found.setdefault(info.path if local is None else os.path.realpath(local), info)
    return list(found.values())


class FileTexts:
    """The texts of files, copied once into a temporary file (in `$TMPDIR`), which goes with the process.

    A file is read once, however often and in whatever spelling it is named.

    Args:
        patterns: paths or globs.
        options: how files are read.

    Raises:
        NoInputError: no file matches a pattern.
        OSError: a file cannot be read.
    """

    def __init__(self, patterns: Sequence[str], options: ReadOptions | None = None) -> None:
        self.name = ",".join(patterns)
        rejected: collections.Counter[str] = collections.Counter()
        self._file = tempfile.TemporaryFile(prefix="datarater-texts-")
        ends = array.array("q", [0])  # 8 bytes a text; a list would take four times that
        digest = hashlib.sha256()
        for info in _each_once(list_files(patterns)):
            for record in read_file(info.path, options):
                if isinstance(record, BadRecord):
                    rejected[str(record.reason)] += 1
                    continue
                text = record.text.encode("utf-8")
                self._file.write(text)
                ends.append(ends[-1] + len(text))
                digest.update(hashlib.blake2b(text, digest_size=16).digest())
        self._file.flush()
        self._ends_N = np.frombuffer(ends, np.int64)
        # An empty file cannot be mapped.
        self._bytes = (
            mmap.mmap(self._file.fileno(), ends[-1], access=mmap.ACCESS_READ) if ends[-1] else b""
        )
        self.identity = digest.hexdigest()
        self._rejected = dict(rejected)
        if rejected:
            _LOG.warning(
                "%d records could not be read and were left out: %s",
                rejected.total(),
                dict(rejected),
            )

    @property
    def rejected(self) -> Mapping[str, int]:
        """Records that could not be read, by reason."""
        return self._rejected

    def __len__(self) -> int:
        return len(self._ends_N) - 1

    def __getitem__(self, index: int) -> str:
        return self._bytes[self._ends_N[index] : self._ends_N[index + 1]].decode("utf-8")

    def __repr__(self) -> str:
        return f"FileTexts({self.name!r})"


class TfdsTexts:
    """The texts of one split of a prepared TensorFlow dataset, read one by one as they are asked for.

    Its identity is that of the version and the split: how many examples and bytes were prepared,
    and of every shard its length, its file's size, and a sample of its texts, the first, the middle
    and the last among them (all of them in a small dataset). So a dataset prepared anew from other
    texts is noticed without reading all of it; single texts that became others of the same length
    can escape.

    Args:
        name: as after `tfds:` in a config: `c4/en`, `c4/en:train`, `c4/en:3.0.1:train[:10%]`. The
            split is `train` where none is named.
        text_field: the feature that holds the text; a dotted path for nested features.
        data_dir: the folder of prepared datasets; empty for TensorFlow Datasets' own default.

    Raises:
        DataError: no such dataset, version, split or text feature, or it is not stored as
            array_record; the message names those that exist.
        OSError: a shard cannot be read.
    """

    def __init__(self, name: str, text_field: str = "text", data_dir: str = "") -> None:
        import tensorflow_datasets as tfds  # here, since importing it costs half a second

        self.name = TFDS_PREFIX + name
        try:
            parsed = DatasetName.parse(self.name)
        except DatasetError as error:
            raise DataError(str(error)) from error
        dataset, version, split = parsed.name, parsed.version, parsed.split
        folder = data_dir or tfds.core.constants.DATA_DIR
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
                f"{self.name}: no dataset {dataset!r}{f' of version {version}' if version else ''} stands in {folder} "
                f"({describe_prepared(folder)}); prepare it with: tfds build {dataset} --file_format=array_record"
            ) from error
        splits = sorted(builder.info.splits)
        if not splits:
            raise DataError(
                f"{self.name}: the dataset {dataset!r} is known but not prepared in {folder} "
                f"({describe_prepared(folder)}); prepare it with: tfds build {dataset} --file_format=array_record"
            )
        if re.split(r"[\[+]", split)[0] not in splits:
            raise DataError(
                f"{self.name}: there is no split {split!r}; {builder.info.full_name} has {splits}"
            )
        self._path = text_field.split(".")
        features: Any = builder.info.features
        for part in self._path:
            if not isinstance(features, tfds.features.FeaturesDict) or part not in features:
                raise DataError(
                    f"{self.name}: data.text_field={text_field!r} is not among its features: "
                    f"{sorted(builder.info.features)}"
                )
            features = features[part]
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
            if any((part.from_ or 0) > part.to for part in parts if part.to is not None):
                raise ValueError(
                    "a range in it ends before it begins"
                )  # some of which would be read as another one
            sizes = [
                f"{part.splitname} {builder.info.splits[str(part.splitname)].num_bytes} bytes"
                for part in parts
            ]
            shards = builder.info.splits[split].file_instructions
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise DataError(
                f"{self.name}: the split {split!r} cannot be read: {_one_line(error)}"
            ) from error
        try:
            self._source = builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise DataError(
                f"{self.name} is stored as {builder.info.file_format}, which gives no access by number; convert it: "
                f"tfds convert_format --root_data_dir={folder} --out_file_format=array_record"
            ) from error
        self._rejected: collections.Counter[str] = collections.Counter()
        self.identity = f"{builder.info.full_name}:{split} {len(self._source)} examples {self._digest(shards, sizes)}"

    def _digest(self, shards: Sequence[Any], sizes: Sequence[str]) -> str:
        """Returns the hash of what tells shards apart; see the class."""
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
        """Records that could not be used so far, by reason; a record read twice counts twice."""
        return dict(self._rejected)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> str | None:
        text, reason = self._read(int(index))
        if reason:
            if not self._rejected[reason]:
                _LOG.warning(
                    "%s: example %d is left out, and others like it: %s", self.name, index, reason
                )
            self._rejected[reason] += 1
        return text

    def _read(self, index: int) -> tuple[str | None, str]:
        """Returns a text, or None and the reason why it cannot be used."""
        try:
            value = self._source[index]
        except RuntimeError as error:  # array_record's only kind of error
            if is_file_system_failure(error):
                # Not damage but a file or a disk that is not there now: leaving documents out for
                # that would make a resumed run another one.
                raise OSError(
                    f"{self.name}: example {index} cannot be read: {_one_line(error)}"
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def open_source(name: str, text_field: str, tfds_data_dir: str = "") -> TextSource:
    """Opens what a config names as a set of texts.

    Args:
        name: `tfds:...` for a TensorFlow dataset (see `TfdsTexts`), else paths or globs joined by
            commas.
        text_field: the field that holds the text.
        tfds_data_dir: the folder of prepared TensorFlow datasets.

    Raises:
        DataError: the dataset cannot be read; see `TfdsTexts`.
        NoInputError: no file matches.
    """
    if not name.startswith(TFDS_PREFIX):
        if TFDS_PREFIX in name:
            raise DataError(f"{name!r} mixes files and a TensorFlow dataset; name one kind")
        return FileTexts(name.split(","), ReadOptions(text_field=text_field))
    return TfdsTexts(name.removeprefix(TFDS_PREFIX), text_field, tfds_data_dir)


@dataclasses.dataclass(frozen=True)
class Membership:
    """Which documents of a source belong to a set, by a hash of their text alone.

    Attributes:
        low: the smallest hash that belongs.
        high: one more than the largest.
        excluded_N: sorted uint64 hashes that do not belong, whatever their size.
    """

    low: int = 0
    high: int = 2**64
    excluded_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    def holds(self, text: str) -> bool:
        """Returns whether a text belongs to the set."""
        value = text_hash(text)
        if not self.low <= value < self.high:
            return False
        place = int(np.searchsorted(self.excluded_N, np.uint64(value)))
        return place == len(self.excluded_N) or int(self.excluded_N[place]) != value


@dataclasses.dataclass(frozen=True)
class TextSet:
    """The documents of a source that belong to one set.

    Attributes:
        role: "inner" or "outer", for messages.
        source: where the texts are.
        membership: which of them.
    """

    role: str
    source: TextSource
    membership: Membership

    def get(self, index: int) -> str | None:
        """Returns the source's text of that number, or None if it is unusable or belongs to another set."""
        text = self.source[index]
        return text if text is not None and self.membership.holds(text) else None

    def __iter__(self) -> Iterator[str]:
        return (text for text in map(self.get, range(len(self.source))) if text is not None)

    def spread(self, count: int) -> list[str]:
        """Returns documents from all over the source, the same ones each time, without reading all of it.

        Args:
            count: how many, at most. Fewer are returned where the set has fewer.
        """
        size = len(self.source)
        # A step that has no factor in common with the size visits every number once.
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
    inner: str, outer: str, outer_share: float, text_field: str = "text", tfds_data_dir: str = ""
) -> tuple[TextSet, TextSet]:
    """Opens the inner and the outer set, which never share a document.

    Either the outer set has a source of its own, and inner documents with a text that stands there
    are left out; or it is a share of the inner source, chosen by a hash of each document's text.

    Args:
        inner: the inner source, as `open_source` takes it.
        outer: the outer source; empty to take a share of the inner one.
        outer_share: that share.
        text_field: the field that holds the text.
        tfds_data_dir: the folder of prepared TensorFlow datasets.

    Raises:
        EmptySetError: a set is empty.
        DataError: the share is not between 0 and 1, or a dataset cannot be read.
        NoInputError: no file matches.
    """
    source = open_source(inner, text_field, tfds_data_dir)
    if outer:
        outer_source = open_source(outer, text_field, tfds_data_dir)
        sets = (
            TextSet("inner", source, Membership(excluded_N=_hashes(outer_source))),
            TextSet("outer", outer_source, Membership()),
        )
    else:
        if not 0 < outer_share < 1:
            raise DataError(
                f"data.outer_share must lie between 0 and 1 where data.outer is empty, not {outer_share}"
            )
        border = min(2**64 - 1, max(1, round(outer_share * 2**64)))
        sets = (
            TextSet("inner", source, Membership(low=border)),
            TextSet("outer", source, Membership(high=border)),
        )
    for texts in sets:
        if not texts.spread(1):
            raise EmptySetError(
                f"the {texts.role} set has no document: {texts.source.name} gave {len(texts.source)} texts, "
                f"none of which belongs to it (rejected: {dict(texts.source.rejected)})"
            )
    return sets


def _hashes(source: TextSource) -> np.ndarray:
    """Returns the sorted hashes of all texts of a source: 8 bytes a document."""
    if len(source) > 1_000_000:
        _LOG.info(
            "reading the %s outer documents once, so that none is an inner one", f"{len(source):,}"
        )
    texts = (source[index] for index in range(len(source)))
    return np.unique(
        np.fromiter((text_hash(text) for text in texts if text is not None), np.uint64)
    )
