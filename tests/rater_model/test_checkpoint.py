"""Checkpoints load as they were saved, and a damaged one is reported clearly."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datarater.rater_model import checkpoint
from datarater.rater_model.checkpoint import (
    CheckpointError,
    RaterCheckpoint,
    Recommendation,
    ScoreStatistics,
    load_rater,
    load_recommendation,
    save_rater,
    save_recommendation,
)
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer, train_bpe
from datarater.rater_model.transformer import TransformerConfig

CONFIG = RaterConfig(window=16, transformer=TransformerConfig(8, 1, 8, 1), ngram_rows=8)


def make_checkpoint(seed: int = 0) -> RaterCheckpoint:
    return RaterCheckpoint(
        config=CONFIG,
        params=jax.device_get(initialise_rater(CONFIG, jax.random.key(seed))),
        tokenizer=ByteTokenizer(),
        statistics=ScoreStatistics(0.25, 1.5, (-1.0, 0.0, 2.0), 100, 64),
        recommended_discard_fraction=0.5,
        provenance={"step": 7, "note": "naïve"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_rater(tmp_path / "rater", make_checkpoint())
    return tmp_path / "rater"


def assert_same(actual: RaterCheckpoint, expected: RaterCheckpoint) -> None:
    for name in ("config", "statistics", "recommended_discard_fraction", "provenance"):
        assert getattr(actual, name) == getattr(expected, name)
    assert actual.tokenizer.serialise() == expected.tokenizer.serialise()
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


@pytest.mark.parametrize("url", ["{tmp}/deep/rater", "file://{tmp}/rater", "memory://bucket/rater"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, url: str) -> None:
    path = url.format(tmp=tmp_path)
    saved = save_rater(path, make_checkpoint())
    loaded = load_rater(path)
    assert_same(loaded, make_checkpoint())
    assert loaded.digest == saved.digest != ""
    assert sorted(
        name.rsplit("/", 1)[-1] for name in fsspec.url_to_fs(path)[0].ls(path, detail=False)
    ) == [
        "params.safetensors",
        "rater.json",
        "tokenizer.json",
    ]


def test_a_bpe_travels_along(tmp_path: Path) -> None:
    bpe = train_bpe(["some text to merge"] * 3, 270)
    config = dataclasses.replace(CONFIG, vocabulary_size=bpe.vocabulary_size)
    params = initialise_rater(config, jax.random.key(0))
    save_rater(tmp_path / "rater", RaterCheckpoint(config, params, bpe))
    loaded = load_rater(tmp_path / "rater")
    assert loaded.tokenizer.encode("some text").tolist() == bpe.encode("some text").tolist()


def test_the_digest_covers_everything(tmp_path: Path) -> None:
    base = make_checkpoint()
    variants = [
        base,
        make_checkpoint(seed=1),
        dataclasses.replace(base, statistics=ScoreStatistics(0.26)),
        dataclasses.replace(base, provenance={}),
        dataclasses.replace(base, recommended_discard_fraction=None),
    ]
    digests = {save_rater(tmp_path / str(i), variant).digest for i, variant in enumerate(variants)}
    assert len(digests) == len(variants)
    assert save_rater(tmp_path / "again", base).digest in digests


def test_saving_again_replaces_and_leaves_nothing_behind(folder: Path) -> None:
    save_rater(folder, make_checkpoint(seed=1))
    assert_same(load_rater(folder), make_checkpoint(seed=1))
    assert [path.name for path in folder.parent.iterdir()] == ["rater"]


def test_a_failure_while_saving_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_rater(folder, make_checkpoint(seed=1))
    assert_same(load_rater(folder), make_checkpoint())
    assert [path.name for path in folder.parent.iterdir()] == ["rater"]


def test_a_failure_between_moving_away_and_moving_in_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        save_rater(folder, make_checkpoint(seed=1))
    assert_same(load_rater(folder), make_checkpoint())
    assert [path.name for path in folder.parent.iterdir()] == ["rater"]


def test_a_folder_on_an_object_store_is_no_checkpoint_while_it_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = "memory://bucket/replaced"
    save_rater(path, make_checkpoint())
    file_system = fsspec.url_to_fs(path)[0]

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(file_system), "pipe_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            save_rater(path, make_checkpoint(seed=1))
    with pytest.raises(CheckpointError, match="is not a rater checkpoint"):
        load_rater(path)


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("42")
    with pytest.raises(CheckpointError, match="is not a rater checkpoint"):
        save_rater(tmp_path / "precious", make_checkpoint())
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "42"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(["rater.json", "params.safetensors", "tokenizer.json"]))
def test_a_flipped_byte_is_refused(folder: Path, data: st.DataObject, name: str) -> None:
    good = (folder / name).read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    try:
        (folder / name).write_bytes(
            good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :]
        )
        with pytest.raises(CheckpointError, match=r"damaged|newer"):
            load_rater(folder)
    finally:
        (folder / name).write_bytes(good)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rater.json", "is not a rater checkpoint: there is no rater.json"),
        ("params.safetensors", "is incomplete: params.safetensors is missing"),
        ("tokenizer.json", "is incomplete: tokenizer.json is missing"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_rater(folder)


def test_each_file_is_named_when_it_is_damaged(folder: Path) -> None:
    for name in ("params.safetensors", "tokenizer.json"):
        broken = folder.parent / f"broken-{name}"
        shutil.copytree(folder, broken)
        (broken / name).write_bytes((broken / name).read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            load_rater(broken)


def test_a_newer_format_version_is_refused(folder: Path) -> None:
    values = json.loads((folder / "rater.json").read_text())
    values["format_version"] = checkpoint.FORMAT_VERSION + 1
    (folder / "rater.json").write_text(json.dumps(values))
    with pytest.raises(
        CheckpointError, match="format version 2; this datarater reads up to 1: install a newer one"
    ):
        load_rater(folder)


def test_parameters_of_another_shape_are_refused(tmp_path: Path) -> None:
    wrong = dataclasses.replace(make_checkpoint(), config=dataclasses.replace(CONFIG, ngram_rows=9))
    save_rater(tmp_path / "rater", wrong)
    with pytest.raises(CheckpointError, match="does not have the parameters of the shape"):
        load_rater(tmp_path / "rater")


def test_a_place_without_anything_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give the folder that datarater train wrote"):
        load_rater(tmp_path / "nowhere")


RECOMMENDATION = Recommendation(0.75, -0.05, -0.08, -0.02, 0.95, 8, "", "corpus")


@pytest.mark.parametrize("url", ["{tmp}/rater", "memory://recommending/rater"])
def test_a_recommendation_is_no_part_of_the_rater(tmp_path: Path, url: str) -> None:
    path = url.format(tmp=tmp_path)
    saved = save_rater(path, make_checkpoint())
    assert load_recommendation(path) is None
    given = dataclasses.replace(RECOMMENDATION, rater=saved.digest)
    save_recommendation(path, dataclasses.replace(given, keep=0.5))
    save_recommendation(path, given)
    assert load_recommendation(path) == given
    assert load_rater(path).digest == saved.digest
    assert_same(load_rater(path), saved)


def test_a_new_rater_does_not_inherit_a_recommendation(folder: Path) -> None:
    digest = load_rater(folder).digest
    save_recommendation(folder, dataclasses.replace(RECOMMENDATION, rater=digest))
    save_rater(folder, make_checkpoint(seed=1))
    assert load_recommendation(folder) is None


def test_a_recommendation_that_is_damaged_or_of_another_rater_is_refused(folder: Path) -> None:
    save_recommendation(folder, RECOMMENDATION)
    with pytest.raises(CheckpointError, match="was written for another rater"):
        load_recommendation(folder)
    for content in ("{", "[]", "{}", '{"keep": 0.5}'):
        (folder / "recommendation.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"recommendation\.json is damaged; remove it"):
            load_recommendation(folder)
