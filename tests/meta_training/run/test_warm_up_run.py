"""The warm-up's batches are its own, or those of the meta-steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from datarater.meta_training.algorithm.mesh import ONE_DEVICE
from datarater.meta_training.run.preparation import prepare_in_workdir
from datarater.meta_training.run.prepared_run import open_experiment
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.warm_up_run import WarmUp
from datarater.meta_training.run.workdir import Workdir
from tests.support.configs import default_with
from tests.support.training import TINY, write_texts


def pool_of(folder: Path, inner_batch: int, warmup_batch: int) -> list[Any]:
    """Returns the pool of a run with these batches."""
    folder.mkdir()
    sizes = {"inner_batch": inner_batch, "population.warmup_batch": warmup_batch}
    texts = str(write_texts(folder / "pool.jsonl"))
    config = default_with(**TINY | sizes | {"data.inner": texts, "population.warmup_steps": 4})
    with Workdir(folder / "work") as workdir, StopSignal() as stop:
        prepare_in_workdir(config, workdir.prepared, None, workdir.run.exists())
        experiment = open_experiment(config, workdir.prepared)
        return WarmUp(experiment, workdir, stop, jax.random.key(0), ONE_DEVICE).pool()


def test_a_pool_has_batches_of_its_own_size_or_those_of_the_meta_steps(tmp_path: Path) -> None:
    own = pool_of(tmp_path / "own", inner_batch=8, warmup_batch=4)
    shared = pool_of(tmp_path / "shared", inner_batch=4, warmup_batch=0)
    assert len(own) == len(shared) == 4
    for one, other in zip(own, shared, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
