"""Model sizes and the training protocol, apart from the training so that JAX is not imported."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datarater.rater_model.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Model:
    """Shape of the language models of an evaluation.

    Attributes:
        width: Numbers per token in the hidden states.
        heads: Attention heads.
        mlp_width: Hidden width of the MLP.
        layers: Transformer blocks.
        dtype: Data type of the computation.
    """

    width: int
    heads: int
    mlp_width: int
    layers: int
    dtype: str = "float32"

    @property
    def transformer(self) -> TransformerConfig:
        """The shape as the language model takes it."""
        from datarater.rater_model.transformer import TransformerConfig

        return TransformerConfig(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            layers=self.layers,
            dtype=self.dtype,
        )


QUESTIONS = 500
"""Maximum number of questions of a task: at the default protocol, four choices of 100 bytes for
each of them take 7% of the time that training takes."""

MODELS = {
    "0.05M": Model(width=32, heads=2, mlp_width=96, layers=2),
    "0.14M": Model(width=64, heads=2, mlp_width=192, layers=2),
    "1M": Model(width=128, heads=4, mlp_width=384, layers=5),
    "10M": Model(width=320, heads=5, mlp_width=960, layers=8),
}
"""Sizes by parameters, embeddings of a byte vocabulary included."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How every model of an evaluation is trained.

    Attributes:
        steps: T, the number of updates.
        batch: Windows of an update.
        length: Tokens of a window.
        learning_rate: Peak learning rate of Adam.
        warmup_steps: Updates of linear warm-up.
        final_share: Learning rate at the end of the cosine, as a share of the peak.
        evaluations: Number of evaluations, evenly spaced, besides that of the fresh model.
        validation_windows: Maximum number of validation windows.
    """

    steps: int = 400
    batch: int = 32
    length: int = 128
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    final_share: float = 0.1
    evaluations: int = 10
    validation_windows: int = 512

    @property
    def tokens(self) -> int:
        """Tokens that a model is trained on."""
        return self.steps * self.batch * self.length

    def evaluated_steps(self) -> list[int]:
        """Returns the steps after which the model is evaluated; the last one is among them.

        Example:
            >>> Protocol(steps=10, evaluations=4).evaluated_steps()
            [2, 5, 7, 10]
        """
        count = min(self.evaluations, self.steps)
        return [self.steps * (index + 1) // count for index in range(count)]

    def to_json(self) -> dict[str, Any]:
        """Returns the protocol as a JSON-able dict."""
        return dataclasses.asdict(self)
