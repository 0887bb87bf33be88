"""The names of the arms, apart from what makes them so that nothing else is imported."""

from __future__ import annotations

UNFILTERED, RANDOM, RANDOM_AGAIN, RATER, START, LABEL = (
    "unfiltered",
    "random",
    "random_again",
    "rater",
    "start",
    "label",
)

ARMS: dict[str, str] = {
    UNFILTERED: "the whole pool; always run",
    RANDOM: "a random part",
    RANDOM_AGAIN: "another random part, for the noise floor",
    RATER: "the rater of --rater or --fixed_rater",
    START: "the rater before its first meta-step, of --start_raters",
    "unigram": "byte frequencies of the target",
    "bigram": "byte pairs of the target",
    "trigram": "byte triples of the target",
    "word_bigram": "word pairs of the target",
    "importance": "importance weights of target over pool on hashed word n-grams (DSIR)",
    "classifier": "linear n-gram classifier of target against pool",
    "target_likelihood": "log-probability under a small LM of the target",
    "perplexity_low": "lowest perplexity under a small LM of the pool",
    "perplexity_middle": "perplexity nearest to the median",
    "perplexity_high": "highest perplexity",
    "c4": "share of the text that C4's rules retain",
    "gopher": "number of Gopher's rules violated",
    LABEL: "the quality label of --label_field",
}
"""The known arms, besides those of --scores."""

_FLOORED = "_floored"
UNSCORED = frozenset({UNFILTERED, RANDOM, RANDOM_AGAIN})
"""The arms that look at no document."""
OF_RATER = frozenset({RATER, START})
"""The arms that score by a rater."""


def floored(name: str) -> str:
    """Returns the name of an arm's twin whose sources have a floor.

    Example:
        >>> floored("rater")
        'rater_floored'
    """
    return name + _FLOORED


def without_floor(name: str) -> str:
    """Returns the name of the arm whose scores an arm ranks by.

    Example:
        >>> without_floor("rater_floored"), without_floor("rater")
        ('rater', 'rater')
    """
    return name.removesuffix(_FLOORED)


DOCUMENTS, BATCH_TOP_K = "documents", "batch_top_k"
"""Ways to select: the best documents of the pool, or the best chunks of oversampled batches."""

OF_TARGET = frozenset(
    {
        "unigram",
        "bigram",
        "trigram",
        "word_bigram",
        "importance",
        "classifier",
        "target_likelihood",
    }
)
"""The arms that learn from the target, besides the rater."""

PERPLEXITY = ("perplexity_low", "perplexity_middle", "perplexity_high")
"""The arms that rank by the perplexity under a small language model of the pool."""
OF_SMALL_MODEL = ("target_likelihood", *PERPLEXITY)
"""The arms that rank by a small language model."""

DEFAULT = (RANDOM, RANDOM_AGAIN, "trigram", "importance", "classifier")
