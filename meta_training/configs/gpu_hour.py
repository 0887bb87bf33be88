r"""An hour on one H100: a rater of 7M parameters over eight inner models of 17M.

    datarater train --config=gpu_hour --workdir=work \
        --config.data.inner='corpus/*.jsonl.zst' --config.data.outer='target/*.jsonl.zst'

Time: an hour on one H100 by the arithmetic below. Expected gain: not run.

An H100 does at most 989 TFLOP/s in bfloat16. For models this narrow 10% is assumed, so an hour has
3.56e17 FLOPs. A meta-step is 8 inner models x (2 x 64 windows x 512 tokens x (7 x 32 + 3 x 9
MFLOPs) + 64 x 512 x 3 x 32 MFLOPs), 1.6e14 in all: the warm-up's 2.5e16 and 1,950 meta-steps are
3.32e17. The pool has 16 entries of 0.2 GB (parameters and two moments) in memory and on disk.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from datarater.meta_training.config.budget import Budget
from datarater.meta_training.configs import default

BUDGET = Budget(seconds=3600, peak_flops=989e12, utilization=0.1)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.meta_steps = 1950
    config.inner_batch = 64
    config.outer_batch = 64
    config.length = 512

    config.tokenizer.kind = "bpe"

    config.rater.width = 256
    config.rater.heads = 4
    config.rater.mlp_width = 704
    config.rater.layers = 4
    config.rater.dtype = "bfloat16"

    config.inner_model.width = 384
    config.inner_model.heads = 6
    config.inner_model.mlp_width = 1024
    config.inner_model.layers = 6
    config.inner_model.dtype = "bfloat16"

    config.inner_optimiser.learning_rate = 1e-3
    config.meta_optimiser.learning_rate = 1e-3
    config.meta_optimiser.warmup_steps = 100

    config.population.size = 8
    config.population.lifetime = 200
    config.population.warmup_steps = 2000
    config.population.warmup_trajectories = 4

    # By arithmetic 0.5 GB of logits at a time; not run.
    config.meta_gradient.inner_micro_batch = 32
    config.meta_gradient.outer_micro_batch = 32
    config.meta_gradient.scan_updates = True

    config.export_every = 150
    config.checkpoint_every = 150
    config.export.reference_documents = 2048
    return config
