"""Metrics files: nothing lost, nothing doubled, whatever a killed process left."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from meta_training.metrics import METRICS_FILE, MetricsWriter, cut_metrics, read_metrics


def write_steps(folder: Path, first: int, last: int) -> None:
    with MetricsWriter(folder, after=first - 1) as writer:
        for step in range(first, last + 1):
            writer.write(step, {"loss": step / 3, "sometimes": step * 10.0 if step % 2 == 0 else None})


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
    with MetricsWriter(tmp_path, after=3) as writer, pytest.raises(ValueError, match="has the columns"):
        writer.write(4, {"another": 1.0})


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
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_a_resumed_run_tells_tensorboard_to_forget_what_comes_after(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 6)
    (first,) = tmp_path.glob("events*")
    assert all(event.session_log.status == 0 for event in read_events(first))
    moved = first.rename(tmp_path / (first.name + ".1"))
    write_steps(tmp_path, 4, 8)
    (second,) = set(tmp_path.glob("events*")) - {moved}
    starts = [event.step for event in read_events(second) if event.session_log.status == 1]
    assert starts == [4]
