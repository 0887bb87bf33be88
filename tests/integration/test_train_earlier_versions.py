"""Workdirs of released versions continue with this one."""

import subprocess
import sys
from pathlib import Path

import pytest

from datarater.meta_training.run.metrics import read_metrics
from tests.support import training
from tests.support.earlier_versions import unpack

# The last flag names a default that has changed since.
FLAGS_OF_0_1_0 = """
    --config=default --workdir=workdir --config.data.inner=pool.jsonl --config.length=32
    --config.inner_batch=4 --config.outer_batch=4 --config.report_every=4 --config.export_every=4
    --config.checkpoint_every=3 --config.rater.width=16 --config.rater.mlp_width=16
    --config.rater.ngram_rows=64 --config.inner_model.width=16 --config.inner_model.mlp_width=16
    --config.inner_model.layers=1 --config.population.size=2 --config.population.lifetime=6
    --config.population.warmup_steps=20 --config.population.warmup_entries=2
    --config.export.reference_documents=16 --config.data.outer_share=0.25
    --config.tokenizer.kind=bpe --config.tokenizer.vocabulary_size=300 --config.keep_checkpoints=1
    --config.inner_optimiser.eps_root=1e-8
"""


@pytest.mark.slow
def test_a_workdir_of_0_1_0_continues(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "earlier")
    workdir = folder / "workdir"

    def train(meta_steps: int) -> subprocess.CompletedProcess[str]:
        flags = [*FLAGS_OF_0_1_0.split(), f"--config.meta_steps={meta_steps}"]
        return subprocess.run(
            [sys.executable, "-m", "datarater.meta_training.train", *flags],
            cwd=folder,
            env=training.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    written = training.digest(workdir / "rater")
    done = train(12)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing to do: workdir has a finished run of 12 meta-steps")
    assert training.digest(workdir / "rater") == written

    done = train(16)
    assert done.returncode == 0, done.stderr
    assert "resuming at meta-step 12 of 16" in done.stderr
    assert f"rater {training.digest(workdir / 'rater')[:12]} after 16 meta-steps" in done.stdout
    assert training.digest(workdir / "rater") != written
    steps = [row["step"] for row in read_metrics(workdir / "metrics" / "metrics.csv")]
    assert steps == list(range(1, 17))
