"""Who may train in a folder, and with what."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from meta_training.errors import WorkdirError
from meta_training.workdir import Workdir, write_json

CONFIG: dict[str, Any] = {"meta_steps": 10, "seed": 0, "rater": {"width": 64, "ngram_orders": [2]}}


def claimed(
    folder: Path, config: dict[str, Any] = CONFIG, data: str = "data", tokenizer: bytes = b"trained"
) -> Workdir:
    with Workdir(folder) as workdir:
        workdir.check_config(config)
        tokenizer = workdir.begun_tokenizer() or tokenizer
        workdir.check_data(data, tokenizer)
        workdir.claim(config, data, tokenizer)
    return Workdir(folder)


def test_the_same_config_and_more_meta_steps_go_on(tmp_path: Path) -> None:
    claimed(tmp_path / "work")
    claimed(tmp_path / "work")
    claimed(tmp_path / "work", {**CONFIG, "meta_steps": 20})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"meta_steps": 9}, "meta_steps was 10, is 9"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"seed": 1, "meta_steps": 20}, "meta_steps was 10, is 20; seed was 0, is 1"),
        ({"rater": {"width": 32, "ngram_orders": [2]}}, r"rater\.width was 64, is 32"),
        ({"rater": {"width": 64, "ngram_orders": [2, 3]}}, r"rater\.ngram_orders was \[2\], is \[2, 3\]"),
        ({"rater": {"width": 64}}, r"rater\.ngram_orders was \[2\], is not there"),
        ({"new": True}, "new was not there, is True"),
    ],
)
def test_another_config_is_refused_naming_the_fields(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    claimed(tmp_path)
    with pytest.raises(WorkdirError, match=message):
        claimed(tmp_path, {**CONFIG, **changed})
    claimed(tmp_path)  # a refusal changes nothing


def test_other_data_are_refused(tmp_path: Path) -> None:
    claimed(tmp_path)
    with pytest.raises(WorkdirError, match="on other data"):
        claimed(tmp_path, data="changed")


def test_the_tokenizer_is_kept_from_the_first_start_on(tmp_path: Path) -> None:
    assert Workdir(tmp_path).begun_tokenizer() is None
    workdir = claimed(tmp_path)
    assert workdir.begun_tokenizer() == b"trained"
    claimed(tmp_path, tokenizer=b"trained otherwise")
    assert workdir.begun_tokenizer() == b"trained"
    versions = json.loads(workdir.run.read_text())["versions"]
    assert {"tokenizers", "jax", "jaxlib"} <= set(versions)


def test_a_tokenizer_of_a_start_that_never_became_a_run_is_made_anew(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    workdir.run.unlink()
    assert workdir.begun_tokenizer() is None
    assert claimed(tmp_path, tokenizer=b"trained again").begun_tokenizer() == b"trained again"


def test_another_tokenizer_is_refused_and_a_lost_one_made_again(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    workdir.tokenizer.write_bytes(b"exchanged")
    with pytest.raises(WorkdirError, match=r"tokenizer\.json is not the tokenizer that the run began with"):
        claimed(tmp_path)
    workdir.tokenizer.unlink()
    with pytest.raises(WorkdirError, match="a tokenizer trained anew is another one"):
        claimed(tmp_path, tokenizer=b"trained otherwise")
    assert claimed(tmp_path).begun_tokenizer() == b"trained"


def test_other_versions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workdir = claimed(tmp_path)
    write_json(workdir.run, {**json.loads(workdir.run.read_text()), "versions": {"jax": "0.0.1"}})
    with caplog.at_level(logging.WARNING, logger="datarater"):
        claimed(tmp_path)
    assert "the run began with jax 0.0.1" in caplog.text


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with Workdir(tmp_path), pytest.raises(WorkdirError, match="another process is training"), Workdir(tmp_path):
        pass
    with Workdir(tmp_path):
        pass


def test_a_damaged_config_is_told(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    workdir.config.write_text("{")
    with pytest.raises(WorkdirError, match=r"config\.json is damaged"):
        claimed(tmp_path)


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    left_over = workdir.raters / ".step_00000005.new-0123456789ab"
    left_over.mkdir(parents=True)
    rater = workdir.rater_of_step(5)
    rater.mkdir()
    claimed(tmp_path)
    assert not left_over.exists()
    assert rater.exists()


def test_a_run_is_finished_when_its_summary_and_its_rater_are_there(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    assert workdir.finished(10) is None
    write_json(workdir.summary, {"meta_steps": 10, "digest": "abc"})
    assert workdir.finished(10) is None
    workdir.rater.mkdir()
    assert workdir.finished(10) == {"meta_steps": 10, "digest": "abc"}
    assert workdir.finished(20) is None
