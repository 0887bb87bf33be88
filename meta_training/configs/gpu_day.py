r"""A day on one H100: a rater of 20M parameters over eight inner models of 70M.

    datarater train --config=gpu_day --workdir=work \
        --config.data.inner='corpus/*.jsonl.zst' --config.data.outer='target/*.jsonl.zst'

Time: a day on one H100 by the arithmetic below. Expected gain: not run.

An H100 does at most 989 TFLOP/s in bfloat16. 20% is assumed, since recomputed blocks do not count,
so a day has 1.71e19 FLOPs. A meta-step is 8 inner models x (2 x 128 windows x 1,024 tokens x (7 x
146 + 3 x 31 MFLOPs) + 128 x 1,024 x 3 x 146 MFLOPs), 2.8e15 in all: the warm-up's 4.6e17 and 5,700
meta-steps are 1.64e19. The inner models take 6.7 GB, and the pool has 8 entries of 0.84 GB
(parameters and two moments) in the host's memory and on disk.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from datarater.meta_training.config.budget import Budget
from datarater.meta_training.configs import gpu_hour

BUDGET = Budget(seconds=86_400, peak_flops=989e12, utilization=0.2)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = gpu_hour.get_config()
    config.meta_steps = 5700
    config.inner_batch = 128
    config.outer_batch = 128
    config.length = 1024

    config.tokenizer.vocabulary_size = 16_000
    config.tokenizer.training_documents = 100_000

    config.rater.width = 384
    config.rater.heads = 6
    config.rater.mlp_width = 1024
    config.rater.layers = 6
    config.rater.rematerialise_blocks = True
    config.rater.scan_blocks = True

    config.inner_model.width = 640
    config.inner_model.heads = 10
    config.inner_model.mlp_width = 1728
    config.inner_model.layers = 10
    config.inner_model.rematerialise_blocks = True
    config.inner_model.scan_blocks = True
    config.inner_model.loss_chunk = 256

    config.population.lifetime = 500
    config.population.warmup_entries = 2

    config.meta_gradient.rematerialise_updates = True
    config.meta_gradient.save_inner_gradients = True
    config.meta_gradient.inner_micro_batch = 16
    config.meta_gradient.outer_micro_batch = 16
    config.meta_gradient.rater_micro_batch = 32

    config.export_every = 285
    config.checkpoint_every = 100
    config.export.reference_documents = 4096
    config.export.max_windows = 64
    return config
