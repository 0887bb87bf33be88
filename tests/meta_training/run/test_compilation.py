"""Programs of training that are compiled once for all starts."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from datarater.meta_training.run.compilation import cache_folder, kept_programs, remove_truncated
from tests.support import ROOT, training

CACHE_DIR = "jax_compilation_cache_dir"
# Trains in a process of its own and prints how many programs were compiled and taken over.
COUNTED = """
import collections, json, sys
import jax
from datarater.meta_training import train

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
code = train.main(sys.argv[1:])
names = ("cache_misses", "cache_hits")
print(json.dumps([code, *(events[f"/jax/compilation_cache/{name}"] for name in names)]))
"""


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Returns a cache folder of a user who has set nothing."""
    before = getattr(jax.config, CACHE_DIR)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("DATARATER_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    yield tmp_path / "caches"
    jax.config.update("jax_compilation_cache_dir", before)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


def test_programs_are_kept_in_the_users_cache_folder_until_the_run_ends(no_settings: Path) -> None:
    with kept_programs(""):
        jax.jit(lambda x: x * 3 + 0.123)(1.0).block_until_ready()
    kept = entries(no_settings / "datarater" / "compiled")
    assert kept
    assert getattr(jax.config, CACHE_DIR) is None
    jax.jit(lambda x: x * 5 + 0.321)(1.0).block_until_ready()
    assert entries(no_settings / "datarater" / "compiled") == kept


def test_the_config_moves_the_folder_or_turns_it_off(no_settings: Path, tmp_path: Path) -> None:
    assert cache_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    assert cache_folder("off") is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "of JAX"))
    assert cache_folder("") is None  # as JAX_COMPILATION_CACHE_DIR says
    with kept_programs("off"):
        assert getattr(jax.config, CACHE_DIR) is None
    assert getattr(jax.config, CACHE_DIR) == str(tmp_path / "of JAX")


def test_a_folder_that_cannot_be_written_is_one_warning(
    no_settings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING), kept_programs(str(tmp_path / "file" / "folder")):
        assert float(jax.jit(lambda x: x * 7 + 0.5)(1.0)) == 7.5
    (record,) = caplog.records
    assert "compiled programs are not kept" in record.message
    assert "set compilation_cache to another folder" in record.message


def test_entries_that_a_killed_process_was_writing_are_removed(
    no_settings: Path, tmp_path: Path
) -> None:
    with kept_programs(str(tmp_path / "mine")):
        jax.jit(lambda x: x * 11 + 0.25)(1.0).block_until_ready()
    (*others, last) = entries(tmp_path / "mine")
    last.write_bytes(last.read_bytes()[:-20])
    remove_truncated(tmp_path / "mine")
    assert entries(tmp_path / "mine") == others


@pytest.mark.slow
def test_a_second_start_compiles_nothing_anew(tmp_path: Path) -> None:
    texts = training.write_texts(tmp_path / "texts.jsonl")

    def counts(workdir: str) -> list[int]:
        flags = training.command(
            tmp_path / workdir, texts, meta_steps=4, compilation_cache=tmp_path / "programs"
        )[3:]
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, *flags],
            cwd=ROOT,
            env=training.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        code, misses, hits = json.loads(done.stdout.splitlines()[-1])
        assert code == os.EX_OK
        return [misses, hits]

    first_misses, _ = counts("first")
    kept = entries(tmp_path / "programs")
    assert len(kept) == first_misses > 10
    second_misses, second_hits = counts("second")
    assert second_misses == 0
    assert second_hits >= first_misses
    assert entries(tmp_path / "programs") == kept
    raters = (training.digest(tmp_path / name / "rater") for name in ("first", "second"))
    assert len(set(raters)) == 1
