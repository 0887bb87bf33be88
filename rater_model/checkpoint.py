"""Saves and loads rater checkpoints, and reports clearly what is wrong with a damaged one.

A checkpoint is a folder on the local disk or on any fsspec file system:

    rater.json           format version, kind and shape, tokenizer kind, digests of the other
                         files, statistics of the scores on a reference sample, provenance
    params.safetensors   the parameters
    tokenizer.json       the tokenizer
    recommendation.json  the share to keep that an evaluation found best, if one did; it is not part
                         of the rater and of its digest

Nothing in it is pickled. A rater without a kind is a transformer (`RaterConfig`); the kind `ngram`
is a student (`NgramConfig`), whose parameters include the scores of its held-out documents. JAX and
Flax load with the first parameters of a transformer: selecting and students need neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem

from datarater.rater_model.atomic_files import replacing
from datarater.rater_model.documents.files import file_system_of
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.ngram_rater import KIND as NGRAM
from datarater.rater_model.ngram_rater import NgramConfig
from datarater.rater_model.tokenizer import Tokenizer, TokenizerError, load_tokenizer

if TYPE_CHECKING:
    from datarater.rater_model.rater import Params, RaterConfig

FORMAT_VERSION = 1
RATER_FILE = "rater.json"
PARAMS_FILE = "params.safetensors"
TOKENIZER_FILE = "tokenizer.json"
RECOMMENDATION_FILE = "recommendation.json"


class CheckpointError(ValueError):
    """A rater checkpoint cannot be used; the message names the file and a remedy."""


@dataclasses.dataclass(frozen=True)
class ScoreStatistics:
    """Statistics of the scores of a reference sample of documents.

    Scores are defined only up to a constant, so the sample's mean is subtracted from every score.
    Its spread and quantiles help to interpret a score; they belong to this rater only.

    Attributes:
        center: Mean of the sample's scores before centering, subtracted from every score.
        standard_deviation: Standard deviation of the sample's scores.
        quantiles: Quantiles of the centered scores at 0, 1/100, ..., 1 (101 values).
        sample_size: Number of documents in the sample.
        max_windows: Maximum number of windows per document when the sample was scored.
    """

    center: float = 0.0
    standard_deviation: float | None = None
    quantiles: tuple[float, ...] = ()
    sample_size: int = 0
    max_windows: int | None = None


def percentiles(scores_N: np.ndarray) -> tuple[float, ...]:
    """Returns the quantiles of centered scores that `ScoreStatistics` records."""
    return tuple(float(quantile) for quantile in np.quantile(scores_N, np.linspace(0, 1, 101)))


@dataclasses.dataclass(frozen=True)
class RaterCheckpoint:
    """A rater with everything that scoring needs.

    Attributes:
        config: Shape of the rater, whose class is its kind.
        params: Parameters, a nested dict of arrays; of a student, a dict by names in the file.
        tokenizer: Tokenizer of the rater.
        statistics: Statistics of the scores on a reference sample.
        recommended_discard_fraction: Best fraction to discard according to an evaluation, or None.
        provenance: Origin as free JSON: the training config, step, data, versions.
        digest: SHA-256 over everything above; empty until the checkpoint has been saved or loaded.
    """

    config: RaterConfig | NgramConfig
    params: Params
    tokenizer: Tokenizer
    statistics: ScoreStatistics = ScoreStatistics()
    recommended_discard_fraction: float | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The share of a corpus to keep, as an evaluation found it best for a rater.

    Attributes:
        keep: Share to keep.
        difference: Mean difference of the loss in nats per token from that of the whole corpus.
        low: Lower end of its interval.
        high: Upper end of its interval.
        confidence: Coverage of the interval.
        seeds: Number of seeds that it was measured on.
        rater: Digest of the rater.
        corpus: Digest of the corpus that was filtered.
    """

    keep: float
    difference: float
    low: float
    high: float
    confidence: float
    seeds: int
    rater: str
    corpus: str


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(values: dict[str, Any]) -> bytes:
    return (
        json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode("utf-8")


def _serialise(checkpoint: RaterCheckpoint) -> tuple[dict[str, bytes], str]:
    """Returns the content of each file and the checkpoint's digest."""
    flat = checkpoint.params
    if not isinstance(checkpoint.config, NgramConfig):
        import flax.traverse_util

        flat = flax.traverse_util.flatten_dict(flat, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    files = {
        PARAMS_FILE: safetensors.numpy.save(arrays),
        TOKENIZER_FILE: checkpoint.tokenizer.serialise(),
    }

    # The description, with a digest over the description itself, and so over everything.
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


def checkpoint_files(checkpoint: RaterCheckpoint) -> dict[str, bytes]:
    """Returns the content of each file that `save_rater` writes, by name."""
    files, _ = _serialise(checkpoint)
    return files


def save_rater(path: str | os.PathLike[str], checkpoint: RaterCheckpoint) -> RaterCheckpoint:
    """Writes a rater checkpoint, completely or not at all.

    On a local file system a new folder is written next to the target and then renamed to it, and an
    older checkpoint there is replaced. On other file systems `rater.json` is written last: a folder
    without it is not a checkpoint.

    Args:
        path: Folder to write: local, or any fsspec URL.
        checkpoint: Checkpoint to write; its `digest` is ignored.

    Returns:
        The checkpoint with its digest.

    Raises:
        CheckpointError: if the path exists and is not a rater checkpoint: nothing is overwritten.
        OSError: if the folder cannot be written.
    """
    is_checkpoint = check_replaceable(path)
    files, digest = _serialise(checkpoint)
    file_system, folder = file_system_of(os.fspath(path))
    if isinstance(file_system, LocalFileSystem):
        _replace_local_folder(Path(folder), files)
    else:
        file_system.makedirs(folder, exist_ok=True)
        if is_checkpoint:
            file_system.rm_file(f"{folder}/{RATER_FILE}")
        for name in (PARAMS_FILE, TOKENIZER_FILE, RATER_FILE):
            file_system.pipe_file(f"{folder}/{name}", files[name])
    return dataclasses.replace(checkpoint, digest=digest)


def check_replaceable(path: str | os.PathLike[str]) -> bool:
    """Refuses a folder that a checkpoint must not replace; only a checkpoint or nothing may be.

    Args:
        path: Folder to write: local, or any fsspec URL.

    Returns:
        Whether a checkpoint is there.

    Raises:
        CheckpointError: if the path exists and is not a rater checkpoint.
        OSError: if the file system fails.
    """
    file_system, folder = file_system_of(os.fspath(path))
    is_checkpoint = bool(file_system.exists(f"{folder}/{RATER_FILE}"))
    if (
        file_system.exists(folder)
        and not is_checkpoint
        and (file_system.isfile(folder) or file_system.ls(folder))
    ):
        raise CheckpointError(
            f"{path} exists and is not a rater checkpoint; choose another folder or remove it"
        )
    return is_checkpoint


def _replace_local_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files to a new folder and renames it; a failure leaves the old folder in place."""
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
        path: Folder of the checkpoint: local, or any fsspec URL.

    Raises:
        CheckpointError: if there is no checkpoint, a file is missing, the format version is newer,
            a digest does not match, or the parameters do not fit the shape; the message says which.
        OSError: if the file system fails.
    """
    values, digest = _read_description(path)

    # The other files, by their digests.
    contents = {name: _read(path, name) for name in (PARAMS_FILE, TOKENIZER_FILE)}
    for name, data in contents.items():
        if _sha256(data) != values["files"][name]:
            raise CheckpointError(
                f"{path}/{name} is damaged: its SHA-256 differs from the one in {RATER_FILE}"
            )

    try:
        config = _config(values["rater"])
        tokenizer = load_tokenizer(values["tokenizer"]["kind"], contents[TOKENIZER_FILE])
        statistics = _statistics(values)
    except (KeyError, TypeError, ValueError, TokenizerError) as error:
        raise CheckpointError(f"{path} describes a rater that cannot be built: {error}") from error

    # The parameters must have exactly the shapes that the config describes.
    flat = safetensors.numpy.load(contents[PARAMS_FILE])
    if {name: array.shape for name, array in flat.items()} != _shapes(config):
        raise CheckpointError(
            f"{path}/{PARAMS_FILE} does not have the parameters of the shape in {RATER_FILE}"
        )

    return RaterCheckpoint(
        config=config,
        params=_params(config, flat),
        tokenizer=tokenizer,
        statistics=statistics,
        recommended_discard_fraction=values["recommended_discard_fraction"],
        provenance=values["provenance"],
        digest=digest,
    )


def _config(values: dict[str, Any]) -> RaterConfig | NgramConfig:
    if values.get("kind") == NGRAM:
        return NgramConfig.from_json(values)

    from datarater.rater_model.rater import RaterConfig

    return RaterConfig.from_json(values)


def _shapes(config: RaterConfig | NgramConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a rater's parameters by their names in the file."""
    if isinstance(config, NgramConfig):
        return config.shapes()

    import flax.traverse_util

    from datarater.rater_model.rater import initialise_rater_shapes

    leaves = flax.traverse_util.flatten_dict(initialise_rater_shapes(config), sep="/")
    return {name: leaf.shape for name, leaf in leaves.items()}


def _params(config: RaterConfig | NgramConfig, flat: dict[str, np.ndarray]) -> Params:
    """Returns the parameters as their scorer takes them: those of a student by name."""
    if isinstance(config, NgramConfig):
        return flat

    import flax.traverse_util

    return flax.traverse_util.unflatten_dict(flat, sep="/")


def load_statistics(path: str | os.PathLike[str]) -> tuple[str, ScoreStatistics]:
    """Returns the digest and the statistics of a checkpoint, without loading its parameters.

    Raises:
        CheckpointError: if there is no checkpoint, or its description is damaged or newer.
        OSError: if the file system fails.
    """
    values, digest = _read_description(path)
    try:
        return digest, _statistics(values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes a rater that cannot be built: {error}") from error


def save_recommendation(path: str | os.PathLike[str], recommendation: Recommendation) -> None:
    """Writes the share to keep into a checkpoint; an older one there is replaced.

    Raises:
        OSError: if the file cannot be written.
    """
    file_system, folder = file_system_of(os.fspath(path))
    content = _canonical(dataclasses.asdict(recommendation))
    with raising_os_errors(os.fspath(path)):
        if isinstance(file_system, LocalFileSystem):
            with replacing(Path(folder) / RECOMMENDATION_FILE) as new:
                new.write_bytes(content)
        else:
            file_system.pipe_file(f"{folder}/{RECOMMENDATION_FILE}", content)


def load_recommendation(path: str | os.PathLike[str]) -> Recommendation | None:
    """Returns the share to keep that a checkpoint recommends; None without one.

    Raises:
        CheckpointError: if there is no checkpoint, or the recommendation is damaged or that of
            another rater.
        OSError: if the file system fails.
    """
    _, digest = _read_description(path)
    file_system, folder = file_system_of(os.fspath(path))
    try:
        with raising_os_errors(os.fspath(path)):
            content = file_system.cat_file(f"{folder}/{RECOMMENDATION_FILE}")
    except FileNotFoundError:
        return None

    try:
        recommendation = Recommendation(**json.loads(content))
        usable = 0 < recommendation.keep <= 1
    except (ValueError, TypeError):
        usable = False
    if not usable:
        raise CheckpointError(f"{path}/{RECOMMENDATION_FILE} is damaged; remove it")
    if recommendation.rater != digest:
        raise CheckpointError(
            f"{path}/{RECOMMENDATION_FILE} was written for another rater; remove it"
        )
    return recommendation


def _read(path: str | os.PathLike[str], name: str) -> bytes:
    """Returns the content of a file of a checkpoint."""
    file_system, folder = file_system_of(os.fspath(path))
    try:
        with raising_os_errors(os.fspath(path)):
            return bytes(file_system.cat_file(f"{folder}/{name}"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if name == RATER_FILE:
            raise CheckpointError(
                f"{path} is not a rater checkpoint: there is no {RATER_FILE}; "
                "give the folder that datarater train wrote, such as WORKDIR/rater"
            ) from error
        raise CheckpointError(
            f"{path} is incomplete: {name} is missing; copy the whole folder again"
        ) from error


def _read_description(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Returns the checked description of a checkpoint, and the checkpoint's digest."""
    # The version comes first, since a newer one may have other keys.
    raw = _read(path, RATER_FILE)
    try:
        values = json.loads(raw)
        version = values["format_version"]
        if not isinstance(version, int):
            raise TypeError("format_version is not an integer")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}/{RATER_FILE} is damaged: it is not the JSON of a rater"
        ) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this datarater reads up to {FORMAT_VERSION}: "
            "install a newer one"
        )

    digest = values.pop("digest", None)
    if digest != _sha256(_canonical(values)) or raw != _canonical({**values, "digest": digest}):
        raise CheckpointError(
            f"{path}/{RATER_FILE} is damaged or was edited: its digest does not match"
        )
    return values, digest


def _statistics(values: dict[str, Any]) -> ScoreStatistics:
    return ScoreStatistics(
        **{**values["scores"], "quantiles": tuple(values["scores"]["quantiles"])}
    )
