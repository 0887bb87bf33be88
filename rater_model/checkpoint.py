"""The rater checkpoint: a folder that holds a rater, and says plainly what is wrong with it if anything is.

    rater.json           format version, shape, tokenizer kind, digests of the other files, statistics of the
                         scores on a reference sample, provenance
    params.safetensors   the parameters
    tokenizer.json       the tokenizer

A folder on this machine or on any fsspec file system. Nothing in it is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import flax.traverse_util
import fsspec
import numpy as np
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem

from datarater.rater_model.rater import Params, RaterConfig, initialise_rater_shapes
from datarater.rater_model.tokenizer import Tokenizer, TokenizerError, load_tokenizer

FORMAT_VERSION = 1
RATER_FILE = "rater.json"
PARAMS_FILE = "params.safetensors"
TOKENIZER_FILE = "tokenizer.json"


class CheckpointError(ValueError):
    """A rater checkpoint that cannot be used; the message names the file and says what to do."""


@dataclasses.dataclass(frozen=True)
class ScoreStatistics:
    """What is known of the scores on a reference sample of documents.

    Scores are defined up to a constant alone, so the sample's mean is subtracted from every score;
    its spread and quantiles are kept to read a score by, and belong to this rater only.

    Attributes:
        center: the sample's mean before centring, subtracted from every score.
        standard_deviation: of the sample's scores.
        quantiles: the centred scores' quantiles at 0, 1/100, ..., 1 (101 values).
        sample_size: documents in the sample.
        max_windows: the window cap under which the sample was scored.
    """

    center: float = 0.0
    standard_deviation: float | None = None
    quantiles: tuple[float, ...] = ()
    sample_size: int = 0
    max_windows: int | None = None


@dataclasses.dataclass(frozen=True)
class RaterCheckpoint:
    """A rater with all that scoring needs.

    Attributes:
        config: the rater's shape.
        params: nested dict of arrays.
        tokenizer: turns texts into the rater's ids.
        statistics: of the scores on a reference sample.
        recommended_discard_fraction: what an evaluation found best, or None.
        provenance: free JSON: the training config, step, data, versions.
        digest: SHA-256 over everything above; empty until the checkpoint has been saved or loaded.
    """

    config: RaterConfig
    params: Params
    tokenizer: Tokenizer
    statistics: ScoreStatistics = ScoreStatistics()
    recommended_discard_fraction: float | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(values: dict[str, Any]) -> bytes:
    return (
        json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode("utf-8")


def _serialise(checkpoint: RaterCheckpoint) -> tuple[dict[str, bytes], str]:
    """Returns the content of each file and the checkpoint's digest."""
    flat = flax.traverse_util.flatten_dict(checkpoint.params, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    files = {
        PARAMS_FILE: safetensors.numpy.save(arrays),
        TOKENIZER_FILE: checkpoint.tokenizer.serialise(),
    }
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "rater": checkpoint.config.to_json(),
        "tokenizer": {"kind": checkpoint.tokenizer.kind},
        "files": {name: _sha256(data) for name, data in files.items()},
        "scores": {
            **dataclasses.asdict(checkpoint.statistics),
            "quantiles": list(checkpoint.statistics.quantiles),
        },
        "recommended_discard_fraction": checkpoint.recommended_discard_fraction,
        "provenance": checkpoint.provenance,
    }
    digest = _sha256(_canonical(values))
    files[RATER_FILE] = _canonical({**values, "digest": digest})
    return files, digest


def save_rater(path: str | os.PathLike[str], checkpoint: RaterCheckpoint) -> RaterCheckpoint:
    """Writes a rater checkpoint, whole or not at all.

    On a local file system the folder is written beside its place and renamed into it; an older
    checkpoint there is moved away in the same breath. Elsewhere `rater.json` is written last, and a
    folder without it is not a checkpoint.

    Args:
        path: the folder to write: local, or any fsspec URL.
        checkpoint: what to write; its `digest` is not looked at.

    Returns:
        The checkpoint with its digest.

    Raises:
        CheckpointError: the path exists and is not a rater checkpoint: nothing is overwritten.
        OSError: the folder could not be written.
    """
    files, digest = _serialise(checkpoint)
    file_system, folder = fsspec.core.url_to_fs(os.fspath(path))
    is_checkpoint = file_system.exists(f"{folder}/{RATER_FILE}")
    if (
        file_system.exists(folder)
        and not is_checkpoint
        and (file_system.isfile(folder) or file_system.ls(folder))
    ):
        raise CheckpointError(
            f"{path} exists and is no rater checkpoint; choose another place or remove it"
        )
    if isinstance(file_system, LocalFileSystem):
        _replace_local_folder(Path(folder), files)
    else:
        file_system.makedirs(folder, exist_ok=True)
        if is_checkpoint:
            file_system.rm_file(f"{folder}/{RATER_FILE}")
        for name in (PARAMS_FILE, TOKENIZER_FILE, RATER_FILE):
            file_system.pipe_file(f"{folder}/{name}", files[name])
    return dataclasses.replace(checkpoint, digest=digest)


def _replace_local_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:12]
    new, old = (folder.with_name(f".{folder.name}.{state}-{unique}") for state in ("new", "old"))
    new.mkdir()
    try:
        for name, data in files.items():
            with (new / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def load_rater(path: str | os.PathLike[str]) -> RaterCheckpoint:
    """Loads a rater checkpoint and checks every byte of it.

    Args:
        path: the folder: local, or any fsspec URL.

    Raises:
        CheckpointError: no checkpoint there, a missing file, a newer format version, a digest that
            does not match, or parameters that do not fit the shape; the message says which.
    """
    file_system, folder = fsspec.core.url_to_fs(os.fspath(path))

    def read(name: str) -> bytes:
        try:
            return file_system.cat_file(f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            if name == RATER_FILE:
                raise CheckpointError(
                    f"{path} holds no rater checkpoint: there is no {RATER_FILE}; "
                    "give the folder that datarater train wrote, such as WORKDIR/rater"
                ) from error
            raise CheckpointError(
                f"{path} is incomplete: {name} is missing; copy the whole folder again"
            ) from error

    raw = read(RATER_FILE)
    try:
        values = json.loads(raw)
        version = values["format_version"]
        if not isinstance(version, int):
            raise TypeError("format_version is no integer")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}/{RATER_FILE} is damaged: it is not the JSON that a rater has"
        ) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this datarater reads up to {FORMAT_VERSION}: install a newer one"
        )
    digest = values.pop("digest", None)
    if digest != _sha256(_canonical(values)) or raw != _canonical({**values, "digest": digest}):
        raise CheckpointError(
            f"{path}/{RATER_FILE} is damaged or was edited: its digest does not match"
        )
    contents = {name: read(name) for name in (PARAMS_FILE, TOKENIZER_FILE)}
    for name, data in contents.items():
        if _sha256(data) != values["files"][name]:
            raise CheckpointError(
                f"{path}/{name} is damaged: its SHA-256 differs from the one in {RATER_FILE}"
            )
    try:
        config = RaterConfig.from_json(values["rater"])
        tokenizer = load_tokenizer(values["tokenizer"]["kind"], contents[TOKENIZER_FILE])
        statistics = ScoreStatistics(
            **{**values["scores"], "quantiles": tuple(values["scores"]["quantiles"])}
        )
    except (KeyError, TypeError, ValueError, TokenizerError) as error:
        raise CheckpointError(f"{path} describes a rater that cannot be built: {error}") from error
    flat = safetensors.numpy.load(contents[PARAMS_FILE])
    expected = {
        name: leaf.shape
        for name, leaf in flax.traverse_util.flatten_dict(
            initialise_rater_shapes(config), sep="/"
        ).items()
    }
    if {name: array.shape for name, array in flat.items()} != expected:
        raise CheckpointError(
            f"{path}/{PARAMS_FILE} does not hold the parameters of the shape in {RATER_FILE}"
        )
    return RaterCheckpoint(
        config=config,
        params=flax.traverse_util.unflatten_dict(flat, sep="/"),
        tokenizer=tokenizer,
        statistics=statistics,
        recommended_discard_fraction=values["recommended_discard_fraction"],
        provenance=values["provenance"],
        digest=digest,
    )
