"""Marks of splits in progress: a process that ends on request removes its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarater.pipelines.run_folder import split_marks
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import process_id
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.runners import flink
from datarater.pipelines.runners.flink import FlinkError
from datarater.rater_model.documents.records import Split
from deploy.flink import cluster
from tests.support import ROOT

TASK = SplitTask(Split("in.jsonl", "jsonl", ordinal=7), "print", 0)
OTHER = SplitTask(Split("in.jsonl", "jsonl", ordinal=8), "print", 0)


def marks(folder: RunFolder) -> list[str]:
    return [path.rsplit("/", 1)[-1] for path, _ in split_marks.unfinished(folder)]


def test_a_process_takes_its_own_marks_along(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    with split_marks.marked(folder, TASK, "launch"):
        program = (
            "import os, sys\n"
            "from datarater.pipelines.run_folder import split_marks\n"
            "from tests.pipelines.run_folder.test_split_marks import OTHER, RunFolder, TASK\n"
            "folder = RunFolder(sys.argv[1])\n"
            "held = [split_marks.marked(folder, task, 'launch') for task in (TASK, OTHER)]\n"
            "for mark in held:\n"
            "    mark.__enter__()\n"
            "if sys.argv[2] == 'asked':\n"
            "    split_marks.clear_own()\n"
            "os._exit(0)\n"
        )

        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        left = {"asked": ["00000007.launch.1.json"]}
        left["died"] = [
            "00000007.launch.1.json",
            "00000007.launch.2.json",
            "00000008.launch.1.json",
        ]
        for how, expected in left.items():
            subprocess.run(
                [sys.executable, "-c", program, str(tmp_path), how], env=environment, check=True
            )
            assert marks(folder) == expected

    split_marks.clear_own()  # nothing is left to clear
    assert marks(folder) == left["died"][1:]


@pytest.mark.slow
def test_a_worker_pool_starts_workers_that_report_and_ends_with_what_started_it() -> None:
    address = f"127.0.0.1:{cluster._free_port(0)}"
    starter = subprocess.Popen(["sleep", "600"])
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        split_marks.WATCHED_PROCESS: json.dumps(dataclasses.asdict(process_id(starter.pid))),
    }
    command = [sys.executable, "-m", "deploy.flink.worker_pool", address]
    pool = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    try:
        end = time.monotonic() + 60
        while flink._refusal(address):
            assert time.monotonic() < end, "the pool did not listen"
            time.sleep(0.1)
        flink.check_worker_pool(address)
    finally:
        starter.kill()
        starter.wait()

    assert "is process" in pool.communicate(timeout=60)[1]
    with pytest.raises(FlinkError, match="no worker pool listens"):
        flink.check_worker_pool(address)
