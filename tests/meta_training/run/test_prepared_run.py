"""What stays the same from a run's first start to its last: its prepared data."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from datarater.meta_training.configs import default
from datarater.meta_training.data import texts as texts_module
from datarater.meta_training.data.plan import Plan
from datarater.meta_training.data.prepared import PreparedWindows
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.errors import WorkdirError
from datarater.meta_training.run import preparation
from datarater.meta_training.run.prepared_run import open_experiment, scoring_unit
from tests.support.prepared import prepare
from tests.support.tensorflow_dataset import build_dataset
from tests.support.training import WORDS, write_texts


def config_of(tmp_path: Path, inner: str = "files") -> ConfigDict:
    """Returns a config on files or on a dataset, of which each has records to reject."""
    config = default.get_config()
    if inner == "files":
        path = write_texts(tmp_path / "pool.jsonl")
        path.write_text(path.read_text() + "no json\n")
        config.data.inner = str(path)
    else:
        rng = random.Random(0)
        texts = [" ".join(rng.choices(WORDS, k=20)) for _ in range(200)]
        build_dataset(tmp_path, {"train": [*texts, "  ", b"\xff"]})
        config.data.inner = "tfds:tiny:train"
    config.data.tfds_data_dir, config.data.outer_share = str(tmp_path), 0.25
    config.length, config.export.reference_documents = 32, 8
    config.tokenizer.kind, config.tokenizer.vocabulary_size = "bpe", 300
    return config


def in_workdir(config: ConfigDict, workdir: Path, begun: bool = False) -> None:
    preparation.prepare_in_workdir(config, workdir / "prepared", None, begun)


@pytest.mark.parametrize("inner", ["files", "dataset"])
def test_a_resumed_run_reads_what_was_prepared_and_has_its_provenance(
    tmp_path: Path, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = config_of(tmp_path, inner), tmp_path / "work"
    in_workdir(config, workdir)
    fresh = open_experiment(config, workdir / "prepared")
    rejected = {"not_json": 1} if inner == "files" else {"text_empty": 1, "text_not_unicode": 1}
    assert fresh.provenance["data"]["rejected"] == {"inner": rejected, "outer": rejected}
    assert fresh.validation is None
    assert len(fresh.reference) == 8

    monkeypatch.setattr(texts_module, "read_file", None)  # no file is read again
    monkeypatch.setattr(preparation, "prepare", None)
    in_workdir(config, workdir, begun=True)
    resumed = open_experiment(config, workdir / "prepared")
    assert resumed.provenance == fresh.provenance
    assert resumed.data == fresh.data
    assert resumed.reference == fresh.reference
    assert resumed.tokenizer.serialise() == fresh.tokenizer.serialise()
    assert not (workdir / "prepared" / "work").exists()


def test_touched_or_moved_files_of_the_same_content_are_the_same_data(tmp_path: Path) -> None:
    config, workdir = config_of(tmp_path), tmp_path / "work"
    in_workdir(config, workdir)
    index = workdir / "prepared" / "index.json"
    before = json.loads(index.read_bytes())

    os.utime(config.data.inner, (1, 1))
    in_workdir(config, workdir, begun=True)
    shutil.move(config.data.inner, tmp_path / "moved.jsonl")
    config.data.inner = str(tmp_path / "moved.jsonl")
    in_workdir(config, workdir, begun=True)
    after = json.loads(index.read_bytes())
    assert after["data"] == before["data"]
    assert after["sets"]["inner"]["fingerprint"] != before["sets"]["inner"]["fingerprint"]


def test_changed_files_are_prepared_again_before_a_run_has_begun_and_refused_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, workdir = config_of(tmp_path), tmp_path / "work"
    in_workdir(config, workdir)
    write_texts(Path(config.data.inner), seed=1)
    with pytest.raises(WorkdirError, match=r"has a run on other data.*texts of the inner set's"):
        in_workdir(config, workdir, begun=True)
    with caplog.at_level(logging.INFO, logger="datarater"):
        in_workdir(config, workdir)
    assert "preparing the data again: the texts of the inner set's source have changed" in (
        caplog.text
    )
    config.length = 16
    with caplog.at_level(logging.INFO, logger="datarater"):
        in_workdir(config, workdir)
    assert "it was prepared with length 32, now it is 16" in caplog.text


def test_a_rater_records_whether_it_is_trained_on_what_is_scored() -> None:
    config = default.get_config()
    assert scoring_unit(config) == {
        "windows": "packed",
        "tokens": 256,
        "minimum_tokens": 256,
        "separators": True,
        "as_scored": False,
    }
    config.data.windows = "document"
    unit = scoring_unit(config)
    assert (unit["minimum_tokens"], unit["separators"], unit["as_scored"]) == (32, False, True)


def test_documents_of_the_pool_that_are_in_the_target_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path)
    pool = Path(config.data.inner)
    lines = pool.read_text().splitlines(keepends=True)[:30]
    quoted = json.loads(lines[0])["text"].upper()
    config.data.outer = str(tmp_path / "target.jsonl")
    Path(config.data.outer).write_text("".join(lines))
    pool.write_text(pool.read_text() + json.dumps({"text": quoted}) + "\n")

    with caplog.at_level(logging.INFO, logger="datarater"):
        index = prepare(config, tmp_path / "prepared")
    assert "excluded 30 of 201 inner documents, which are in another set too" in caplog.text
    assert "excluded 1 of 201 inner documents, which are near-duplicates" in caplog.text
    assert (index.sets["inner"].documents, index.sets["inner"].near_duplicates) == (170, 1)


def test_a_killed_preparation_continues_after_the_last_unit_that_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path)
    monkeypatch.setattr(
        "datarater.meta_training.run.preparation.Plan",
        lambda **values: Plan(**values, unit_bytes=2000),
    )
    undisturbed = prepare(config, tmp_path / "undisturbed")

    class KilledError(Exception):
        pass

    class DyingTokenizer:
        def __init__(self, tokenizer: object, lives: int) -> None:
            self._tokenizer, self._lives = tokenizer, lives

        def __getattr__(self, name: str) -> object:
            return getattr(self._tokenizer, name)

        def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
            self._lives -= 1
            if self._lives < 0:
                raise KilledError
            return self._tokenizer.encode_batch(texts)  # type: ignore[attr-defined]

    make = preparation.make_tokenizer
    monkeypatch.setattr(preparation, "make_tokenizer", lambda *args: DyingTokenizer(make(*args), 5))
    with pytest.raises(KilledError):
        prepare(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "index.json").exists()

    monkeypatch.setattr(preparation, "make_tokenizer", make)
    with caplog.at_level(logging.INFO, logger="datarater"):
        continued = prepare(config, tmp_path / "killed")
    assert "continuing: 5 of " in caplog.text
    assert continued == undisturbed
    for path in (tmp_path / "undisturbed").glob("inner*"):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


def test_processes_prepare_what_one_process_prepares(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    one = prepare(config, tmp_path / "one")
    original = Plan

    def plan(**values: object) -> object:
        return original(**values, unit_bytes=1000, shard_bytes=2000)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "Plan", plan)
        several = preparation.prepare(config, tmp_path / "several", processes=2)
    assert len(several.sets["inner"].shards) > 3
    for role in one.sets:
        read = [
            open_set.read(np.arange(one.sets[role].windows))
            for folder in ("one", "several")
            for open_set in [PreparedWindows(tmp_path / folder, role)]
        ]
        np.testing.assert_array_equal(read[0][0], read[1][0])
        np.testing.assert_array_equal(read[0][1], read[1][1])


def test_a_given_folder_must_fit_the_config(tmp_path: Path) -> None:
    config, folder = config_of(tmp_path), tmp_path / "windows"
    config.data.validation_share = 0.1
    with pytest.raises(DataError, match=r"data\.prepared: .* has no index\.json; make it with"):
        preparation.check_given(config, folder)
    prepare(config, folder)
    preparation.check_given(config, folder)

    config.length = 64
    with pytest.raises(DataError, match="does not fit the config: it was prepared with length 32"):
        preparation.check_given(config, folder)
    config.length = 32
    config.export.reference_documents = 9
    with pytest.raises(DataError, match="keeps 8 reference documents, fewer than export"):
        preparation.check_given(config, folder)
    config.export.reference_documents = 8
    write_texts(Path(config.data.inner), seed=1)
    with pytest.raises(DataError, match="texts of the inner set's source have changed"):
        preparation.check_given(config, folder)

    # Without sources the folder says what the sets are.
    config.data.inner, config.data.outer_share, config.data.validation_share = "", 0.05, 0.0
    preparation.check_given(config, folder)
    validation = open_experiment(config, folder).validation
    assert validation is not None
    assert " of " in validation.describe()
    config.data.test_share = 0.1
    with pytest.raises(DataError, match=r"prepared with data\.test_share None, now it is 0\.1"):
        preparation.check_given(config, folder)


def test_a_damaged_index_or_tokenizer_is_refused(tmp_path: Path) -> None:
    config, folder = config_of(tmp_path), tmp_path / "windows"
    prepare(config, folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not the tokenizer that the folder was prepared with"):
        open_experiment(config, folder)
    prepare(config, folder)
    (folder / "reference.json").write_text("[")
    with pytest.raises(DataError, match=r"reference\.json is damaged"):
        open_experiment(config, folder)
    (folder / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json is damaged or of another version"):
        open_experiment(config, folder)


def test_validations_need_prepared_data_with_a_validation_set(tmp_path: Path) -> None:
    config, folder = config_of(tmp_path), tmp_path / "windows"
    prepare(config, folder)
    config.validate_every = 5
    with pytest.raises(DataError, match=r"needs a validation set, and the data in .* without one"):
        open_experiment(config, folder)


def test_a_folder_prepared_with_other_shares_is_other_data(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.tokenizer.kind = "byte"
    given = config.copy_and_resolve_references()
    given.data.inner, given.data.outer_share = "", default.get_config().data.outer_share
    given.data.prepared = str(tmp_path / "prepared")

    identities = []
    for share in (0.25, 0.25, 0.5):
        config.data.outer_share = share
        prepare(config, tmp_path / "prepared")
        preparation.check_given(given, tmp_path / "prepared")
        identities.append(open_experiment(given, tmp_path / "prepared").data)
    assert identities[0] == identities[1] != identities[2]
