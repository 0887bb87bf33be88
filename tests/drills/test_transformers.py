"""`transformers` itself reads what is exported, and writes what is read.

It needs an environment with `transformers` and `torch`, several gigabytes: give its folder as
DATARATER_TRANSFORMERS.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from datarater.rater_model.hugging_face.exporting import export_to_transformers
from datarater.rater_model.scorer import Scorer
from tests.rater_model.hugging_face import test_models_in as models_in
from tests.rater_model.hugging_face.test_exporting import TEXTS, exportable, tokenizer_of
from tests.support.hugging_face import MODELS

ENVIRONMENT = os.environ.get("DATARATER_TRANSFORMERS", "")
pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(
        not ENVIRONMENT,
        reason="DATARATER_TRANSFORMERS is not the folder of an environment with transformers",
    ),
]

SCORE = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
print(json.dumps({"class": type(model).__name__, "scores": scores[:, 0].tolist()}))
"""


def run(*words: str | Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [f"{ENVIRONMENT}/bin/python", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["byte", "bpe", "file"])
def test_transformers_gives_the_scores_of_the_rater(kind: str, tmp_path: Path) -> None:
    rater = exportable(tokenizer_of(kind))
    export_to_transformers(rater, tmp_path / "out")
    answer = json.loads(run("-c", SCORE, tmp_path / "out", json.dumps(TEXTS)))

    assert answer["class"] == "EuroBertForSequenceClassification"
    scores_N = Scorer(rater).score(TEXTS).scores_N
    assert np.std(scores_N) > 0.05
    np.testing.assert_allclose(answer["scores"], scores_N, atol=1e-5)


def test_models_that_transformers_writes_now_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(MODELS / "make.py", tmp_path)
    monkeypatch.setattr(models_in, "MODELS", tmp_path)
    monkeypatch.setattr("tests.support.hugging_face.MODELS", tmp_path)
    for name in models_in.CAUSAL:
        models_in.test_logits_of_a_causal_model_are_equal(name)
    models_in.test_hidden_states_of_an_encoder_are_equal()
