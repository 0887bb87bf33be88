"""What stays the same from a run's first start to its last."""

import logging
import random
from pathlib import Path

import pytest

from datarater.meta_training.configs import default
from datarater.meta_training.run.prepared_run import Experiment, prepare, scoring_unit
from tests.support.tensorflow_dataset import build_dataset
from tests.support.training import WORDS, write_texts


def prepared(tmp_path: Path, inner: str, tokenizer: bytes | None = None) -> Experiment:
    config = default.get_config()
    config.data.inner, config.data.tfds_data_dir, config.data.outer_share = (
        inner,
        str(tmp_path),
        0.25,
    )
    config.length, config.export.reference_documents = 32, 8
    config.tokenizer.kind, config.tokenizer.vocabulary_size = "bpe", 300
    return prepare(config, tokenizer)


@pytest.mark.parametrize("inner", ["files", "dataset"])
def test_a_resumed_run_has_the_provenance_of_a_fresh_one(tmp_path: Path, inner: str) -> None:
    if inner == "files":
        path = write_texts(tmp_path / "pool.jsonl")
        path.write_text(path.read_text() + "no json\n")
        name = str(path)
    else:
        rng = random.Random(0)
        texts = [" ".join(rng.choices(WORDS, k=20)) for _ in range(200)]
        build_dataset(tmp_path, {"train": [*texts, "  ", b"\xff"]})
        name = "tfds:tiny:train"

    fresh = prepared(tmp_path, name)
    # With a given tokenizer, far fewer of a dataset's documents are read.
    resumed = prepared(tmp_path, name, fresh.tokenizer.serialise())
    assert resumed.provenance == fresh.provenance
    assert resumed.data == fresh.data
    rejected = {"inner": {"not_json": 1}, "outer": {"not_json": 1}} if inner == "files" else {}
    assert fresh.provenance["data"]["rejected"] == rejected


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
    config = default.get_config()
    pool = write_texts(tmp_path / "pool.jsonl")
    target = tmp_path / "target.jsonl"
    target.write_text("".join(pool.read_text().splitlines(keepends=True)[:30]))
    config.length, config.data.inner = 32, str(pool)

    with caplog.at_level(logging.INFO, logger="datarater"):
        prepare(config)  # a share of the pool is held out
        assert not caplog.messages
        config.data.outer = str(target)
        prepare(config)
    assert caplog.messages == ["excluded 30 of 200 inner documents, which are in the outer set too"]
