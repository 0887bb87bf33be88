"""Metrics at Weights & Biases: real offline runs, and failures that do not end a run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import types
from pathlib import Path
from typing import Any

import pytest

from datarater.meta_training.config.checks import check
from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError, WorkdirError
from datarater.meta_training.run.metrics import (
    METRICS_FILE,
    MetricsWriter,
    Writers,
    read_metrics,
)
from datarater.meta_training.run.wandb_writer import RUN_FILE, WandbWriter

OPTIONS = {"project": "raters", "entity": "", "name": "", "mode": "offline"}


def test_a_resumed_run_continues_the_same_run_offline(tmp_path: Path) -> None:
    for steps in ((1, 2), (3,)):
        writer = WandbWriter(tmp_path, OPTIONS, {"length": 16})
        for step in steps:
            writer.write(step, {"outer_loss": 2.5, "mfu": None})
        writer.close()

    identity = json.loads((tmp_path / RUN_FILE).read_text())["id"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"outer_loss" in content
    assert b"mfu" not in content  # a step without a value


class FakeRun:
    """A run that fails from a step on, and counts what it is asked to log."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at, self.logged = fails_at, list[int]()

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append(step)
        if step >= self.fails_at:
            raise ConnectionError("no route\nto host")

    def finish(self) -> None:
        raise AssertionError("a run that failed is left alone")


def fake_wandb(run: FakeRun | None) -> Any:
    def init(**_: Any) -> FakeRun:
        if run is None:
            raise RuntimeError("no API key")
        return run

    return types.SimpleNamespace(init=init, Settings=lambda **settings: settings)


def test_a_failure_warns_once_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(fails_at=2)
    with Writers(
        MetricsWriter(tmp_path / "metrics"),
        WandbWriter(tmp_path, OPTIONS, {}, fake_wandb(run)),
    ) as writers:
        for step in (1, 2, 3):
            writers.write(step, {"outer_loss": 2.5})
    assert run.logged == [1, 2]
    assert len(read_metrics(tmp_path / "metrics" / METRICS_FILE)) == 3
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        "Weights & Biases gets no more metrics of this run, metrics.csv still does: "
        "ConnectionError: no route to host"
    )


def test_a_run_that_cannot_start_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = WandbWriter(tmp_path, OPTIONS, {}, fake_wandb(None))
    writer.write(1, {"outer_loss": 2.5})
    writer.close()
    assert len(caplog.records) == 1
    assert "RuntimeError: no API key" in caplog.text


def test_the_end_of_a_run_does_not_wait_for_a_server_that_is_gone(tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    module = types.SimpleNamespace(
        init=lambda **options: given.update(options),
        Settings=lambda **settings: settings,
    )
    WandbWriter(tmp_path, OPTIONS, {}, module)
    assert 0 < given["settings"]["finish_timeout"] <= 60  # wandb's own default is no limit
    assert "finish_timeout" in importlib.import_module("wandb").Settings.model_fields


def test_a_damaged_file_of_the_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    with pytest.raises(WorkdirError, match=f"{RUN_FILE} is damaged"):
        WandbWriter(tmp_path, OPTIONS, {}, fake_wandb(None))


@pytest.mark.parametrize("only_a_folder", [False, True])
def test_a_project_without_the_package_is_refused_before_work(
    only_a_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    spec = types.SimpleNamespace(origin=None) if only_a_folder else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "wandb" else real(name)
    )
    config = default.get_config()
    config.data.inner = "corpus/*.jsonl"
    check(config)  # without a project the package is not needed

    config.wandb.project = "raters"
    with pytest.raises(ConfigError, match=r"pip install 'datarater\[wandb\]'"):
        check(config)


def test_an_unknown_mode_is_refused() -> None:
    config = default.get_config()
    config.data.inner, config.wandb.mode = "corpus/*.jsonl", "dryrun"
    with pytest.raises(ConfigError, match=r"wandb\.mode must be one of .*not 'dryrun'"):
        check(config)
