"""Finds TensorFlow datasets by name: those prepared in a folder, and the files of a split.

A prepared dataset is a folder `NAME[/CONFIG]/VERSION` with `dataset_info.json`, `features.json` and
the shards of its splits. These are read as they are, on any file system, without TensorFlow or
TensorFlow Datasets.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from typing import Any

import orjson

from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import (
    expand_home,
    file_system_of,
    list_files,
    local_path,
    read_head,
)
from datarater.rater_model.documents.formats import format_names
from datarater.rater_model.documents.store_errors import raising_os_errors

TFDS_PREFIX = "tfds:"

_NAME = re.compile(r"(?P<name>[\w./+-]+?)(:(?P<version>\d+\.\d+\.\d+))?(:(?P<split>.+))?")
_MAX_DESCRIPTION_BYTES = 2**26
_NAMES_SHOWN = 20


class DatasetError(ValueError):
    """A dataset cannot be read as requested; the message names what exists."""


@dataclasses.dataclass(frozen=True)
class DatasetName:
    """The parsed name of a dataset.

    Attributes:
        asked: Name as it was given.
        name: Name of the dataset, with its config if it has one: `c4/en`.
        version: Version, such as `3.0.1`; None for the newest that is prepared.
        split: Split; `train` if none is named.
    """

    asked: str
    name: str
    version: str | None
    split: str

    @classmethod
    def parse(cls, asked: str) -> DatasetName:
        """Parses `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`.

        Raises:
            DatasetError: if the text has another form.

        Example:
            >>> DatasetName.parse("tfds:c4/en:3.0.1:validation").split
            'validation'
        """
        match = _NAME.fullmatch(asked.removeprefix(TFDS_PREFIX))
        if match is None:
            raise DatasetError(
                f"{asked!r} does not name a dataset; write tfds:NAME, tfds:NAME/CONFIG or "
                "tfds:NAME:SPLIT"
            )
        return cls(asked, match["name"], match["version"], match["split"] or "train")


def default_folder() -> str:
    """Returns the folder of prepared datasets that TensorFlow Datasets uses by default."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")


def prepared_datasets(folder: str) -> list[str]:
    """Returns the datasets prepared in a folder, as `c4/en:3.0.1`, sorted."""
    file_system, root = file_system_of(expand_home(folder))
    root = root.rstrip("/")
    escaped = glob.escape(root)
    names = set()
    for depth in ("*", "*/*"):
        with raising_os_errors(folder):
            paths = file_system.glob(f"{escaped}/{depth}/*/dataset_info.json")
        for path in paths:
            *name, version, _ = path[len(root) + 1 :].split("/")
            names.add(f"{'/'.join(name)}:{version}")
    return sorted(names)


def describe_prepared(folder: str) -> str:
    """Returns which datasets a folder has, as a clause for messages."""
    names = prepared_datasets(folder)
    if not names:
        return "which has no prepared dataset"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"it has {', '.join(names[:_NAMES_SHOWN])}{more}"


def split_patterns(asked: str, text_field: str = "text", folder: str = "") -> list[str]:
    """Returns the shards of a dataset's split, as globs for `list_files`.

    Args:
        asked: Name of the form `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`; several splits are joined
            with `+`, as in `train+validation`.
        text_field: Feature that contains the text; a dotted path for a nested one.
        folder: Folder of prepared datasets, local or a URL; empty for the default of TensorFlow
            Datasets.

    Raises:
        DatasetError: if there is no such dataset, version, split or text feature, or if shards are
            missing or in an unsupported format; the message names what exists.
        OSError: if the folder cannot be read.
    """
    dataset = DatasetName.parse(asked)
    folder = expand_home(folder or default_folder()).rstrip("/")
    if "," in folder:
        raise DatasetError(
            f"{asked}: the folder {folder} has a comma in its name, which separates inputs; "
            "rename it"
        )
    if "[" in dataset.split:
        raise DatasetError(
            f"{asked}: only whole splits are read, such as {dataset.split.partition('[')[0]!r}; "
            "for a sample, curate it and keep a share"
        )

    # The dataset, in the version that was named or the newest.
    known = prepared_datasets(folder)
    versions = [
        name.rpartition(":")[2] for name in known if name.rpartition(":")[0] == dataset.name
    ]
    if not versions or dataset.version not in (None, *versions):
        of_version = f" of version {dataset.version}" if dataset.version else ""
        raise DatasetError(
            f"{asked}: there is no dataset {dataset.name!r}{of_version} in {folder} "
            f"({describe_prepared(folder)}); prepare it with: tfds build {dataset.name} "
            "--file_format=array_record"
        )
    version = dataset.version or max(versions, key=_version_order)
    place = f"{folder}/{dataset.name}/{version}"
    info = orjson.loads(read_head(f"{place}/dataset_info.json", _MAX_DESCRIPTION_BYTES))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in format_names():
        raise DatasetError(
            f"{asked} is stored as {file_format}, which is not supported; convert it: "
            f"tfds convert_format --root_data_dir={folder} --out_file_format=array_record"
        )
    _check_text_field(asked, place, text_field)

    # The shards of each split.
    splits = {split["name"]: split for split in info.get("splits", [])}
    patterns = []
    for name in dataset.split.split("+"):
        if name not in splits:
            raise DatasetError(
                f"{asked}: there is no split {name!r}; {dataset.name}/{version} has "
                f"{sorted(splits)}"
            )
        patterns.append(_shards(asked, place, info["name"], file_format, splits[name]))
    return patterns


def _version_order(version: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in version.split(".")]


def _shards(asked: str, place: str, dataset: str, file_format: str, split: dict[str, Any]) -> str:
    """Returns the glob of a split's shards, after checking that all of them exist."""
    # The names of shards follow a template, which a dataset may override.
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
        present = len(list_files([pattern]))
    except ValueError:
        present = 0
    if present != count:
        raise DatasetError(
            f"{asked}: {present} of {counted(count, 'file')} of the split {split['name']!r} exist "
            f"({pattern})"
        )
    return pattern


def _check_text_field(asked: str, place: str, text_field: str) -> None:
    """Raises a DatasetError if the text field is not among the features, or is not text."""
    try:
        features = orjson.loads(read_head(f"{place}/features.json", _MAX_DESCRIPTION_BYTES))
    except FileNotFoundError:
        return

    feature: dict[str, Any] = features
    for part in text_field.split("."):
        inner = feature.get("featuresDict", {}).get("features", {})
        if part not in inner:
            names = sorted(features.get("featuresDict", {}).get("features", {}))
            raise DatasetError(
                f"{asked}: text_field={text_field!r} is not among its features: {names}"
            )
        feature = inner[part]

    if "featuresDict" in feature or not (
        "text" in feature or feature.get("tensor", {}).get("dtype", "string") == "string"
    ):
        kind = str(feature.get("pythonClassName", "something else")).rpartition(".")[2]
        raise DatasetError(f"{asked}: text_field={text_field!r} is {kind}, not text")
