"""Metrics files: nothing lost, nothing doubled, whatever a killed process left."""

import csv
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from datarater.meta_training.errors import WorkdirError
from datarater.meta_training.run.metrics import (
    METRICS_FILE,
    MetricsWriter,
    cut_metrics,
    read_metrics,
)


def write_steps(folder: Path, first: int, last: int) -> None:
    with MetricsWriter(folder, after=first - 1) as writer:
        for step in range(first, last + 1):
            writer.write(
                step, {"loss": step / 3, "sometimes": step * 10.0 if step % 2 == 0 else None}
            )


def test_every_value_is_read_back_and_those_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 4)
    assert read_metrics(tmp_path / METRICS_FILE) == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3, "sometimes": 20},
        {"step": 3, "loss": 1.0},
        {"step": 4, "loss": 4 / 3, "sometimes": 40},
    ]


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 400))
def test_a_file_cut_anywhere_and_resumed_is_the_file_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    write_steps(folder, 1, 12)
    path = folder / METRICS_FILE
    whole = path.read_bytes()
    header_and_rows = whole.splitlines(keepends=True)
    # What a process killed at some moment leaves holds at least the rows up to its last checkpoint.
    least = sum(map(len, header_and_rows[: checkpoint + 1])) if checkpoint else 0
    path.write_bytes(whole[: max(least, size)])
    write_steps(folder, checkpoint + 1, 12)
    assert path.read_bytes() == whole


def test_a_file_without_a_row_left_is_emptied(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3)
    assert cut_metrics(tmp_path / METRICS_FILE, 0) == []
    assert (tmp_path / METRICS_FILE).read_bytes() == b""
    assert cut_metrics(tmp_path / "missing.csv", 3) == []


def test_columns_do_not_change_within_a_file(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3)
    before = (tmp_path / METRICS_FILE).read_bytes()
    message = (
        r"metrics\.csv has the columns of another version .*it lacks another, it has loss, .* "
        r"move the file elsewhere"
    )
    with MetricsWriter(tmp_path, after=3) as writer, pytest.raises(WorkdirError, match=message):
        writer.write(4, {"another": 1.0})
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_rows_of_an_earlier_version_have_no_value_in_the_columns_added_since(
    tmp_path: Path,
) -> None:
    write_steps(tmp_path, 1, 2)
    for step in (3, 4):
        with MetricsWriter(tmp_path, after=step - 1) as writer:
            writer.write(step, {"loss": step / 3, "added": 7.0, "sometimes": None})
    assert read_metrics(tmp_path / METRICS_FILE) == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3, "sometimes": 20},
        {"step": 3, "loss": 1.0, "added": 7},
        {"step": 4, "loss": 4 / 3, "added": 7},
    ]


@pytest.mark.parametrize(
    "broken",
    [
        b"\0\0\0\0\n",
        b"2,0.5",
        b"2,\0\0,1.0\n",
        b"2,0.5,1.0,4.0\n",
        b"\xff\xfe,1.0,2.0\n",
        b"\n",
        b"<<<<<<< mine\n",
    ],
)
def test_lines_that_cannot_be_read_count_as_not_written(
    tmp_path: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_steps(tmp_path, 1, 3)
    path = tmp_path / METRICS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + broken)
    with caplog.at_level(logging.WARNING, logger="datarater"):
        write_steps(tmp_path, 4, 5)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 lines cannot be read and are removed"
    ]
    assert path.read_bytes().startswith(whole + b"4,")
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]


def test_rows_that_are_lost_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_steps(tmp_path, 1, 6)
    path = tmp_path / METRICS_FILE
    header, *rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([header, rows[0], *rows[3:]]))
    with caplog.at_level(logging.WARNING, logger="datarater"):
        write_steps(tmp_path, 7, 7)
        assert "has lost the row of 2 steps of 2 to 3" in caplog.text
        caplog.clear()
        path.unlink()
        write_steps(tmp_path, 2, 3)
        assert "has lost the row of step 1;" in caplog.text
    assert [row["step"] for row in read_metrics(path)] == [2, 3]


def test_a_file_without_its_header_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(b"\0" * 40 + b"\n3,0.5\n")
    with caplog.at_level(logging.WARNING, logger="datarater"):
        write_steps(tmp_path, 4, 5)
    assert "it is kept as metrics.csv.damaged" in caplog.text
    assert (tmp_path / "metrics.csv.damaged").read_bytes().endswith(b"\n3,0.5\n")
    assert [row["step"] for row in read_metrics(path)] == [4, 5]


def test_values_keep_every_digit(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.1 + 0.2})
    with (tmp_path / METRICS_FILE).open() as file:
        assert float(next(csv.DictReader(file))["loss"]) == 0.1 + 0.2


def read_events(path: Path) -> list[Event]:
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        content = data[12 : 12 + length]
        assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(content)
        events.append(Event.FromString(content))
        data = data[16 + length :]
    return events


def test_a_resumed_run_makes_tensorboard_discard_later_steps(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 6)
    (first,) = tmp_path.glob("events*")
    assert all(event.session_log.status == 0 for event in read_events(first))
    moved = first.rename(tmp_path / (first.name + ".1"))
    write_steps(tmp_path, 4, 8)
    (second,) = set(tmp_path.glob("events*")) - {moved}
    starts = [event.step for event in read_events(second) if event.session_log.status == 1]
    assert starts == [4]


def test_every_event_can_be_read_back(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2)
    (path,) = tmp_path.glob("events*")
    first, *events = read_events(path)
    assert first.file_version == "brain.Event:2"
    scalars = {
        event.step: {value.tag: value.simple_value for value in event.summary.value}
        for event in events
    }
    assert scalars == {
        1: {"loss": pytest.approx(1 / 3)},
        2: {"loss": pytest.approx(2 / 3), "sometimes": 20.0},
    }


def test_an_event_that_cannot_be_written_costs_tensorboard_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        MetricsWriter(tmp_path) as writer,
        caplog.at_level(logging.WARNING, logger="datarater"),
    ):
        assert writer._events
        monkeypatch.setattr(writer._events, "_file", full)
        for step in range(1, 51):
            writer.write(step, {"loss": 1.0})
    assert len(caplog.records) == 1
    assert "TensorBoard gets no more metrics of this run" in caplog.text
    assert "No space left on device" in caplog.text
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 50


def test_a_killed_process_leaves_the_events_of_all_rows(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from datarater.meta_training.run.metrics import MetricsWriter\n"
        "writer = MetricsWriter(sys.argv[1])\n"
        "for step in range(1, 31):\n"
        "    writer.write(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (path,) = tmp_path.glob("events*")
    assert [event.step for event in read_events(path) if event.summary.value] == list(range(1, 31))
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 30


def test_starts_in_one_second_have_files_of_their_own(tmp_path: Path) -> None:
    made: list[Path] = []
    for step in range(1, 4):
        write_steps(tmp_path, step, step)
        made += set(tmp_path.glob("events.out.tfevents.*")) - set(made)
    assert len(made) == 3
    assert made == sorted(made)  # the order that TensorBoard reads them in
