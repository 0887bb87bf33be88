"""Several devices or processes train the rater that one device trains, by the written exchanges."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarater.meta_training.algorithm.mesh import (
    ONE_DEVICE,
    MeshAxis,
    MeshPlacement,
    PlacementConfig,
    make_placement,
)
from datarater.meta_training.errors import ConfigError
from datarater.meta_training.run.processes import is_lost_process, join_processes, together
from tests.support import ROOT, training
from tests.support.shared_folders import made_once

# theta, eta and the cut part of theta in tests/small_models.py: 12 x 8 + 8 x 7 + 7 x 12 and the
# bias of 7; 12 x 8 + 8.
THETA, ETA, CUT, BIAS = 243, 104, 236, 7


def start(output: Path, *options: str, devices: int = 8) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.placement_program", str(output), *options],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result(process: subprocess.Popen[str], output: Path) -> dict[str, Any]:
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    def make(folder: Path) -> None:
        result(start(folder / "report.json"), folder / "report.json")

    path = made_once(tmp_path_factory, "placement", make) / "report.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("parameters", ["whole", "cut", "cut over all"])
def test_eight_devices_make_the_rater_of_one(report: dict[str, Any], parameters: str) -> None:
    assert report["devices"] == 8
    assert report[parameters]["meta_gradient"] < 1e-12
    assert len(report[parameters]["of_members"]) == 4
    assert max(report[parameters]["of_members"]) < 1e-12
    assert report[parameters]["metrics"] < 1e-12
    assert report[parameters]["steps"] < 1e-9  # ten meta-steps and a reset
    assert report["permuted"] < 1e-9


def test_parameters_are_cut_where_they_can_be(report: dict[str, Any]) -> None:
    assert sorted(report["whole"]["shards"]) == [[1, 7], [1, 7, 12], [1, 8, 7], [1, 12, 8]]
    assert sorted(report["cut"]["shards"]) == [[1, 4, 7], [1, 6, 8], [1, 7], [1, 7, 6]]
    # One group of 8 devices holds all four models, and only axes of 8 can be cut.
    assert sorted(report["cut over all"]["shards"]) == [[4, 1, 7], [4, 7], [4, 7, 12], [4, 12, 1]]


def of_kind(report: dict[str, Any], parameters: str, kind: str) -> list[tuple[str, int]]:
    split = [line.split() for line in report[parameters]["collectives"]]
    return [(groups, int(numbers)) for name, groups, numbers in split if name == kind]


def test_the_compiled_exchanges_are_those_that_were_written(report: dict[str, Any]) -> None:
    data, population = "{{0,1},{2,3},{4,5},{6,7}}", "{{0,2,4,6},{1,3,5,7}}"
    # Over data: two inner gradients, the derivative of the second (that of the first with respect
    # to theta is not needed) and the outer gradient, then the rater's gradient with the outer loss.
    # Over the population: the rater's update and 4 metrics.
    reductions = Counter(of_kind(report, "whole", "all-reduce"))
    assert reductions == {(data, THETA): 4, (data, ETA + 1): 1, (population, ETA + 4): 1}
    # The scores of both batches, then the losses and the weights' cotangents of each.
    assert Counter(of_kind(report, "whole", "all-gather")) == {(data, 16): 1, (data, 8): 4}
    kinds = {
        line.split()[0]
        for parameters in ("whole", "cut")
        for line in report[parameters]["collectives"]
    }
    assert kinds == {"all-reduce", "all-gather", "reduce-scatter"}


def test_with_parameters_cut_the_sums_become_reduce_scatters(report: dict[str, Any]) -> None:
    scattered = sum(numbers for _, numbers in of_kind(report, "cut", "reduce-scatter"))
    assert scattered == 4 * CUT // 2
    assert sum(numbers == BIAS for _, numbers in of_kind(report, "cut", "all-reduce")) == 4
    assert not any(numbers >= CUT for _, numbers in of_kind(report, "cut", "all-reduce"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.drill)])
def test_transformers_on_eight_devices(dtype: str, tmp_path: Path) -> None:
    report = result(
        start(tmp_path / "report.json", "--model=transformer", f"--dtype={dtype}"),
        tmp_path / "report.json",
    )
    for parameters in ("whole", "cut", "cut over all"):
        distances = report[parameters]
        print(
            dtype,
            parameters,
            {k: distances[k] for k in ("meta_gradient", "steps")},
            "permuted",
            report["permuted"],
        )

        assert distances["meta_gradient"] < (1e-12 if dtype == "float64" else 1e-5)
        assert max(distances["of_members"]) < (1e-12 if dtype == "float64" else 1e-5)
        # In float32, ten steps amplify rounding no more than reordering the examples does.
        assert distances["steps"] < (1e-9 if dtype == "float64" else 3 * report["permuted"])


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


@pytest.mark.drill
def test_two_processes_make_the_rater_of_one(tmp_path: Path) -> None:
    coordinator = f"--coordinator=localhost:{free_port()}"
    outputs = [tmp_path / f"{i}.json" for i in range(2)]
    processes = [
        start(output, coordinator, "--processes=2", f"--process={i}", devices=4)
        for i, output in enumerate(outputs)
    ]
    for process, output in zip(processes, outputs, strict=True):
        report = result(process, output)
        assert report["devices"] == 8
        for parameters in ("whole", "cut"):
            assert report[parameters]["meta_gradient"] < 1e-12
            assert report[parameters]["steps"] < 1e-9


def test_rows_of_a_process_are_those_of_its_devices() -> None:
    program = """
import jax, numpy as np
from jax.sharding import NamedSharding
from datarater.meta_training.algorithm.mesh import PlacementConfig, make_placement, rows_on
from datarater.meta_training.algorithm.meta_step import batch_spec
made = make_placement(PlacementConfig(population=2, data=2), 4, (6,))
assert made.own_rows((4, 3, 6), batch_spec(3)) is None  # one process needs all
sharding = NamedSharding(made.mesh, batch_spec(3))
group, device = made.mesh.devices[0].tolist(), made.mesh.devices[1, 1]
rows = rows_on(sharding, (4, 3, 6), group)
assert rows[:2].all() and not rows[2:].any()
rows = rows_on(sharding, (4, 3, 6), [device])
assert rows[2:, :, 3:].all() and rows.sum() == 2 * 3 * 3
array = jax.device_put(np.arange(72).reshape(4, 3, 6), sharding)
shard, = [each for each in array.addressable_shards if each.device == device]
assert (np.asarray(shard.data).reshape(-1) == np.flatnonzero(rows)).all()
assert not rows_on(sharding, (4, 3, 6), []).any()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_on_one_device_nothing_is_placed() -> None:
    made = make_placement(PlacementConfig(), 4, (8,), jax.devices()[:1])
    assert made is ONE_DEVICE
    tree = {"a": np.zeros(3)}
    assert made.place(tree, made.member_specs(tree, stacked=False)) is tree
    assert made.own_rows((4, 2, 8), None) is None
    assert made.data_axis(tree).size == made.batch_axis(8).size == 1


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        (PlacementConfig(), 8, (4, 2)),
        (PlacementConfig(), 2, (2, 1)),
        (PlacementConfig(), 3, (1, 3)),
        (PlacementConfig(data=8), 8, (1, 8)),
        (PlacementConfig(population=2), 8, (2, 4)),
        (PlacementConfig(population=2, data=1), 8, (2, 1)),
        (PlacementConfig(), 6, (2, 3)),
        (PlacementConfig(population=1), 5, (1, 4)),  # 24 and 48 cannot be cut over five
        # One group of four devices would use as many, but exchange more.
        (PlacementConfig(), 5, (4, 1)),
        (PlacementConfig(data=3), 8, (2, 3)),
    ],
)
def test_axes_are_chosen_from_devices_and_population(
    config: PlacementConfig, devices: int, expected: tuple[int, int]
) -> None:
    made = make_placement(config, 4, (24, 48), jax.devices()[:1] * devices)
    assert isinstance(made, MeshPlacement)
    assert (made.groups, made.group_size) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PlacementConfig(population=3),
            r"placement\.population \(3\) must divide population\.size \(4\)",
        ),
        (
            PlacementConfig(data=3, population=1),
            "a batch of 8 windows cannot be divided evenly among 3 devices",
        ),
        (PlacementConfig(population=4, data=4), "asks for 4 x 4 devices, but there are 8"),
    ],
)
def test_axes_that_do_not_fit_are_refused(config: PlacementConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_placement(config, 4, (8,), jax.devices()[:1] * 8)


def test_the_longest_axis_that_can_be_cut_is_cut() -> None:
    made = make_placement(PlacementConfig(1, 4, True), 4, (8,), jax.devices()[:1] * 4)
    assert isinstance(made, MeshPlacement)
    shapes = [(6, 8), (12, 8), (5, 7), (), (4,)]
    assert [made.cut_axis(shape) for shape in shapes] == [1, 0, -1, -1, 0]
    axis = made.data_axis([jnp.zeros(shape) for shape in shapes])
    assert isinstance(axis, MeshAxis)
    assert axis.cut_axes == (1, 0, -1, -1, 0)


@pytest.mark.parametrize(("devices", "used"), [(3, 2), (6, 4)])
def test_the_default_uses_as_many_devices_as_fit_the_default_batches(
    devices: int, used: int
) -> None:
    made = make_placement(PlacementConfig(), 8, (32, 16), jax.devices()[:1] * devices)
    assert made.size == used


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":8476", "host:port", "host:0", "host:65536", "a:b:1"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(
        ConfigError, match=f"--coordinator={address} must be HOST:PORT of process 0"
    ):
        join_processes(address, 2, 0)


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        (True, "UNAVAILABLE: Socket closed"),
        (
            True,
            "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] "
            "Connection closed by peer",
        ),
        (
            True,
            "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue() timed "
            "out with key: cpu",
        ),
        (
            True,
            "INTERNAL: NCCL operation failed: remote process exited or there was a network error.",
        ),
        (
            True,
            "INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat "
            "timeout.",
        ),
        (
            False,
            "RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes for the all-gather "
            "collective-permute",
        ),
        (False, "RESOURCE_EXHAUSTED: Gloo all-reduce failed: out of memory"),
        (False, "INTERNAL: a collective's replica groups do not fit the mesh"),
        (False, "INVALID_ARGUMENT: peer access is not supported between these devices"),
        (
            False,
            "NOT_FOUND: no connection between buffers was planned; the status UNAVAILABLE: is only "
            "mentioned",
        ),
    ],
)
def test_a_lost_process_is_told_from_other_failures(lost: bool, text: str) -> None:
    assert is_lost_process(jax.errors.JaxRuntimeError(text)) is lost
    assert is_lost_process(ValueError(text)) is lost  # as jaxlib raises it out of a dispatch


def test_a_process_by_itself_has_nobody_to_wait_for() -> None:
    with together() as same:
        same["config"] = {"seed": 0}
    with pytest.raises(SystemExit), together():
        raise SystemExit(3)


@pytest.mark.drill
def test_a_run_with_parameters_cut_over_devices_resumes_to_the_same_rater(tmp_path: Path) -> None:
    texts, raters = training.write_texts(tmp_path / "pool.jsonl"), {}

    for name, steps in (("uninterrupted", (8,)), ("resumed", (5, 8))):
        for meta_steps in steps:
            done = subprocess.run(
                training.command(
                    tmp_path / name,
                    texts,
                    meta_steps=meta_steps,
                    placement__data=2,
                    placement__shard_parameters=True,
                    population__warmup_steps=4,
                ),
                cwd=ROOT,
                env=training.environment(devices=4),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert "on 4 x cpu: 2 groups of 2, parameters sharded over the group" in done.stderr
        raters[name] = training.digest(tmp_path / name / "raters" / "step_00000008")

    assert "resuming at meta-step 5 of 8" in done.stderr
    assert raters["resumed"] == raters["uninterrupted"]
