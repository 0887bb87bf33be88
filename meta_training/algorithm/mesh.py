"""Where things live when there is more than one device: a mesh of ("population", "data") axes.

Inner models are spread over the groups of the "population" axis, each model's batches over the
"data" axis of its group, and, where one device is too small for a model, its parameters and
optimiser state too. What the meta-step computes of parameters and batches runs under
`jax.shard_map`, so those exchanges between devices are written here:

    over data        one sum of the inner gradient for each inner update and one of its derivative, one of the outer
                     gradient, one of the rater's gradient; gathers of the batch's scores and
                     losses, B numbers each
    over population  one mean of the rater's update

With parameters cut over the data axis the sums become reduce-scatters, and theta and each cotangent
are gathered whole just before they are used. Only the means of the metrics, a few numbers over the
population, lie outside and are left to the compiler.

Several processes that train together meet here too: what must be the same in all of them is
compared before they begin, and one that cannot go on says so and ends by itself, whatever the
others do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

POPULATION, DATA = "population", "data"


class PlacementError(ValueError):
    """Devices that the config's population or batches cannot be spread over; the message names the field."""


@dataclasses.dataclass(frozen=True)
class PlacementConfig:
    """How inner models and their batches are spread over devices.

    Attributes:
        population: groups of devices, each with an equal share of the inner models; 0 for the
            number that leaves the fewest devices idle, the largest of several.
        data: devices in a group, each with an equal share of every batch; 0 for as many as divide
            the batches.
        shard_parameters: cut each inner model's parameters and optimiser state over its group's
            devices, each array along its longest axis that can be cut evenly. They are put together
            just before they are used: what stays on a device between updates shrinks by the group's
            size.
    """

    population: int = 0
    data: int = 0
    shard_parameters: bool = False

    def __post_init__(self) -> None:
        if min(self.population, self.data) < 0:
            raise ValueError("placement.population and placement.data must be at least 0")


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
        cut_axes: for each leaf of theta, in the order of `jax.tree.leaves`, the axis that is cut
            over the devices, or -1 for a leaf that every device holds whole; None for no leaf cut.
        name: of the mesh axis, or axes.
    """

    size: int
    cut_axes: tuple[int, ...] | None = None
    name: str | tuple[str, ...] = DATA

    def sum_value(self, tree: Any) -> Any:
        """See `OneDevice.sum_value`."""
        return jax.lax.psum(tree, self.name)

    def own_part(self, x_B: jax.Array) -> jax.Array:
        """See `OneDevice.own_part`."""
        width = x_B.shape[-1] // self.size
        return jax.lax.dynamic_slice_in_dim(
            x_B, jax.lax.axis_index(self.name) * width, width, axis=-1
        )

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


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and where on it the parts of meta-training live.

    Attributes:
        mesh: of ("population", "data").
        shard_parameters: see `PlacementConfig`.
    """

    mesh: Mesh
    shard_parameters: bool = False

    @property
    def groups(self) -> int:
        """Groups of devices along the population axis."""
        return self.mesh.shape[POPULATION]

    @property
    def group_size(self) -> int:
        """Devices of a group, along the data axis."""
        return self.mesh.shape[DATA]

    def cut_axis(self, shape: Sequence[int]) -> int:
        """Returns which axis of an array of one inner model is cut over its group, -1 for none.

        It depends on the shape alone, so Adam's moments are cut as the parameters are.
        """
        lengths = [length if length and length % self.group_size == 0 else 0 for length in shape]
        if not self.shard_parameters or self.group_size == 1 or not any(lengths):
            return -1
        return int(np.argmax(lengths))

    def data_axis(self, params: Any) -> DataAxis | None:
        """Returns what `make_meta_gradient` needs to know of the data axis; None if groups are single devices.

        Args:
            params: theta of one inner model, or its shapes.
        """
        if self.group_size == 1:
            return None
        cut_axes = tuple(self.cut_axis(leaf.shape) for leaf in jax.tree.leaves(params))
        return DataAxis(self.group_size, cut_axes if self.shard_parameters else None)

    def member_specs(self, member: Any, stacked: bool) -> Any:
        """Returns the partition specs of a tree of one inner model's arrays, or of a stack of them."""

        def spec(leaf: Any) -> PartitionSpec:
            shape = leaf.shape[1:] if stacked else leaf.shape
            axis = self.cut_axis(shape)
            parts = [DATA if i == axis else None for i in range(len(shape))]
            return PartitionSpec(POPULATION, *parts) if stacked else PartitionSpec(*parts)

        return jax.tree.map(spec, member)

    def shardings(self, specs: Any) -> Any:
        """Returns the shardings of partition specs."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def place(self, tree: Any, specs: Any) -> Any:
        """Puts arrays, the same ones in every process, where the specs say.

        Args:
            tree: arrays; those that JAX can move between devices are, the others are copied from
                this process.
            specs: a tree of partition specs, or one for all.
        """
        if isinstance(specs, PartitionSpec):
            specs = jax.tree.map(lambda _: specs, tree)

        def put(x: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
                return x
            if isinstance(x, jax.Array) and not x.is_fully_addressable:
                return jax.jit(lambda y: y, out_shardings=sharding)(x)
            if sharding.is_fully_addressable:
                return jax.device_put(x, sharding)
            values = np.asarray(x)
            return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

        return jax.tree.map(put, tree, self.shardings(specs))

    def mean_over_population(self, tree: Any) -> Any:
        """Returns the mean over groups, for use inside `jax.shard_map`."""
        return jax.lax.pmean(tree, POPULATION) if self.groups > 1 else tree

    def describe(self) -> str:
        """Returns one sentence for a person."""
        kind = self.mesh.devices.flat[0].device_kind
        cut = (
            ", parameters cut over the group"
            if self.shard_parameters and self.group_size > 1
            else ""
        )
        idle = jax.device_count() - self.mesh.size
        left_over = f"; {idle} more devices stay idle" if idle > 0 else ""
        return (
            f"{self.mesh.size} x {kind}: {self.groups} groups of {self.group_size}{cut}{left_over}"
        )


def make_placement(
    config: PlacementConfig,
    population: int,
    batches: Sequence[int],
    devices: Sequence[jax.Device] | None = None,
) -> Placement | None:
    """Returns where things live, or None where one device holds everything.

    Args:
        config: the axes, 0 for automatic.
        population: P, inner models.
        batches: the batch sizes that are cut over the data axis.
        devices: all devices of all processes, if not given.

    Raises:
        PlacementError: the axes do not fit the devices, the population or the batches.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    groups, group_size = _axes(config, population, math.gcd(*batches), count)
    if population % groups:
        raise PlacementError(
            f"placement.population ({groups}) must divide population.size ({population})"
        )
    for batch in batches:
        if batch % group_size:
            raise PlacementError(
                f"a batch of {batch} windows cannot be cut evenly over {group_size} devices: set placement.data to a "
                "divisor of inner_batch and outer_batch, or change those"
            )
    if groups * group_size > count:
        raise PlacementError(
            f"placement asks for {groups} x {group_size} devices, and there are {count}"
        )
    if groups * group_size < count and jax.process_count() > 1:
        raise PlacementError(
            f"placement uses {groups} x {group_size} of {count} devices; in a run of several processes it must use "
            "all: groups must divide population.size, and the devices of a group inner_batch and outer_batch"
        )
    if groups * group_size == 1:
        return None
    mesh = Mesh(
        np.asarray(devices[: groups * group_size]).reshape(groups, group_size), (POPULATION, DATA)
    )
    return Placement(mesh, config.shard_parameters)


def _axes(config: PlacementConfig, population: int, batch: int, count: int) -> tuple[int, int]:
    """Returns groups and devices of a group: where the config leaves it open, those that use the most devices."""

    def divisors(number: int) -> list[int]:
        return [i for i in range(1, min(number, count) + 1) if number % i == 0]

    choices = [
        (groups, group_size)
        for groups in ([config.population] if config.population else divisors(population))
        for group_size in ([config.data] if config.data else divisors(batch))
    ]
    fitting = [axes for axes in choices if math.prod(axes) <= count]
    return max(fitting or choices[:1], key=lambda axes: (math.prod(axes), axes[0]))
