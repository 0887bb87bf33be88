"""Where things live when there is more than one device: a mesh of ("population", "data") axes.

Inner models are spread over the groups of the "population" axis, each model's batches over the "data" axis of its
group, and, where one device is too small for a model, its parameters and optimiser state too. The meta-step runs
under `jax.shard_map`, so every exchange between devices is written here, and none is left to the compiler's choice:

    over data        one sum of the inner gradient for each inner update and one of its derivative, one of the outer
                     gradient, one of the rater's gradient; gathers of the batch's scores and losses, B numbers each
    over population  one mean of the rater's update

With parameters cut over the data axis the sums become reduce-scatters, and theta and each cotangent are gathered whole
just before they are used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

POPULATION, DATA = "population", "data"


class OneDevice:
    """The data axis of an inner model that lives on one device: nothing to exchange."""

    size = 1

    def sum_value(self, tree: Any) -> Any:
        """Returns the sum over devices of arrays that every device then holds whole."""
        return tree

    def own_part(self, x_B: jax.Array) -> jax.Array:
        """Returns this device's part of an array's last axis, the batch."""
        return x_B

    def whole_batch(self, x_B: jax.Array) -> jax.Array:
        """Returns the arrays of all devices joined along their last axis, the batch."""
        return x_B

    def whole_params(self, params: Any) -> Any:
        """Returns a tree like theta in whole, from the parts that devices hold."""
        return params

    def sum_params(self, tree: Any) -> Any:
        """Returns this device's part of the sum over devices of trees like a whole theta."""
        return tree


@dataclasses.dataclass(frozen=True)
class DataAxis(OneDevice):
    """The devices that share the batches of one inner model, seen from inside `jax.shard_map`.

    Attributes:
        size: how many devices.
        cut_axes: for each leaf of theta, in the order of `jax.tree.leaves`, the axis that is cut over the devices, or
            -1 for a leaf that every device holds whole; None for no leaf cut.
        name: of the mesh axis.
    """

    size: int
    cut_axes: tuple[int, ...] | None = None
    name: str = DATA

    def sum_value(self, tree: Any) -> Any:
        """See `OneDevice.sum_value`."""
        return jax.lax.psum(tree, self.name)

    def own_part(self, x_B: jax.Array) -> jax.Array:
        """See `OneDevice.own_part`."""
        width = x_B.shape[-1] // self.size
        return jax.lax.dynamic_slice_in_dim(x_B, jax.lax.axis_index(self.name) * width, width, axis=-1)

    def whole_batch(self, x_B: jax.Array) -> jax.Array:
        """See `OneDevice.whole_batch`."""
        return jax.lax.all_gather(x_B, self.name, axis=x_B.ndim - 1, tiled=True)

    def whole_params(self, params: Any) -> Any:
        """See `OneDevice.whole_params`."""
        if self.cut_axes is None:
            return params
        leaves, structure = jax.tree.flatten(params)
        whole = [
            leaf if axis < 0 else jax.lax.all_gather(leaf, self.name, axis=axis, tiled=True)
            for leaf, axis in zip(leaves, self.cut_axes, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    def sum_params(self, tree: Any) -> Any:
        """See `OneDevice.sum_params`."""
        if self.cut_axes is None:
            return jax.lax.psum(tree, self.name)
        leaves, structure = jax.tree.flatten(tree)
        parts = [
            jax.lax.psum(leaf, self.name)
            if axis < 0
            else jax.lax.psum_scatter(leaf, self.name, scatter_dimension=axis, tiled=True)
            for leaf, axis in zip(leaves, self.cut_axes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)
