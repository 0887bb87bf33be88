"""Who may train in a folder, and with what."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from datarater.meta_training.errors import WorkdirError
from datarater.meta_training.run.prepared_run import plain
from datarater.meta_training.run.workdir import Summary, Workdir
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.json_codec import to_plain
from tests.support.configs import default_with

CONFIG: dict[str, Any] = {"meta_steps": 10, "seed": 0, "rater": {"width": 64, "ngram_orders": [2]}}


def claimed(
    folder: Path, config: dict[str, Any] = CONFIG, data: str = "data", tokenizer: bytes = b"trained"
) -> Workdir:
    with Workdir(folder) as workdir:
        workdir.check_config(ConfigDict(config))
        tokenizer = workdir.begun_tokenizer() or tokenizer
        workdir.check_data(data, tokenizer)
        workdir.claim(ConfigDict(config), data, tokenizer)
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
        ({"seed": 1, "meta_steps": 20}, "another config: seed was 0, is 1. Give the same config"),
        (
            {"seed": 1, "report_every": 2, "placement": {"data": 2}},
            "another config: seed was 0, is 1. Give the same",
        ),
        ({"rater": {"width": 32, "ngram_orders": [2]}}, r"rater\.width was 64, is 32"),
        (
            {"rater": {"width": 64, "ngram_orders": [2, 3]}},
            r"rater\.ngram_orders was \[2\], is \[2, 3\]",
        ),
        ({"rater": {"width": 64}}, r"rater\.ngram_orders was \[2\], is missing"),
        ({"new": True}, "new was missing, is True"),
    ],
)
def test_another_config_is_refused_naming_the_fields(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    claimed(tmp_path)
    with pytest.raises(WorkdirError, match=message):
        claimed(tmp_path, {**CONFIG, **changed})
    claimed(tmp_path)  # a refusal changes nothing


def whole(**changed: Any) -> dict[str, Any]:
    """Returns the default config with fields changed; `__` in a name stands for a dot."""
    return plain(default_with(**{"data__inner": "pool/*.jsonl", **changed}))


OF_NO_RESULT = {
    "checkpoint_every": 7,
    "warmup_checkpoint_every": 7,
    "keep_checkpoints": 7,
    "report_every": 7,
    "minimum_effective_sample_share": 0.2,
    "meta_steps": 300,
    "data__inner": "/another/mount/pool/*.jsonl",
    "data__tfds_data_dir": "/another/mount",
}
BUT_FOR_ROUNDING = {
    "placement__population": 2,
    "placement__data": 2,
    "placement__shard_parameters": True,
    "meta_gradient__mode": "reverse",
    "meta_gradient__inner_micro_batch": 4,
    "meta_gradient__outer_micro_batch": 4,
    "meta_gradient__rater_micro_batch": 4,
    "meta_gradient__rematerialise_updates": True,
    "meta_gradient__save_inner_gradients": True,
    "meta_gradient__scan_updates": True,
    "rater__rematerialise_blocks": True,
    "rater__scan_blocks": True,
    "rater__attention": "blocks",
    "rater__attention_block": 64,
    "inner_model__rematerialise_blocks": True,
    "inner_model__save_products": True,
    "inner_model__scan_blocks": True,
    "inner_model__attention": "blocks",
    "inner_model__attention_block": 64,
    "inner_model__loss_chunk": 64,
}
REFUSED = {
    "inner_batch": 64,
    "length": 128,
    "data__outer": "held_out/*.jsonl",  # a share of the pool was held out, and would no longer be
    "data__outer_share": 0.1,
    "data__outer_weights": "outer=1",
    "data__questions": "questions.jsonl",
    "data__text_field": "body",
    "data__validation_share": 0.1,
    "data__exclude_near_duplicates": False,
    "rater__dtype": "bfloat16",
    "inner_model__dtype": "bfloat16",
    "inner_model__width": 128,
    "inner_optimiser__learning_rate": 1e-3,
    "population__size": 8,
    "export_every": 10,
    "export__max_windows": 4,
}


@pytest.mark.parametrize("name", OF_NO_RESULT)
def test_what_changes_no_result_may_change(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    claimed(tmp_path, whole())
    changed = whole(**{name: OF_NO_RESULT[name]})
    workdir = claimed(tmp_path, changed)
    assert json.loads(workdir.config.read_text()) == changed
    assert not caplog.records


@pytest.mark.parametrize("name", BUT_FOR_ROUNDING)
def test_what_changes_results_by_rounding_may_change_with_a_warning(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    claimed(tmp_path, whole())
    with caplog.at_level(logging.WARNING, logger="datarater"):
        claimed(tmp_path, whole(**{name: BUT_FOR_ROUNDING[name], "report_every": 1}))
        (record,) = caplog.records
        assert f"with another arrangement: {name.replace('__', '.')} was " in record.getMessage()
        assert "report_every" not in record.getMessage()
        caplog.clear()
        claimed(tmp_path, whole(**{name: BUT_FOR_ROUNDING[name]}))
    assert not caplog.records  # the change was reported when it came


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_results_is_refused(tmp_path: Path, name: str) -> None:
    claimed(tmp_path, whole())
    with pytest.raises(
        WorkdirError,
        match=rf"another config: {name.replace('__', '.')} was [^;]*, is [^;]*\. Give the",
    ):
        claimed(tmp_path, whole(**{name: REFUSED[name]} | BUT_FOR_ROUNDING | OF_NO_RESULT))
    claimed(tmp_path, whole())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_whose_learning_rate_decays_over_its_steps_cannot_be_extended(
    tmp_path: Path, schedule: str
) -> None:
    decaying = {"meta_optimiser__schedule": schedule}
    claimed(tmp_path, whole(**decaying))
    with pytest.raises(
        WorkdirError,
        match=r"meta_steps was 200, is 300\..*may be raised, unless the learning rate decays",
    ):
        claimed(tmp_path, whole(**decaying, meta_steps=300))
    claimed(tmp_path, whole(**decaying))


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 0)])
def test_a_run_may_become_more_patient(tmp_path: Path, before: int, now: int) -> None:
    claimed(tmp_path, whole(early_stopping__patience=before))
    claimed(tmp_path, whole(early_stopping__patience=now))
    with pytest.raises(WorkdirError, match=r"early_stopping\.patience was \d, is \d"):
        claimed(tmp_path, whole(early_stopping__patience=before))


def test_a_field_newer_than_the_run_counts_as_its_default(tmp_path: Path) -> None:
    begun = whole()
    del begun["placement"], begun["inner_model"]["loss_chunk"], begun["meta_optimiser"]["epsilon"]
    claimed(tmp_path / "same", begun)
    claimed(tmp_path / "same", whole())
    claimed(tmp_path / "other", begun)
    with pytest.raises(
        WorkdirError, match=r"another config: meta_optimiser\.epsilon was 1e-08, is 0\.1\. Give"
    ):
        claimed(tmp_path / "other", whole(meta_optimiser__epsilon=0.1, placement__data=2))


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
    with pytest.raises(
        WorkdirError, match=r"tokenizer\.json is not the tokenizer that the run began with"
    ):
        claimed(tmp_path)
    workdir.tokenizer.unlink()
    with pytest.raises(WorkdirError, match="a newly trained tokenizer differs from it"):
        claimed(tmp_path, tokenizer=b"trained otherwise")
    assert claimed(tmp_path).begun_tokenizer() == b"trained"


def test_other_versions_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workdir = claimed(tmp_path)
    write_json(workdir.run, {**json.loads(workdir.run.read_text()), "versions": {"jax": "0.0.1"}})
    with caplog.at_level(logging.WARNING, logger="datarater"):
        claimed(tmp_path)
    assert "the run began with jax 0.0.1" in caplog.text


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        Workdir(tmp_path),
        pytest.raises(WorkdirError, match="another process is training"),
        Workdir(tmp_path),
    ):
        pass
    with Workdir(tmp_path):
        pass


def test_a_damaged_config_is_reported(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    workdir.config.write_text("{")
    with pytest.raises(WorkdirError, match=r"config\.json is damaged"):
        claimed(tmp_path)


def test_a_record_of_the_beginning_without_its_fields_is_damaged(tmp_path: Path) -> None:
    workdir = claimed(tmp_path)
    write_json(workdir.run, {"tokenizer": "abc"})
    with pytest.raises(WorkdirError, match=r"run\.json is damaged: missing field at \$\.data"):
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
    summary = Summary(meta_steps=10, digest="abc", summary=["spent"])
    write_json(workdir.summary, to_plain(summary))
    assert workdir.finished(10) is None
    workdir.rater.mkdir()
    assert workdir.finished(10) == summary
    assert workdir.finished(20) is None
