"""The loop's order of dispatching, fetching, exporting and saving, with a step of a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from datarater.meta_training import loop
from datarater.meta_training.algorithm.meta_step import MetaState, MetaStepMetrics
from datarater.meta_training.configs import default
from datarater.meta_training.errors import NonFiniteError, StoppedError, WorkdirError
from datarater.meta_training.run.cost import RATES
from datarater.meta_training.run.metrics import METRICS_FILE, read_metrics
from datarater.meta_training.run.preparation import prepare_in_workdir
from datarater.meta_training.run.prepared_run import open_experiment
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.checkpoint import RaterCheckpoint
from tests.support.training import write_texts

Event = tuple[str, int]


def tiny_config(folder: Path) -> ConfigDict:
    config = default.get_config()
    config.data.inner = str(write_texts(folder / "pool.jsonl", 60))
    config.data.outer_share = 0.25
    config.meta_steps, config.length, config.inner_batch, config.outer_batch = 6, 16, 2, 2
    config.export_every, config.checkpoint_every, config.report_every = 3, 6, 2
    config.population.size, config.population.warmup_steps = 1, 0
    config.export.reference_documents = 4
    config.rater.width, config.rater.mlp_width, config.rater.ngram_rows = 8, 8, 16
    config.inner_model.width, config.inner_model.mlp_width, config.inner_model.layers = 8, 8, 1
    return config


class Numbers:
    """A metric on a device, which records when the host waits for it."""

    def __init__(self, step: int, values: np.ndarray, events: list[Event]) -> None:
        self.step, self.values, self.events = step, values, events

    def copy_to_host_async(self) -> None:
        """Does nothing: the copy starts without waiting."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.events[-1:] != [("fetch", self.step)]:
            self.events.append(("fetch", self.step))
        return self.values.astype(np.float32)


class Recorded:
    """A run whose meta-step only records that it was dispatched.

    Attributes:
        events: What happened, with the step of each.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, bad_step: int = 0) -> None:
        self.events: list[Event] = []
        self.workdir = folder / "work"
        self.config = tiny_config(folder)
        self.stop = StopSignal()
        self.bad_step, self.stop_at, self.done = bad_step, 0, 0

        monkeypatch.setattr(loop, "make_meta_step", lambda *_: self.meta_step)
        monkeypatch.setattr(loop, "export_rater", self.export_rater)
        save, report = loop.TrainingRun.save, loop.TrainingRun.report

        def recorded_save(run: loop.TrainingRun) -> None:
            self.events.append(("save", run.done))
            save(run)

        def recorded_report(run: loop.TrainingRun, step: int, scalars: Any) -> None:
            self.events.append(("report", step))
            report(run, step, scalars)

        monkeypatch.setattr(loop.TrainingRun, "save", recorded_save)
        monkeypatch.setattr(loop.TrainingRun, "report", recorded_report)

    def meta_step(self, state: MetaState, inner: Any, outer: Any) -> tuple[MetaState, Any]:
        """Records a dispatch."""
        self.done += 1
        self.events.append(("dispatch", self.done))
        if self.done == self.stop_at:
            self.stop._received = "SIGTERM"
        value = float("nan") if self.done == self.bad_step else 0.5
        fields = MetaStepMetrics._fields
        shapes = [
            (1, 1) if name.endswith("_PxK") else (1,) * name.endswith("_P") for name in fields
        ]
        numbers = [Numbers(self.done, np.full(shape, value), self.events) for shape in shapes]
        return state, MetaStepMetrics(*numbers)  # type: ignore[arg-type]

    def export_rater(
        self, path: str, config: Any, params: Any, tokenizer: Any, *_: Any
    ) -> tuple[RaterCheckpoint, np.ndarray]:
        """Records an export."""
        self.events.append(("export", self.done))
        scores_N = np.arange(4, dtype=np.float32)
        return RaterCheckpoint(config, jax.device_get(params), tokenizer), scores_N

    def train(self) -> None:
        """Trains to the end."""
        with Workdir(self.workdir) as workdir, self.stop:
            prepare_in_workdir(self.config, workdir.prepared, None, workdir.run.exists())
            loop.train(open_experiment(self.config, workdir.prepared), workdir, self.stop)

    def rows(self) -> list[dict[str, float]]:
        """Returns the rows of the run's metrics."""
        return read_metrics(self.workdir / "metrics" / METRICS_FILE)


def test_the_next_step_is_dispatched_before_the_metrics_of_the_last_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Recorded(monkeypatch, tmp_path)
    run.train()
    assert run.events == [
        ("export", 0),  # the untrained rater
        ("dispatch", 1),
        ("dispatch", 2),
        ("fetch", 1),
        ("report", 1),
        ("dispatch", 3),
        ("fetch", 2),
        ("report", 2),
        ("fetch", 3),  # nothing is exported that is not known to be finite
        ("export", 3),
        ("report", 3),
        ("dispatch", 4),
        ("dispatch", 5),
        ("fetch", 4),
        ("report", 4),
        ("dispatch", 6),
        ("fetch", 5),
        ("report", 5),
        ("fetch", 6),
        ("export", 6),
        ("report", 6),
        ("save", 6),
    ]
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("bad_step", [2, 3])
def test_a_metric_that_is_not_finite_ends_the_run_before_anything_is_written(
    bad_step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Recorded(monkeypatch, tmp_path, bad_step)
    with pytest.raises(NonFiniteError, match=f"meta-step {bad_step}: .*; there is no checkpoint"):
        run.train()
    assert run.events[-1] == ("fetch", bad_step)
    assert [event for event in run.events if event[0] in ("export", "save")] == [("export", 0)]
    assert [row["step"] for row in run.rows()] == list(range(1, bad_step))


def test_a_signal_saves_the_step_that_was_dispatched_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Recorded(monkeypatch, tmp_path)
    run.stop_at = 2
    with pytest.raises(StoppedError, match="stopped after meta-step 2 of 6; saved"):
        run.train()
    assert run.events[-5:] == [
        ("fetch", 1),
        ("report", 1),
        ("fetch", 2),
        ("report", 2),
        ("save", 2),
    ]
    assert [row["step"] for row in run.rows()] == [1, 2]

    # The resumed run continues with step 3.
    run.stop, run.stop_at = StopSignal(), 0
    run.events.clear()
    run.train()
    assert run.events[:3] == [("dispatch", 3), ("fetch", 3), ("export", 3)]
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5, 6]


def test_a_position_that_an_earlier_version_wrote_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Recorded(monkeypatch, tmp_path)
    run.train()
    (stored,) = run.workdir.glob("checkpoints/6/host/metadata")
    position = json.loads(stored.read_bytes())
    position["inner_batches"] = {"parent": {"next_index": 3}, "parent_window_start_state": {}}
    stored.write_text(json.dumps(position))
    run.config.meta_steps = 7
    with pytest.raises(WorkdirError, match="cannot find its position in the data again: continue"):
        run.train()


def test_every_row_has_how_fast_its_step_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Recorded(monkeypatch, tmp_path)
    run.train()
    tokens = (2 * 2 + 2) * 16  # (updates x inner + outer) x length
    for row in run.rows():
        assert row["step_seconds"] > 0
        assert row["tokens_per_second"] == pytest.approx(tokens / row["step_seconds"])
        assert "mfu" not in row  # a CPU has no peak to compare with

    run.config.peak_flops, run.config.meta_steps = 1e9, 7
    run.train()
    before, last = run.rows()[-2:]
    assert set(RATES) <= set(last)
    flops = last["flops"] - before["flops"]
    assert last["mfu"] == pytest.approx(flops / last["step_seconds"] / 1e9)


def test_the_named_steps_are_traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Recorded(monkeypatch, tmp_path)
    run.config.profile.first_step, run.config.profile.last_step = 1, 2
    traced: list[Event] = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace

    def recorded_start(folder: Path) -> None:
        traced.extend(run.events)
        start(folder)

    def recorded_stop() -> None:
        traced.append(run.events[-1])
        stop()

    monkeypatch.setattr(jax.profiler, "start_trace", recorded_start)
    monkeypatch.setattr(jax.profiler, "stop_trace", recorded_stop)
    run.train()
    assert traced == [("export", 0), ("report", 2)]  # both steps are done when the trace ends
    (trace,) = run.workdir.rglob("profile/**/*.xplane.pb")
    assert trace.stat().st_size > 0
