"""Writes the metrics of a run to Weights & Biases, if its config names a project there."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from datarater.meta_training.errors import ConfigError, WorkdirError
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.json_codec import DecodingError, decode

_LOG = logging.getLogger("datarater")
RUN_FILE = "wandb.json"
_FINISH_SECONDS = 60.0


def check_wandb(config: ConfigDict) -> None:
    """Refuses a config that names a project if wandb is not installed.

    Raises:
        ConfigError: wandb is missing.
    """
    # A folder `wandb`, such as wandb itself makes, has a spec too, but no origin.
    spec = importlib.util.find_spec("wandb") if config.wandb.project else None
    if config.wandb.project and (spec is None or spec.origin is None):
        raise ConfigError(
            f"wandb.project is {config.wandb.project!r}, but wandb is not installed: "
            "pip install 'datarater[wandb]', or leave wandb.project empty"
        )


class WandbWriter:
    """Writes scalar metrics by step to one run of Weights & Biases.

    The run's id is kept in the workdir, so that a resumed run continues the same run there. It is
    for watching: whatever goes wrong there, one warning is logged and the training continues.

    Args:
        folder: Workdir of the run; wandb keeps its own files in the folder `wandb` there.
        options: Section `wandb` of the config: project, entity, name and mode.
        config: The whole config, to be shown there.
        module: The module `wandb`; imported if None.

    Raises:
        WorkdirError: The file with the run's id is damaged.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, str],
        config: Mapping[str, Any],
        module: Any = None,
    ) -> None:
        identity = _run_id(folder / RUN_FILE)
        self._run: Any = None

        def start() -> Any:
            # Imported here, since it takes seconds.
            wandb = module or importlib.import_module("wandb")
            return wandb.init(
                project=options["project"],
                entity=options["entity"] or None,
                name=options["name"] or folder.resolve().name,
                mode=options["mode"] or None,
                id=identity,
                resume="allow",
                dir=str(folder),
                config=dict(config),
                # The terminal is that of the training, which never waits for an answer, nor for
                # a server that is gone: at the end, what is not sent yet stays in the workdir.
                settings=wandb.Settings(
                    console="off", silent=True, login_timeout=30, finish_timeout=_FINISH_SECONDS
                ),
            )

        self._run = self._try(start)

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's metrics.

        A resumed run repeats the steps after its last checkpoint. They have the same values as
        before, and wandb keeps those that it has.

        Args:
            step: Step of the metrics.
            scalars: Values by name; None where a step has no such value.
        """
        values = {name: value for name, value in scalars.items() if value is not None}
        if self._run:
            self._try(lambda: self._run.log(values, step=step))

    def close(self) -> None:
        """Waits until everything is written, or a minute has passed."""
        if self._run:
            self._try(self._run.finish)
        self._run = None

    def _try(self, action: Callable[[], Any]) -> Any:
        """Returns what an action returns; after a failure None, and the run is left alone."""
        try:
            return action()
        except Exception as error:  # of any kind: the network, the server, the account, the disk
            self._run = None
            _LOG.warning(
                "Weights & Biases gets no more metrics of this run, metrics.csv still does: %s: %s",
                type(error).__name__,
                " ".join(str(error).split()),
            )
            return None


def _run_id(path: Path) -> str:
    """Returns the id of the run in a file; makes one if there is no file.

    Raises:
        WorkdirError: The file is damaged.
    """
    try:
        return decode(dict[str, str], path.read_bytes())["id"]
    except FileNotFoundError:
        identity = secrets.token_hex(8)
        write_json(path, {"id": identity})
        return identity
    except (DecodingError, KeyError) as error:
        raise WorkdirError(
            f"{path} is damaged: {error}; restore it, or delete it to begin another run of "
            "Weights & Biases"
        ) from error
