r"""An hour on 2 cores: the models of `default`, with older inner models and more meta-steps.

    datarater train --config=cpu_hour --workdir=work \
        --config.data.inner='corpus/*.jsonl.gz' --config.data.outer='target/*.jsonl.gz'

Time: an hour on 2 cores by the arithmetic below. Expected gain: not run.

2 cores of a server do at most 2 x 3 GHz x 32 = 192 GFLOP/s in float32. The demo's 3.9e12 FLOPs in
some two minutes of training are 17% of that; 12% is assumed, so an hour has 8.29e13 FLOPs. A
meta-step is 4 inner models x (2 x 32 windows x 256 tokens x (7 x 0.38 + 3 x 0.15 MFLOPs) + 16 x
256 x 3 x 0.38 MFLOPs), 2.2e11 in all: the warm-up's 1.1e13 and 320 meta-steps are 8.18e13.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from datarater.meta_training.config.budget import Budget
from datarater.meta_training.configs import default

BUDGET = Budget(seconds=3600, peak_flops=192e9, utilization=0.12)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.meta_steps = 320
    config.population.warmup_steps = 600
    config.export_every = 40
    return config
