"""Runs that start from models of Hugging Face."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError
from datarater.meta_training.run.prepared_run import Experiment
from datarater.meta_training.run.start import first_rater
from datarater.meta_training.run.start_models import copy_models, fill_config, start_models
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.checkpoint import load_rater
from tests.support import training
from tests.support.hugging_face import MODELS, changed_model
from tests.support.prepared import experiment_of
from tests.support.training import write_texts


def config_of(folder: Path, **start: Any) -> ConfigDict:
    config = default.get_config()
    config.data.inner = str(write_texts(folder / "pool.jsonl", 60))
    config.data.outer_share = 0.25
    config.length, config.export.reference_documents = 16, 4
    config.rater.ngram_rows = 16
    for field, model in start.items():
        config.start[field] = str(model)
    return config


def started(config: ConfigDict, copies: Path) -> tuple[ConfigDict, Experiment]:
    copy_models(start_models(config, copies), copies, config)
    models = start_models(config, copies)
    filled = fill_config(config, models)
    return filled, experiment_of(filled, models=models)


def test_inner_models_start_as_the_language_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, inner_model=MODELS / "llama_tied")
    filled, experiment = started(config, tmp_path / "copies")
    assert (filled.inner_model.heads, filled.inner_model.tied_embeddings) == (4, True)
    assert filled.tokenizer.kind == "file"
    assert config.inner_model.heads == 2  # the caller's config stays

    params = experiment.initialise(jax.random.key(0))
    rows = experiment.tokenizer.vocabulary_size
    assert rows < 272  # the model has spare rows, which no token uses
    assert params["token_embedding"]["embedding"].shape == (rows, 16)
    assert "readout" not in params
    assert experiment.provenance["models"]["inner_model"]["path"] == str(MODELS / "llama_tied")
    # Every inner model gets arrays of its own, which may be donated.
    again = experiment.initialise(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    again["token_embedding"]["embedding"].delete()
    assert np.isfinite(params["token_embedding"]["embedding"]).all()


def test_a_rater_starts_as_an_encoder_with_a_fresh_head(tmp_path: Path) -> None:
    model = changed_model(tmp_path / "encoder", "eurobert")
    config = config_of(tmp_path, rater=model)
    with Workdir(tmp_path / "work") as workdir:
        filled, experiment = started(config, workdir.models)
        start = first_rater(experiment, workdir, jax.random.key(0))
        encoder = experiment.models["rater"].params()
        for name in ("token_embedding", "transformer"):
            jax.tree.map(np.testing.assert_array_equal, start.params[name], encoder[name])
        assert start.params["head"].shape == (16,)
        assert start.params["ngram_2_embedding"]["embedding"].shape == (16, 16)
        assert start.provenance["start"]["encoder"]["path"] == str(model)

        # A resumed run needs neither the model nor its shape.
        shutil.rmtree(model)
        again = start_models(config, workdir.models)
        assert fill_config(config, again).to_dict() == filled.to_dict()


def test_a_config_that_asks_for_another_shape_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, inner_model=MODELS / "llama")
    config.inner_model.width, config.inner_model.layers = 32, 5
    models = start_models(config, tmp_path)
    with pytest.raises(ConfigError) as refused:
        fill_config(config, models)
    assert "inner_model.width is 32, but the model has 16" in str(refused.value)
    assert "inner_model.layers is 5, but the model has 2" in str(refused.value)


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    other = changed_model(tmp_path / "other", "eurobert", eos_token_id=1)
    config = config_of(tmp_path, rater=other, inner_model=MODELS / "llama")
    with pytest.raises(ConfigError, match="have different tokenizers"):
        start_models(config, tmp_path)

    config = config_of(tmp_path, inner_model=MODELS / "eurobert")
    with pytest.raises(ConfigError, match=r"start\.inner_model: .* an encoder"):
        start_models(config, tmp_path)

    config = config_of(tmp_path, inner_model=MODELS / "llama")
    config.length = 4096
    with pytest.raises(ConfigError, match=r"texts of 2,048 tokens; length is 4,096"):
        start_models(config, tmp_path)

    config = config_of(tmp_path, inner_model=tmp_path)
    with pytest.raises(ConfigError, match=r"start\.inner_model: .*there is no config\.json"):
        start_models(config, tmp_path)

    small = changed_model(tmp_path / "small", "llama", vocab_size=200)
    with pytest.raises(ConfigError, match="embedding only 200 rows"):
        start_models(config_of(tmp_path, inner_model=small), tmp_path)


def test_weights_that_do_not_fit_are_refused_before_a_copy_is_kept(tmp_path: Path) -> None:
    model = changed_model(tmp_path / "model", "llama", num_hidden_layers=3)
    config = config_of(tmp_path, inner_model=model)
    copies = tmp_path / "copies"
    with pytest.raises(ConfigError, match=r"missing: layers\.2") as refused:
        copy_models(start_models(config, copies), copies, config)
    assert str(refused.value).startswith(f"start.inner_model: {model} does not have")
    assert not list(copies.iterdir())

    # The mended model is read, not what was there before.
    shutil.copy(MODELS / "llama" / "config.json", model)
    copy_models(start_models(config, copies), copies, config)
    assert start_models(config, copies)["inner_model"].shape.transformer.layers == 2


@pytest.mark.slow
def test_a_run_from_both_resumes_without_them(tmp_path: Path) -> None:
    models = {
        field: changed_model(tmp_path / field, name)
        for field, name in (("rater", "eurobert"), ("inner_model", "llama"))
    }
    fields: dict[str, Any] = {
        "length": 16,
        "meta_steps": 3,
        "rater__mlp_width": 24,
        "inner_model__mlp_width": 24,
        "inner_model__layers": 2,
        "population__warmup_steps": 0,
        **{f"start__{field}": path for field, path in models.items()},
    }
    texts = write_texts(tmp_path / "pool.jsonl")
    done = training.run(training.command(tmp_path / "work", texts, **fields))
    assert done.returncode == 0, done.stderr
    rater = load_rater(tmp_path / "work" / "rater")
    assert rater.tokenizer.kind == "file"
    assert rater.config.to_json()["transformer"]["head_width"] == 6
    recorded = json.loads((tmp_path / "work" / "config.json").read_text())
    assert recorded["inner_model"]["rotary_base"] == 500.0

    for path in models.values():
        shutil.rmtree(path)
    done = training.run(training.command(tmp_path / "work", texts, **{**fields, "meta_steps": 4}))
    assert done.returncode == 0, done.stderr
    assert "after 4 meta-steps" in done.stdout
