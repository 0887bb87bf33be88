"""The folder of a training run: what is where, who holds it, and whether a run may go on in it.

config.json                 the config as it runs
tokenizer.json              the tokenizer, as it travels in every rater checkpoint; a BPE is trained once
run.json                    which data it reads, the tokenizer's SHA-256, and the versions it began with
metrics/                    metrics.csv and TensorBoard event files
pool/                       the warm-up pool, by warm-up step; written once
checkpoints/                training checkpoints, by meta-step
raters/step_00000050/       a rater checkpoint every `export_every` meta-steps, the untrained one as step 0
rater/                      the rater of the last meta-step
summary.json                written last: the run is finished
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError, WorkdirError
from datarater.meta_training.run.prepared_run import plain, versions

_LOG = logging.getLogger("datarater")

# What may change when a run goes on. Neither kind changes the trees of arrays in its checkpoints.
_OF_NO_RESULT = (
    "checkpoint_every",
    "warmup_checkpoint_every",
    "keep_checkpoints",
    "report_every",
    "minimum_effective_sample_share",
    "data.tfds_data_dir",
)
_MOVABLE = (
    "data.inner",
    "data.outer",
)  # the data's identity is held against the one that the run began with
_BUT_FOR_ROUNDING = (
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


class Workdir:
    """A run's folder. As a context manager it is made, and held against other runs for as long.

    Args:
        path: the folder.
        writes: whether this process is the one of its run that holds the folder and writes into it;
            the others, on other hosts, read it.

    Raises:
        ConfigError: the path is a URL.
        WorkdirError: on entering, if another process holds it.
    """

    def __init__(self, path: str | os.PathLike[str], writes: bool = True) -> None:
        if "://" in os.fspath(path):
            raise ConfigError(
                f"--workdir={os.fspath(path)}: a workdir lies on a local or mounted file system; raters can be copied "
                "anywhere"
            )
        self.path, self.writes = Path(path), writes
        self.config, self.tokenizer, self.run, self.summary = (
            self.path / f"{name}.json" for name in ("config", "tokenizer", "run", "summary")
        )
        self.metrics, self.pool, self.checkpoints, self.raters, self.rater = (
            self.path / name for name in ("metrics", "pool", "checkpoints", "raters", "rater")
        )

    def rater_of_step(self, step: int) -> Path:
        """Returns where the rater checkpoint of a step is."""
        return self.raters / f"step_{step:08d}"

    def __enter__(self) -> Workdir:
        self._lock = None
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                error.errno, f"--workdir: {self.path} cannot be made: {error.strerror}"
            ) from error
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise WorkdirError(
                f"another process is training in {self.path}; wait for it, or give another --workdir"
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock:
            self._lock.close()

    def check_config(self, config: dict[str, Any]) -> None:
        """Refuses a config with which the run here would become another one.

        It may be given more meta-steps, another rhythm of checkpoints and reports, and another
        place where the same data lie. What changes how values are computed but not which (where
        things live, micro-batches, what is recomputed, attention in blocks) may change too, and a
        warning says what of it did.

        A field that is newer than the run counts as having had its default of
        `meta_training/configs/default.py`: a field that is added gets the default that does what
        was done without it.

        Raises:
            WorkdirError: other fields differ; the message names them.
        """
        begun = _read(self.config)
        if begun is None:
            return
        now, defaults = _flatten(config), _flatten(plain(default.get_config()))
        before = {name: defaults[name] for name in now if name in defaults} | _flatten(begun)
        changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        refused = [name for name in changed if not _may_change(name, before, now)]
        if refused:
            raise WorkdirError(
                f"{self.path} holds a run with another config: {_differences(refused, before, now)}. Give the same "
                "config to resume it (meta_steps may be raised), or another --workdir"
            )
        rounding = [name for name in changed if name.startswith(_BUT_FOR_ROUNDING)]
        if rounding:
            _LOG.warning(
                "the run goes on in another arrangement: %s. That changes values by rounding alone, but the rater will "
                "no longer be, bit for bit, that of a run left alone",
                _differences(rounding, before, now),
            )

    def begun_tokenizer(self) -> bytes | None:
        """Returns the serialised tokenizer that the run here was begun with; None where it is to be made.

        Raises:
            WorkdirError: `tokenizer.json` is not what it was.
        """
        begun = _read(self.run)
        if begun is None or not self.tokenizer.exists():
            return None
        serialised = self.tokenizer.read_bytes()
        if _sha256(serialised) != begun.get("tokenizer"):
            raise WorkdirError(
                f"{self.tokenizer} is not the tokenizer that the run began with: it is damaged or was exchanged. "
                "Restore it (every rater in raters/ has a copy), or give another --workdir"
            )
        return serialised

    def check_data(self, data: str, tokenizer: bytes) -> None:
        """Refuses data or a tokenizer that the run here was not begun with, and says so where versions differ.

        Args:
            data: the identity of the data.
            tokenizer: the serialised tokenizer.

        Raises:
            WorkdirError: the data or the tokenizer differ.
        """
        begun = _read(self.run)
        if begun is None:
            return
        if begun["data"] != data:
            raise WorkdirError(
                f"{self.path} holds a run on other data: the files or datasets of data.inner and data.outer have "
                "changed since it began, or others are named now. Restore them, or give another --workdir"
            )
        # A run that an earlier version began recorded none.
        if begun.get("tokenizer", _sha256(tokenizer)) != _sha256(tokenizer):
            raise WorkdirError(
                f"{self.tokenizer} is lost, and a tokenizer trained anew is another one: restore it (every rater in "
                "raters/ has a copy), or give another --workdir"
            )
        changed = [
            f"{name} {old}"
            for name, old in begun["versions"].items()
            if versions().get(name) != old
        ]
        if changed:
            _LOG.warning(
                "the run began with %s: it goes on with other versions, and no longer bit for bit",
                ", ".join(changed),
            )

    def claim(self, config: dict[str, Any], data: str, tokenizer: bytes) -> None:
        """Writes down the config, the tokenizer and the data, and removes what a killed process left half-written."""
        if not self.writes:
            return
        write_json(self.config, config)
        if not (self.run.exists() and self.tokenizer.exists()):
            _write(self.tokenizer, tokenizer)
        if not self.run.exists():  # after the tokenizer: only with it does a run count as begun
            write_json(
                self.run, {"data": data, "tokenizer": _sha256(tokenizer), "versions": versions()}
            )
        for folder in (self.path, self.raters):
            for left_over in (*folder.glob(".*.new-*"), *folder.glob(".*.old-*")):
                shutil.rmtree(left_over, ignore_errors=True)

    def finished(self, meta_steps: int) -> dict[str, Any] | None:
        """Returns the summary of a run finished after that many meta-steps, or None."""
        summary = _read(self.summary)
        return (
            summary
            if summary and summary["meta_steps"] == meta_steps and self.rater.exists()
            else None
        )


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, whole or not at all."""
    _write(path, (json.dumps(values, indent=2) + "\n").encode("utf-8"))


def _write(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    os.replace(new, path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WorkdirError(
            f"{path} is damaged: it is not JSON; restore it, or give another --workdir"
        ) from error
    return values


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def _may_change(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether a run may go on with a field changed."""
    if name not in before or name not in now:
        return False
    if name == "meta_steps":
        return bool(now[name] > before[name])
    if name in _MOVABLE:  # where data.outer is empty, a share of the inner set is held out
        return bool(before[name]) == bool(now[name])
    return name in _OF_NO_RESULT or name.startswith(_BUT_FOR_ROUNDING)


def _differences(names: list[str], before: dict[str, Any], now: dict[str, Any]) -> str:
    return "; ".join(f"{name} was {_show(before, name)}, is {_show(now, name)}" for name in names)


def _show(values: dict[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"
