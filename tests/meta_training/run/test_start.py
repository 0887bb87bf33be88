"""The rater that meta-training starts from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError, WorkdirError
from datarater.meta_training.run.prepared_run import Experiment
from datarater.meta_training.run.start import first_rater
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
from datarater.rater_model.ngram_rater import NgramConfig
from datarater.rater_model.rater import initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer, train_bpe
from tests.support.prepared import experiment_of
from tests.support.training import WORDS, write_texts


def tiny_config(folder: Path) -> ConfigDict:
    config = default.get_config()
    config.data.inner = str(write_texts(folder / "pool.jsonl"))
    config.data.outer_share = 0.25
    config.length, config.export.reference_documents = 32, 8
    config.rater.width, config.rater.mlp_width, config.rater.ngram_rows = 8, 8, 16
    return config


def an_earlier_rater(folder: Path, experiment: Experiment, seed: int = 7) -> RaterCheckpoint:
    params = jax.device_get(initialise_rater(experiment.rater, jax.random.key(seed)))
    return save_rater(
        folder,
        RaterCheckpoint(experiment.rater, params, experiment.tokenizer, provenance={"step": 40}),
    )


def test_a_run_starts_with_the_parameters_of_an_earlier_rater(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    earlier = an_earlier_rater(tmp_path / "earlier", experiment_of(config))
    config.start.rater = str(tmp_path / "earlier")

    with Workdir(tmp_path / "work") as workdir:
        start = first_rater(experiment_of(config), workdir, jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, start.params, earlier.params)
        assert start.provenance == {"start": {"rater": earlier.digest, "of_step": 40}}

        # A resumed run reads its own copy.
        shutil.rmtree(tmp_path / "earlier")
        resumed = experiment_of(config, ByteTokenizer().serialise())
        again = first_rater(resumed, workdir, jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, again.params, earlier.params)
        assert again.provenance == start.provenance

        (workdir.start / "params.safetensors").write_bytes(b"damaged")
        with pytest.raises(WorkdirError, match="restore"):
            first_rater(resumed, workdir, jax.random.key(0))


def test_an_untrained_start_is_recorded_nowhere(tmp_path: Path) -> None:
    experiment = experiment_of(tiny_config(tmp_path))
    with Workdir(tmp_path / "work") as workdir:
        start = first_rater(experiment, workdir, jax.random.key(3))
        assert not workdir.start.exists()
    untrained = initialise_rater(experiment.rater, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, start.params, untrained)
    assert start.provenance == {}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"rater.width": 16, "rater.layers": 2}, ["rater.width is 8 there and 16", "rater.layers"]),
        ({"rater.ngram_orders": (2, 3)}, ["rater.ngram_orders is [2] there and [2, 3] here"]),
        ({"length": 64}, ["length is 32 there and 64 here"]),
        ({"tokenizer.kind": "bpe"}, ["set tokenizer.kind=byte"]),
    ],
)
def test_a_rater_that_does_not_fit_is_refused_by_the_fields_that_differ(
    changes: dict[str, object], names: list[str], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path)
    an_earlier_rater(tmp_path / "earlier", experiment_of(config))
    config.start.rater = str(tmp_path / "earlier")
    with config.unlocked():
        config.update_from_flattened_dict(changes)

    with pytest.raises(ConfigError, match=r"start\.rater") as refused:
        experiment_of(config)
    for name in names:
        assert name in str(refused.value)


def test_shorter_windows_and_other_ways_to_compute_fit(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    an_earlier_rater(tmp_path / "earlier", experiment_of(config))
    config.start.rater, config.length = str(tmp_path / "earlier"), 16
    config.rater.attention, config.rater.scan_blocks = "blocks", True
    assert experiment_of(config).rater.window == 16


def test_a_run_takes_over_the_bpe_of_its_start(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.tokenizer.kind, config.tokenizer.vocabulary_size = "bpe", 270
    experiment = experiment_of(config)
    tokenizer = train_bpe([" ".join(WORDS), "zyx zyx zyx zyx"] * 4, 270)
    other = dataclasses.replace(experiment, tokenizer=tokenizer)
    an_earlier_rater(tmp_path / "earlier", other)

    config.start.rater = str(tmp_path / "earlier")
    taken = experiment_of(config)
    assert taken.tokenizer.serialise() == tokenizer.serialise()
    assert taken.tokenizer.serialise() != experiment.tokenizer.serialise()

    # A run that has begun keeps the tokenizer that it began with.
    begun = experiment_of(config, experiment.tokenizer.serialise())
    with (
        Workdir(tmp_path / "work") as workdir,
        pytest.raises(ConfigError, match="another tokenizer"),
    ):
        first_rater(begun, workdir, jax.random.key(0))

    config.tokenizer.vocabulary_size = 280
    with pytest.raises(ConfigError, match=r"set tokenizer\.vocabulary_size=270"):
        experiment_of(config)


def test_what_is_no_rater_or_a_student_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.start.rater = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"start\.rater: .*nowhere is not a rater checkpoint"):
        experiment_of(config)

    shape = NgramConfig(orders=(1,), row_bits=8)
    params = {name: np.zeros(size, np.float32) for name, size in shape.shapes().items()}
    save_rater(tmp_path / "student", RaterCheckpoint(shape, params, ByteTokenizer()))
    config.start.rater = str(tmp_path / "student")
    with pytest.raises(ConfigError, match="student"):
        experiment_of(config)
