"""Runs that continue with other devices, micro-batches or recomputation, or with moved data."""

import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from datarater.meta_training.run.metrics import read_metrics
from datarater.rater_model.checkpoint import load_rater
from tests.support import training

ECONOMICAL = {
    "rater__rematerialise_blocks": True,
    "rater__scan_blocks": True,
    "rater__attention": "blocks",
    "rater__attention_block": 8,
    "inner_model__rematerialise_blocks": True,
    "inner_model__save_products": True,
    "inner_model__scan_blocks": True,
    "inner_model__attention": "blocks",
    "inner_model__attention_block": 8,
    "inner_model__loss_chunk": 8,
    "meta_gradient__inner_micro_batch": 2,
    "meta_gradient__outer_micro_batch": 1,
    "meta_gradient__rater_micro_batch": 4,
    "meta_gradient__rematerialise_updates": True,
    "meta_gradient__save_inner_gradients": True,
    "meta_gradient__scan_updates": True,
    "checkpoint_every": 2,
    "warmup_checkpoint_every": 3,
    "keep_checkpoints": 1,
    "report_every": 1,
}
CUT_OVER_A_GROUP = {
    "placement__population": 1,
    "placement__data": 4,
    "placement__shard_parameters": True,
}


def run(workdir: Path, texts: Path, devices: int, leave_at: str = "", /, **changed: object) -> str:
    """Runs on simulated devices to the end, or to a line with a text; returns the output."""
    process = training.start(training.command(workdir, texts, **changed), devices)
    output = ""
    if leave_at:
        output += "".join(training.lines_until(process, leave_at))
        process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    output += process.stdout.read()
    assert process.wait() == (75 if leave_at else 0), output
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "devices", "leave_at"),
    [
        pytest.param({}, ECONOMICAL, (1, 1), "step 12/24", marks=pytest.mark.drill),
        pytest.param(ECONOMICAL, {}, (1, 1), "warm-up 50/80", marks=pytest.mark.drill),
        ({}, CUT_OVER_A_GROUP, (1, 4), "step 12/24"),
        pytest.param(CUT_OVER_A_GROUP, {}, (4, 1), "step 12/24", marks=pytest.mark.drill),
        pytest.param(
            {}, {"placement__population": 2}, (1, 4), "warm-up 50/80", marks=pytest.mark.drill
        ),
    ],
    ids=[
        "economical",
        "lavish, from warm-up on",
        "onto a group",
        "onto one device",
        "onto groups, from warm-up on",
    ],
)
def test_a_run_continues_with_another_arrangement(
    tmp_path: Path,
    texts: Path,
    uninterrupted: Path,
    before: dict[str, object],
    after: dict[str, object],
    devices: tuple[int, int],
    leave_at: str,
) -> None:
    workdir = tmp_path / "work"
    run(workdir, texts, devices[0], leave_at, **before)
    output = run(workdir, texts, devices[1], **after)
    assert "the run continues with another arrangement: " in output
    assert "resuming" in output
    assert "is skipped" not in output
    assert "cannot be read" not in output

    expected, trained = (load_rater(folder / "rater").params for folder in (uninterrupted, workdir))
    distances = jax.tree.map(
        lambda one, other: float(np.max(np.abs(one - other))), expected, trained
    )
    assert max(jax.tree.leaves(distances)) < 1e-4  # rounding, which grows from step to step
    steps, expected_steps = (
        [row["step"] for row in read_metrics(folder / "metrics" / "metrics.csv")]
        for folder in (workdir, uninterrupted)
    )
    assert steps == expected_steps


@pytest.mark.slow
def test_a_run_continues_with_its_data_in_another_place(
    tmp_path: Path,
    workdir: Path,
    texts: Path,
    uninterrupted: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = tmp_path / "another mount" / "texts.jsonl"
    moved.parent.mkdir()
    shutil.copy(texts, moved)
    output = run(workdir, moved, 1)
    assert "another arrangement" not in output
    for name in ("params.safetensors", "tokenizer.json"):
        assert (workdir / "rater" / name).read_bytes() == (
            uninterrupted / "rater" / name
        ).read_bytes()
    with moved.open("a") as file:
        file.write('{"text": "one more"}\n')
    refused = training.run_here(training.command(workdir, moved, meta_steps=30), capsys)
    assert refused.returncode == 3
    assert "has a run on other data" in refused.stderr
