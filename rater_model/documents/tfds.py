"""TensorFlow datasets by name: which are prepared in a folder, and which files make up a split.

A prepared dataset is a folder `NAME[/CONFIG]/VERSION` with `dataset_info.json`, `features.json` and
the shards of its splits. These are read as they are, on any file system, without TensorFlow or
TensorFlow Datasets.
"""

import dataclasses
import glob
import os
import re
from typing import Any

import fsspec
import orjson

from datarater.rater_model.documents.files import list_files, local_path, read_head
from datarater.rater_model.documents.store_errors import raising_os_errors

TFDS_PREFIX = "tfds:"
READABLE = ("array_record", "tfrecord", "parquet")
"""The file formats of prepared datasets whose shards are read."""

_NAME = re.compile(r"(?P<name>[\w./+-]+?)(:(?P<version>\d+\.\d+\.\d+))?(:(?P<split>.+))?")
_LARGEST_DESCRIPTION = 2**26
_NAMES_SHOWN = 20


class DatasetError(ValueError):
    """A dataset cannot be read as it was asked for; the message names what there is."""


@dataclasses.dataclass(frozen=True)
class DatasetName:
    """What a dataset is asked for by, taken apart.

    Attributes:
        asked: as it was given.
        name: of the dataset, with its config if it has any: `c4/en`.
        version: `3.0.1`; None for the newest that is prepared.
        split: `train` where none is named.
    """

    asked: str
    name: str
    version: str | None
    split: str

    @classmethod
    def parse(cls, asked: str) -> "DatasetName":
        """Takes `tfds:NAME[/CONFIG][:VERSION][:SPLIT]` apart.

        Raises:
            DatasetError: it is nothing of the kind.

        Example:
            >>> DatasetName.parse("tfds:c4/en:3.0.1:validation").split
            'validation'
        """
        match = _NAME.fullmatch(asked.removeprefix(TFDS_PREFIX))
        if match is None:
            raise DatasetError(
                f"{asked!r} names no dataset; write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:SPLIT"
            )
        return cls(asked, match["name"], match["version"], match["split"] or "train")


def default_folder() -> str:
    """The folder of prepared datasets that TensorFlow Datasets itself would take."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")


def prepared_datasets(folder: str) -> list[str]:
    """The datasets prepared in a folder, as `c4/en:3.0.1`, sorted."""
    file_system, root = fsspec.url_to_fs(os.path.expanduser(folder))
    root = root.rstrip("/")
    escaped = glob.escape(root)
    found = set()
    for depth in ("*", "*/*"):
        with raising_os_errors(folder):
            paths = file_system.glob(f"{escaped}/{depth}/*/dataset_info.json")
        for path in paths:
            *name, version, _ = path[len(root) + 1 :].split("/")
            found.add(f"{'/'.join(name)}:{version}")
    return sorted(found)


def describe_prepared(folder: str) -> str:
    """Says which datasets stand in a folder, for messages."""
    names = prepared_datasets(folder)
    if not names:
        return "which holds no prepared dataset"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"it holds {', '.join(names[:_NAMES_SHOWN])}{more}"


def split_patterns(asked: str, text_field: str = "text", folder: str = "") -> list[str]:
    """The shards of a dataset's split, as globs that `datarater.rater_model.documents.reading.list_files` takes.

    Args:
        asked: `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`; several splits are joined by `+`, as in
            `train+validation`.
        text_field: the feature that holds the text; a dotted path for nested ones.
        folder: of prepared datasets, local or a URL; empty for TensorFlow Datasets' own default.

    Raises:
        DatasetError: no such dataset, version, split or text feature, or shards that are missing or
            in a format that is not read; the message names those that exist.
        OSError: the folder cannot be read.
    """
    dataset = DatasetName.parse(asked)
    folder = os.path.expanduser(folder or default_folder()).rstrip("/")
    if "," in folder:
        raise DatasetError(
            f"{asked}: the folder {folder} has a comma in its name, which parts inputs; rename it"
        )
    if "[" in dataset.split:
        raise DatasetError(
            f"{asked}: whole splits are read; {dataset.split.partition('[')[0]!r} is one, for a sample "
            "curate it and keep a share"
        )
    known = prepared_datasets(folder)
    versions = [
        name.rpartition(":")[2] for name in known if name.rpartition(":")[0] == dataset.name
    ]
    if not versions or dataset.version not in (None, *versions):
        of_version = f" of version {dataset.version}" if dataset.version else ""
        raise DatasetError(
            f"{asked}: no dataset {dataset.name!r}{of_version} stands in {folder} ({describe_prepared(folder)}); "
            f"prepare it with: tfds build {dataset.name} --file_format=array_record"
        )
    version = dataset.version or max(versions, key=_version_order)
    place = f"{folder}/{dataset.name}/{version}"
    info = orjson.loads(read_head(f"{place}/dataset_info.json", _LARGEST_DESCRIPTION))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in READABLE:
        raise DatasetError(
            f"{asked} is stored as {file_format}, which is not read; convert it: "
            f"tfds convert_format --root_data_dir={folder} --out_file_format=array_record"
        )
    _check_text_field(asked, place, text_field)
    splits = {split["name"]: split for split in info.get("splits", [])}
    patterns = []
    for name in dataset.split.split("+"):
        if name not in splits:
            raise DatasetError(
                f"{asked}: there is no split {name!r}; {dataset.name}/{version} has {sorted(splits)}"
            )
        patterns.append(_shards(asked, place, info["name"], file_format, splits[name]))
    return patterns


def _version_order(version: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in version.split(".")]


def _shards(asked: str, place: str, dataset: str, file_format: str, split: dict[str, Any]) -> str:
    """The glob of a split's shards, all of which are there."""
    count = len(split.get("shardLengths", [])) or 1
    name = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    digit = "[0-9]"
    fields = {
        "DATASET": dataset.partition("/")[0],
        "SPLIT": split["name"],
        "FILEFORMAT": file_format,
        "SHARD_INDEX": digit * 5,
        "NUM_SHARDS": f"{count:05d}",
        "SHARD_X_OF_Y": f"{digit * 5}-of-{count:05d}",
    }
    for field, value in fields.items():
        name = name.replace(f"{{{field}}}", value)
    pattern = f"{glob.escape(place) if local_path(place) is not None else place}/{name}"
    try:
        found = len(list_files([pattern]))
    except ValueError:
        found = 0
    if found != count:
        raise DatasetError(
            f"{asked}: {found} of {count} files of the split {split['name']!r} are there ({pattern})"
        )
    return pattern


def _check_text_field(asked: str, place: str, text_field: str) -> None:
    """Refuses a text field that is not among the features, or is no text."""
    try:
        features = orjson.loads(read_head(f"{place}/features.json", _LARGEST_DESCRIPTION))
    except FileNotFoundError:
        return
    found: dict[str, Any] = features
    for part in text_field.split("."):
        inner = found.get("featuresDict", {}).get("features", {})
        if part not in inner:
            names = sorted(features.get("featuresDict", {}).get("features", {}))
            raise DatasetError(
                f"{asked}: text_field={text_field!r} is not among its features: {names}"
            )
        found = inner[part]
    if "featuresDict" in found or not (
        "text" in found or found.get("tensor", {}).get("dtype", "string") == "string"
    ):
        kind = str(found.get("pythonClassName", "something else")).rpartition(".")[2]
        raise DatasetError(f"{asked}: text_field={text_field!r} holds {kind}, not text")
