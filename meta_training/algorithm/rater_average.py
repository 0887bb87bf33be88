"""An exponential moving average of the rater over meta-steps.

Single meta-steps are noisy, and the average of the last of them scores more steadily than any one.
With d the decay and eta_k the rater after meta-step k,

    a_0 = 0,    a_n = d a_(n-1) + (1 - d) eta_n

and the rater that a run exports after n > 0 meta-steps is

    a_n / (1 - d^n) = sum over k = 1..n of d^(n-k) eta_k / sum over k = 1..n of d^(n-k)

so the untrained rater has no part in it, and early averages are not drawn to 0. Meta-gradients are
always those of eta_n: the average changes what is exported, never what is learned. The paper (arXiv
2505.17895) has no such average.
"""

from __future__ import annotations

import jax
import optax

from datarater.meta_training.algorithm.language_model import Params


def make_rater_average(decay: float) -> optax.GradientTransformation:
    """Returns the average: its `update` takes the rater's parameters, and its state is a_n.

    Args:
        decay: d in [0, 1); with 0 there is no average, and the state has no arrays.
    """
    return optax.ema(decay, debias=False) if decay else optax.identity()


def averaged_rater(decay: float, rater_params: Params, state: optax.OptState) -> Params:
    """Returns the parameters to export: the average, or the rater's own without an average.

    Args:
        decay: d of `make_rater_average`.
        rater_params: eta_n; what is returned before the first meta-step.
        state: State of the average after n updates.

    Example:
        >>> average = make_rater_average(0.5)
        >>> state = average.init({"a": jax.numpy.zeros(1)})
        >>> for value in (2.0, 5.0):  # a_2 = 0.5 (0.5 x 2) + 0.5 x 5 = 3, over 1 - 0.25
        ...     state = average.update({"a": jax.numpy.full(1, value)}, state)[1]
        >>> float(averaged_rater(0.5, {"a": 5.0}, state)["a"][0])
        4.0
    """
    if not isinstance(state, optax.EmaState) or not int(state.count):
        return rater_params
    correction = 1 - decay ** int(state.count)
    return jax.tree.map(lambda x: x / correction, state.ema)
