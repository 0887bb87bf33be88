"""Memory and FLOPs at the paper's sizes, from ahead-of-time compilation for a TPU.

    pip install -c constraints.txt -e '.[train,benchmark]'  # includes libtpu; needs no TPU
    python -m tests.benchmarks.paper_sizes --output paper_sizes_output

Compiles one whole meta-step of the config `pile` (8 inner models, batches of 128, length 2048, a
48.5M rater) from shapes alone, for inner models of 44M, 150M and 400M and T in {2, 4, 8}. Nothing
is allocated and nothing runs. The figures:

    arguments    bytes of the state and the windows on one chip; the results reuse the state's
                 buffers
    temporary    bytes that the program needs on one chip in addition
    of a chip    their sum as a share of the chip's memory, which tells whether it fits
    FLOPs        FLOPs of matrix products on one chip, counted in the traced program with every scan
                 multiplied out (XLA's own count, also recorded, takes a scan's body once)
    CPU          temporary bytes of one chip's share (one inner model, its part of the batch)
                 compiled for a CPU: available without libtpu, but with other fusions and layouts,
                 so not what a TPU takes

`--micro_batch`, `--topology` and `--mode` set what to compile for. The mesh is 8 x (chips / 8). On
v5p:4x4x4, as in the paper, an inner model has 8 chips, with 16 windows of each batch and a part of
its parameters on each; on v5p:2x2x2 it has one chip with all 128 windows. Reverse mode cannot share
a batch over devices, so its mesh is 8 x 1 on any topology. One compilation takes 5 to 20 minutes of
one core, whatever T is, since the updates run in a scan. Figures are written to `paper_sizes.json`
one by one. The table (Markdown) is of all figures in the folder; `--show` compiles nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # the TPU is compiled for, not used
# Without these, libtpu would query a cloud's metadata server about the machine and let only one
# process at a time compile. The machine they describe has no effect: `--topology` sets the target.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
}
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.mesh import ONE_DEVICE, PlacementConfig, make_placement
from datarater.rater_model.rater import count_parameters
from tests.benchmarks.benchmark_support import machine
from tests.benchmarks.paper_meta_step import (
    SIZES,
    config_of,
    count_flops,
    meta_step_of,
    refusal,
)

GIB = 2**30
# Memory of a chip as specified by its maker.
CHIP_GIB = {"TPU v5": 95, "TPU v5 lite": 16, "TPU v4": 32, "TPU v6 lite": 32}


def compile_for_tpu(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Compiles a config's meta-step for a TPU; returns what it takes on one chip."""
    devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    groups = config.population.size
    group_size = 1 if config.meta_gradient.mode == "reverse" else len(devices) // groups
    placement = make_placement(
        PlacementConfig(groups, group_size, group_size > 1),
        config.population.size,
        (config.inner_batch, config.outer_batch),
        devices,
    )

    program = meta_step_of(config, placement)
    started = time.monotonic()
    traced = program.step.trace(program.state, program.inner, program.outer)
    kind = str(devices[0].device_kind)
    traced_figures = {
        "chip": kind,
        "chip_bytes": CHIP_GIB[kind] * GIB,
        "mesh": [groups, group_size],
        "flops": count_flops(traced.jaxpr.jaxpr),
    }
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return {
            **traced_figures,
            **refusal(error),
            "compile_seconds": time.monotonic() - started,
        }
    memory = compiled.memory_analysis()
    return {
        **traced_figures,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "unshared_result_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "xla_flops_scans_once": (compiled.cost_analysis() or {}).get("flops"),
        "compile_seconds": time.monotonic() - started,
    }


def compile_for_cpu(config: ConfigDict, group_size: int) -> dict[str, Any]:
    """Compiles one device's share of a mesh for this machine's CPU; returns its temporary bytes."""
    config = ConfigDict(config)
    config.population.size = 1
    config.inner_batch //= group_size
    config.outer_batch //= group_size
    program = meta_step_of(config, ONE_DEVICE)
    started = time.monotonic()
    lowered = program.step.lower(program.state, program.inner, program.outer)
    memory: Any = lowered.compile().memory_analysis()
    return {
        "cpu_temporary_bytes": memory.temp_size_in_bytes,
        "cpu_compile_seconds": time.monotonic() - started,
    }


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Prints the table, as Markdown."""
    columns = (
        "inner model|T|mode|mesh|micro-batch|chip|arguments GiB|temporary GiB|of a chip|fits|TFLOPs"
        "|CPU temporary GiB"
    )
    print(f"| {columns.replace('|', ' | ')} |\n|{'---:|' * (columns.count('|') + 1)}")
    for row in sorted(
        figures, key=lambda row: (row["topology"], row["mode"], row["parameters"], row["updates"])
    ):
        cells = [row["size"], str(row["updates"]), row["mode"], "{} x {}".format(*row["mesh"])]
        cells += [str(row["micro_batch"]), f"{row['chip']}, {row['chip_bytes'] // GIB} GiB"]
        if "refused" in row:
            cells += ["", "", "", "no"]
        else:
            used = row["argument_bytes"] + row["temporary_bytes"] + row["unshared_result_bytes"]
            share = used / row["chip_bytes"]
            cells += [
                f"{row['argument_bytes'] / GIB:.2f}",
                f"{row['temporary_bytes'] / GIB:.2f}",
                f"{share:.0%}",
            ]
            cells += ["yes" if share <= 1 else "no"]

        cpu = row.get("cpu_temporary_bytes")
        cells += [
            f"{row['flops'] / 1e12:.0f}",
            f"{cpu / GIB:.2f}" if cpu is not None else "not compiled",
        ]
        print(f"| {' | '.join(cells)} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("paper_sizes_output"), help="folder for the figures"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sizes of the inner model"
    )
    parser.add_argument("--updates", nargs="+", type=int, default=[2, 4, 8], help="values of T")
    parser.add_argument("--micro_batch", type=int, default=4, help="windows on a chip at a time")
    parser.add_argument("--mode", choices=("mixed", "reverse"), default="mixed")
    parser.add_argument(
        "--topology",
        default="v5p:4x4x4",
        help="name of the topology in jax.experimental.topologies",
    )
    parser.add_argument(
        "--show", action="store_true", help="compile nothing, print the table of existing figures"
    )
    parser.add_argument(
        "--tpu", action=argparse.BooleanOptionalAction, default=True, help="compile for the TPU"
    )
    parser.add_argument(
        "--cpu", action=argparse.BooleanOptionalAction, default=True, help="compile for the CPU"
    )
    arguments = parser.parse_args(argv)

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "paper_sizes.json"
    figures: list[dict[str, Any]] = json.loads(path.read_text())["figures"] if path.exists() else []
    versions = {**machine(), "libtpu": metadata.version("libtpu")} if not arguments.show else {}

    for size in () if arguments.show else arguments.sizes:
        for updates in arguments.updates:
            config = config_of(size, updates, arguments.micro_batch, arguments.mode)
            names = ("size", "updates", "mode", "micro_batch", "topology")
            place = (size, updates, arguments.mode, arguments.micro_batch, arguments.topology)
            state = meta_step_of(config, ONE_DEVICE).state
            existing = next((f for f in figures if tuple(f[name] for name in names) == place), {})
            figure: dict[str, Any] = {**existing, **dict(zip(names, place, strict=True))}
            figure["parameters"] = count_parameters(state.inner.params) // config.population.size

            if arguments.tpu:
                figure |= compile_for_tpu(config, arguments.topology)
            if arguments.cpu:
                figure |= compile_for_cpu(config, figure["mesh"][1])

            figures = [f for f in figures if tuple(f[name] for name in names) != place] + [figure]
            path.write_text(json.dumps({"machine": versions, "figures": figures}, indent=1))
            print(json.dumps(figure), flush=True)
    show(figures)
    print(path)


if __name__ == "__main__":
    main()
