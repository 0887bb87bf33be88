"""The folder of a training run: its files, its lock, and whether a run may continue in it.

config.json             the config as it runs
tokenizer.json          the tokenizer, as in every rater checkpoint; a BPE is trained once
run.json                identity of the data, the tokenizer's SHA-256, and the versions at the start
prepared/               the windows of all sets, unless data.prepared names another folder
metrics/                metrics.csv and TensorBoard event files
wandb.json, wandb/      id of the run at Weights & Biases and its files, if the config asks for them
models/                 copies of the models of Hugging Face that the run starts from
profile/                traces of the meta-steps that the config names, if it does
start/                  the rater before the first meta-step, unless it is untrained
pool/                   the warm-up pool, by warm-up step; written once
checkpoints/            training checkpoints, by meta-step
raters/step_00000050/   a rater checkpoint every `export_every` meta-steps; step 0 is untrained
rater/                  the rater of the last meta-step, or the best in validations
summary.json            written last: the run is finished
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any, TextIO, TypeVar

import flax.traverse_util
from ml_collections import ConfigDict

from datarater.meta_training.config.outer_sets import outer_patterns
from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError, WorkdirError
from datarater.meta_training.run.preparation import OTHER_DATA
from datarater.meta_training.run.prepared_run import plain, versions
from datarater.rater_model.atomic_files import replace_file, write_json
from datarater.rater_model.json_codec import DecodingError, decode, to_plain

_LOG = logging.getLogger("datarater")

# Fields that may change when a run resumes. None changes the trees of arrays in its checkpoints.
_WITHOUT_EFFECT = (
    "checkpoint_every",
    "warmup_checkpoint_every",
    "keep_checkpoints",
    "report_every",
    "peak_flops",
    "compilation_cache",
    "profile.first_step",
    "profile.last_step",
    "minimum_effective_sample_share",
    "data.tfds_data_dir",
    "data.reader_processes",
    "wandb.project",
    "wandb.entity",
    "wandb.name",
    "wandb.mode",
    "data.prepared",  # the identity of the data and the tokenizer are compared
)
_REMOVED = ("data.shuffle_buffer",)  # which earlier versions had
# Fields whose default does something else than earlier versions did.
_IN_EARLIER_VERSIONS = {"data.exclude_near_duplicates": False}
_MOVABLE = (  # the identity of the data is compared instead
    "data.inner",
    "data.outer",
    "data.questions",
    "data.validation",
    "data.test",
)
_ROUNDING_ONLY = (
    "placement.",
    "meta_gradient.",
    *(
        f"{model}.{field}"
        for model in ("rater", "inner_model")
        for field in ("rematerialise_blocks", "scan_blocks", "attention", "attention_block")
    ),
    "inner_model.save_products",
    "inner_model.loss_chunk",
)


T = TypeVar("T")
Fields = dict[str, Any]  # values of a config by the fields' dotted names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run began with, as `run.json` has it.

    Attributes:
        data: Identity of the data.
        tokenizer: SHA-256 of the tokenizer; None in runs that early versions began.
        versions: Versions of the packages that the run's numbers depend on.
    """

    data: str
    tokenizer: str | None = None
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a finished run came to, as `summary.json` has it.

    Attributes:
        meta_steps: Meta-steps done.
        digest: Digest of the last rater.
        summary: Closing lines.
        stopped_at: Meta-step at which validations ended the run early; None if they did not.
        patience: `early_stopping.patience` of the run.
    """

    meta_steps: int
    digest: str
    summary: list[str]
    stopped_at: int | None = None
    patience: int = 0


class Workdir:
    """The folder of a run. As a context manager it creates the folder and locks it.

    Args:
        path: Folder of the run.
        writes: Whether this process locks the folder and writes into it. One process of a run does;
            the others, on other hosts, read it.

    Raises:
        ConfigError: The path is a URL.
        WorkdirError: On entering, if another process has locked the folder.
    """

    def __init__(self, path: str | os.PathLike[str], writes: bool = True) -> None:
        if "://" in os.fspath(path):
            raise ConfigError(
                f"--workdir={os.fspath(path)}: a workdir lies on a local or mounted file system; "
                "raters can be copied anywhere"
            )
        self.path, self.writes = Path(path), writes
        self.prepared = self.path / "prepared"
        self.config, self.tokenizer, self.run, self.summary = (
            self.path / f"{name}.json" for name in ("config", "tokenizer", "run", "summary")
        )
        self.models = self.path / "models"
        self.profile = self.path / "profile"
        self.metrics, self.start, self.pool, self.checkpoints, self.raters, self.rater = (
            self.path / name
            for name in ("metrics", "start", "pool", "checkpoints", "raters", "rater")
        )

    def rater_of_step(self, step: int) -> Path:
        """Returns the folder of a step's rater checkpoint."""
        return self.raters / f"step_{step:08d}"

    def __enter__(self) -> Workdir:
        self._lock = None
        if not self.writes:
            return self

        self._lock = locked_folder(
            self.path,
            "--workdir",
            f"another process is training in {self.path}; wait for it, or give another --workdir",
        )
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock:
            self._lock.close()

    def check_config(self, config: ConfigDict) -> None:
        """Refuses a config that differs from that of the run in this folder.

        The number of meta-steps may grow while the learning rate is constant; how often the run
        saves and reports may change, and so may the place of the same data. Fields that change how
        values are computed but not which values (placement, micro-batches, recomputation, attention
        in blocks) may change as well, with a warning that names them.

        A field that is newer than the run counts as having had its default, since each added field
        has a default that does what earlier versions did.

        Raises:
            WorkdirError: Other fields differ; the message names them.
        """
        recorded = _read(self.config, Fields)
        if recorded is None:
            return

        for name in _REMOVED:
            _remove(recorded, name)
        now, defaults = _flatten(plain(config)), _flatten(plain(default.get_config()))
        earlier = defaults | _IN_EARLIER_VERSIONS
        before = {name: earlier[name] for name in now if name in earlier} | _flatten(recorded)
        changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        refused = [name for name in changed if not _may_change(name, before, now)]
        if refused:
            raise WorkdirError(
                f"{self.path} has a run with another config: "
                f"{_differences(refused, before, now)}. Give the same config to resume it "
                "(meta_steps may be raised, unless the learning rate decays over them, and so may "
                "early_stopping.patience), or another --workdir"
            )

        rounding = [name for name in changed if name.startswith(_ROUNDING_ONLY)]
        if rounding:
            _LOG.warning(
                "the run continues with another arrangement: %s. It changes values by rounding "
                "only, but the rater will not be bit-identical to that of an uninterrupted run",
                _differences(rounding, before, now),
            )

    def continue_earlier(self, config: ConfigDict) -> None:
        """Sets the fields of a config that the run here was begun without, to what it did then.

        They are those whose default does something else than earlier versions did.
        """
        recorded = _read(self.config, Fields)
        if recorded is None:
            return
        before = _flatten(recorded)
        for name, value in _IN_EARLIER_VERSIONS.items():
            if name not in before:
                config.update_from_flattened_dict({name: value})
                _LOG.info("an earlier version began the run: it continues with %s=%s", name, value)

    def begun_tokenizer(self) -> bytes | None:
        """Returns the serialized tokenizer of the run in this folder; None if there is none yet.

        Raises:
            WorkdirError: `tokenizer.json` has changed.
        """
        beginning = _read(self.run, Beginning)
        if beginning is None or not self.tokenizer.exists():
            return None

        serialized = self.tokenizer.read_bytes()
        if _sha256(serialized) != beginning.tokenizer:
            raise WorkdirError(
                f"{self.tokenizer} is not the tokenizer that the run began with: it is damaged or "
                "was replaced. Restore it (every rater in raters/ has a copy), or give another "
                "--workdir"
            )
        return serialized

    def check_data(self, data: str, tokenizer: bytes) -> None:
        """Refuses other data or another tokenizer than the run here began with.

        Other versions of libraries are logged as a warning.

        Args:
            data: Identity of the data.
            tokenizer: The serialized tokenizer.

        Raises:
            WorkdirError: The data or the tokenizer differ.
        """
        beginning = _read(self.run, Beginning)
        if beginning is None:
            return

        if beginning.data != data:
            raise WorkdirError(OTHER_DATA.format(self.path))
        if beginning.tokenizer not in (None, _sha256(tokenizer)):
            raise WorkdirError(
                f"{self.tokenizer} is missing, and a newly trained tokenizer differs from it: "
                "restore it (every rater in raters/ has a copy), or give another --workdir"
            )

        changed = [
            f"{name} {old}"
            for name, old in beginning.versions.items()
            if versions().get(name) != old
        ]
        if changed:
            _LOG.warning(
                "the run began with %s: with other versions, it does not continue bit-identically",
                ", ".join(changed),
            )

    def claim(self, config: ConfigDict, data: str, tokenizer: bytes) -> None:
        """Records the config, the tokenizer and the data; removes partial files of a killed run."""
        if not self.writes:
            return

        # run.json comes last: with it a run counts as begun.
        write_json(self.config, plain(config))
        if not (self.run.exists() and self.tokenizer.exists()):
            replace_file(self.tokenizer, tokenizer)
        if not self.run.exists():
            write_json(
                self.run,
                to_plain(Beginning(data=data, tokenizer=_sha256(tokenizer), versions=versions())),
            )

        for folder in (self.path, self.raters):
            for left_over in (*folder.glob(".*.new-*"), *folder.glob(".*.old-*")):
                shutil.rmtree(left_over, ignore_errors=True)

    def finished(self, meta_steps: int, patience: int = 0) -> Summary | None:
        """Returns the summary of a finished run; None if there is more to do.

        Args:
            meta_steps: Meta-steps to do.
            patience: `early_stopping.patience`. A run that stopped early with a different patience
                is not finished.
        """
        summary = _read(self.summary, Summary)
        if summary is None or summary.meta_steps != meta_steps or not self.rater.exists():
            return None
        goes_on = summary.stopped_at is not None and summary.patience != patience
        return None if goes_on else summary


def locked_folder(path: Path, flag: str, taken: str) -> TextIO:
    """Creates a folder and locks it, until the returned file is closed.

    Args:
        path: The folder.
        flag: The flag that names it, for the message if it cannot be created.
        taken: Message if another process has locked it.

    Raises:
        OSError: The folder cannot be created.
        WorkdirError: Another process has locked it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno, f"{flag}: {path} cannot be created: {error.strerror}"
        ) from error

    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise WorkdirError(taken) from error
    return lock


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, kind: type[T]) -> T | None:
    """Returns the content of a JSON file; None if there is no file."""
    try:
        return decode(kind, path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodingError as error:
        raise WorkdirError(
            f"{path} is damaged: {error}; restore it, or give another --workdir"
        ) from error


def _remove(fields: Fields, name: str) -> None:
    """Removes a field, given by its dotted name, if it is there."""
    section, _, field = name.rpartition(".")
    fields.get(section, {}).pop(field, None)


def _flatten(config: Fields) -> Fields:
    flat: Fields = flax.traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")
    return flat


def _may_change(name: str, before: Fields, now: Fields) -> bool:
    """Returns whether a run may continue with a field changed."""
    if name not in before or name not in now:
        return False
    if name == "meta_steps":  # a decay over more steps would have had other rates from the start
        constant = before.get("meta_optimiser.schedule", "constant") == "constant"
        return bool(constant and now[name] > before[name])
    if name == "early_stopping.patience":  # 0 is for never, which is the most patient
        return bool(now[name] == 0 or 0 < before[name] < now[name])
    if name in _MOVABLE:  # an empty data.outer means that a share of the inner set is held out
        return bool(before[name]) == bool(now[name]) and _names(before[name]) == _names(now[name])
    return name in _WITHOUT_EFFECT or name.startswith(_ROUNDING_ONLY)


def _names(patterns: str) -> list[str]:
    """Returns the names of several sets; none where there is one set."""
    return list(outer_patterns(patterns)) if ";" in patterns else []


def _differences(names: list[str], before: Fields, now: Fields) -> str:
    return "; ".join(f"{name} was {_show(before, name)}, is {_show(now, name)}" for name in names)


def _show(values: Fields, name: str) -> str:
    return repr(values[name]) if name in values else "missing"
