"""The rater attends both ways, ignores padding, hashes n-grams and comes in many sizes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.rater_model.rater import (
    Params,
    Rater,
    RaterConfig,
    attention_pool,
    count_parameters,
    hash_ngrams,
    initialise_rater,
    initialise_rater_shapes,
    score_tokens,
)
from datarater.rater_model.transformer import TransformerConfig

SMALL = RaterConfig(
    vocabulary_size=20, window=12, transformer=TransformerConfig(16, 2, 24, 2), ngram_rows=64
)

score = jax.jit(functools.partial(score_tokens, SMALL))


@functools.cache
def initial_params() -> Params:
    return initialise_rater(SMALL, jax.random.key(0))


def score_of_embeddings(config: RaterConfig, position_count: int) -> np.ndarray:
    """Returns how the score depends on each position's token embedding: its gradient's norm."""
    config = dataclasses.replace(config, vocabulary_size=position_count, ngram_orders=())
    params = initialise_rater(config, jax.random.key(0))
    tokens = jnp.arange(position_count)[None]  # every position has an embedding row of its own

    def score(table: jax.Array) -> jax.Array:
        with_table = {**params, "token_embedding": {"embedding": table}}
        return score_tokens(config, with_table, tokens, jnp.asarray([position_count]))[0]

    return np.linalg.norm(jax.grad(score)(params["token_embedding"]["embedding"]), axis=-1)


def test_the_score_depends_on_every_position() -> None:
    assert (score_of_embeddings(SMALL, 10) > 1e-6).all()


def test_attention_looks_both_ways() -> None:
    config = dataclasses.replace(SMALL, vocabulary_size=8, ngram_orders=())
    params = initialise_rater(config, jax.random.key(0))

    def hidden(table: jax.Array) -> jax.Array:
        with_table = {**params, "token_embedding": {"embedding": table}}
        tokens = jnp.arange(8)[None]
        _, state = Rater(config).apply(
            {"params": with_table},
            tokens,
            jnp.ones_like(tokens, bool),
            capture_intermediates=True,
            mutable=True,
        )
        return state["intermediates"]["transformer"]["__call__"][0][0]

    jacobian = jax.jacobian(hidden)(params["token_embedding"]["embedding"])  # [L, D, L, D]
    influence = np.linalg.norm(np.asarray(jacobian), axis=(1, 3))
    assert (influence > 1e-7).all(), (
        "some position does not see another: the rater must not be causal"
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=8), st.integers(0, 19), st.integers(0, 19))
def test_padding_changes_no_score(tokens: list[int], filler: int, other_filler: int) -> None:
    scores = [
        float(
            score(
                initial_params(),
                np.asarray([tokens + [fill] * (width - len(tokens))]),
                np.asarray([len(tokens)]),
            )[0]
        )
        for width, fill in ((8, filler), (8, other_filler), (12, filler))
    ]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-5, abs=1e-6)


# Attention over whole heads, over blocks of a long window, and with a head of its own width.
SCORED = [
    (SMALL, 12),
    (SMALL, 768),
    (dataclasses.replace(SMALL, transformer=TransformerConfig(24, 3, 32, 1)), 70),
    (dataclasses.replace(SMALL, pooling="attention"), 12),
]
score_as = jax.jit(score_tokens, static_argnums=0)
params_of = functools.cache(functools.partial(initialise_rater, key=jax.random.key(0)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SCORED), st.integers(0, 100), st.sampled_from([1.0, 8.0]), st.data())
def test_a_rater_for_scoring_gives_the_scores_of_training(
    scored: tuple[RaterConfig, int], seed: int, scale: float, data: st.DataObject
) -> None:
    config, length = scored
    for_scoring = config.transformer.for_scoring("float32")
    # Large queries and keys, whose logits no bound keeps small, too.
    params = jax.tree.map(lambda x: scale * x if x.ndim == 3 else x, params_of(config))
    if config.pooling == "attention":
        params = with_query(params)
    tokens = np.random.default_rng(seed).integers(0, 20, (2, length)).astype(np.int32)
    valid = np.array(data.draw(st.lists(st.integers(1, length), min_size=2, max_size=2)), np.int32)

    expected = score_as(config, params, tokens, valid)
    actual = score_as(dataclasses.replace(config, transformer=for_scoring), params, tokens, valid)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


ATTENTIVE = dataclasses.replace(SMALL, pooling="attention")


def with_query(params: Params, scale: float = 1.0) -> Params:
    """Returns parameters whose pooling queries are not zero."""
    query = jax.random.normal(jax.random.key(7), params["pooling_query"].shape)
    return {**params, "pooling_query": scale * query}


def test_attention_pooling_starts_as_the_mean() -> None:
    params = initialise_rater(ATTENTIVE, jax.random.key(0))
    assert not np.asarray(params["pooling_query"]).any()
    without = {name: value for name, value in params.items() if name != "pooling_query"}
    tokens, lengths = jnp.asarray([[1, 2, 3, 4], [5, 6, 0, 0]]), jnp.asarray([4, 2])
    expected = score_tokens(SMALL, without, tokens, lengths)
    np.testing.assert_allclose(
        score_tokens(ATTENTIVE, params, tokens, lengths), expected, rtol=1e-5
    )

    # It can leave the mean: the queries have a gradient.
    gradient = jax.grad(lambda eta: jnp.sum(score_tokens(ATTENTIVE, eta, tokens, lengths)))(params)
    assert np.abs(np.asarray(gradient["pooling_query"])).max() > 1e-4


def test_attention_pooling_weighs_each_head_by_its_own_query() -> None:
    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(2, 5, 6)), rng.normal(size=(6, 2))
    mask = np.arange(5) < np.array([[5], [3]])
    pooled = attention_pool(
        jnp.asarray(x, jnp.float32), jnp.asarray(query, jnp.float32), jnp.asarray(mask)
    )
    for row, length in enumerate((5, 3)):
        for head, part in enumerate((slice(0, 3), slice(3, 6))):
            weights = np.exp(x[row, :length] @ query[:, head] / np.sqrt(6))
            expected = weights @ x[row, :length, part] / weights.sum()
            np.testing.assert_allclose(pooled[row, part], expected, rtol=1e-4, atol=1e-6)


def test_attention_pooling_ignores_padding() -> None:
    params = with_query(initialise_rater(ATTENTIVE, jax.random.key(0)), 3.0)
    lengths = jnp.asarray([3])
    scores = [
        float(score_tokens(ATTENTIVE, params, jnp.asarray([[1, 2, 3, *filler]]), lengths)[0])
        for filler in ([], [4, 5], [6, 7, 8, 9])
    ]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-5)


def test_order_matters() -> None:
    scores = score(initial_params(), jnp.asarray([[1, 2, 3, 4], [4, 3, 2, 1]]), jnp.asarray([4, 4]))
    assert abs(float(scores[0] - scores[1])) > 1e-4


@pytest.mark.parametrize("order", [2, 3])
def test_an_ngrams_row_depends_on_its_tokens_alone(order: int) -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 258, (1, 4000)).astype(np.int32)
    rows = np.asarray(hash_ngrams(jnp.asarray(tokens), order, 1024))[0]
    seen: dict[tuple[int, ...], int] = {}
    for end in range(order - 1, tokens.shape[1]):
        ngram = tuple(tokens[0, end - order + 1 : end + 1].tolist())
        assert seen.setdefault(ngram, rows[end]) == rows[end]
    assert ((rows >= 0) & (rows < 1024)).all()
    # Rows fill evenly: a chi-square far from its mean of 1023 would be a bad hash.
    counts = np.bincount(list(seen.values()), minlength=1024)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 800 < chi_square < 1250


def test_no_parameter_shifts_all_scores() -> None:
    # A constant added to all scores changes no softmax weight; a parameter for it would only drift.
    names = {
        "/".join(str(part.key) for part in path)
        for path, _ in jax.tree.leaves_with_path(initial_params())
    }
    assert "head" in names
    assert not [name for name in names if "bias" in name]


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (RaterConfig(transformer=TransformerConfig(48, 2, 96, 2), ngram_orders=()), 0.05e6, 0.15e6),
        (RaterConfig(transformer=TransformerConfig(128, 4, 344, 4), ngram_orders=()), 0.7e6, 1.2e6),
        (
            RaterConfig(32_000, 2048, TransformerConfig(512, 8, 1408, 10), ngram_orders=()),
            45e6,
            55e6,
        ),
    ],
)
def test_sizes_from_a_tenth_of_a_million_to_the_papers_fifty(
    config: RaterConfig, low: float, high: float
) -> None:
    assert low < count_parameters(initialise_rater_shapes(config)) < high


def test_config_survives_json() -> None:
    for config in (dataclasses.replace(SMALL, ngram_orders=(2, 3)), ATTENTIVE):
        assert RaterConfig.from_json(config.to_json()) == config
    # Versions before the field read raters of mean pooling, and this one reads theirs.
    assert "pooling" not in SMALL.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ngram_orders": (1,)}, "at least 2"),
        ({"ngram_orders": (2, 2)}, "distinct"),
        ({"window": 0}, "at least 1 token"),
        ({"ngram_rows": 0}, "ngram_rows"),
        ({"pooling": "max"}, "pooling must be one of"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 2 x heads"):
        TransformerConfig(width=10, heads=4)
    with pytest.raises(ValueError, match="width must be at least 1, not 0"):
        TransformerConfig(width=0)
