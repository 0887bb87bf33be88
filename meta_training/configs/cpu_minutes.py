r"""Some minutes on 2 cores: half the length of `default`, single updates, larger outer batches.

    datarater train --config=cpu_minutes --workdir=work \
        --config.data.inner='corpus/*.jsonl.gz' --config.data.outer='target/*.jsonl.gz'

Time: 7.5 minutes on 2 cores by the arithmetic below. Expected gain: 56% with a clean target and 25%
of a mixed pool kept, where n-gram filters gain 54% and 58% (4 seeds, 0.14M parameters;
`tests.benchmarks.better_rater`, setting a2, whose target has folds that differ by source).

With T=1 no second derivative of the inner loss with respect to theta is needed, only the derivative
of each window's loss along one direction: a rated window costs a fifth less time than with T=2. The
outer batch, which costs little, is four times that of `default`, since its noise is in the score
gradient of every window.

2 cores of a server do at most 2 x 3 GHz x 32 = 192 GFLOP/s in float32, of which 12% is assumed, as
in `cpu_hour`: 7.5 minutes have 1.04e13 FLOPs. The warm-up's 2.3e12 and 120 meta-steps are 9.73e12.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from datarater.meta_training.config.budget import Budget
from datarater.meta_training.configs import default

BUDGET = Budget(seconds=450, peak_flops=192e9, utilization=0.12)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.length = 128
    config.inner_updates = 1
    config.outer_batch = 64
    config.meta_steps = 120
    return config
