"""The FLOPs of models are those of the products that they compute."""

from __future__ import annotations

import jax
import pytest

from datarater.meta_training.algorithm.language_model import initialise_language_model
from datarater.meta_training.config import build
from datarater.meta_training.configs import default
from datarater.meta_training.run.cost import ModelCost, Spending, spending_of_shapes
from datarater.rater_model.rater import initialise_rater_shapes
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig


def spending(tied: bool) -> Spending:
    """Returns the cost of the default config, with or without tied embeddings."""
    config = default.get_config()
    config.inner_model.tied_embeddings = tied
    rater = build.rater_config(config, ByteTokenizer())
    model = build.language_model_config(config, ByteTokenizer())
    theta = jax.eval_shape(lambda: initialise_language_model(model, jax.random.key(0)))
    shapes = rater.transformer, model.transformer
    params = initialise_rater_shapes(rater), theta
    return spending_of_shapes(config, shapes, params, config.length)


def test_logits_cost_the_same_with_tied_embeddings() -> None:
    assert spending(tied=True).inner == spending(tied=False).inner


@pytest.mark.parametrize(("head_width", "products"), [(0, 64), (16, 64), (32, 128)])
def test_attention_costs_by_the_width_of_its_heads(head_width: int, products: int) -> None:
    shape = TransformerConfig(width=64, heads=4, layers=2, head_width=head_width)
    assert ModelCost.of(shape, 0, length=8).flops == 4 * 2 * 8 * products
