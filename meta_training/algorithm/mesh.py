"""Placement on several devices: a mesh with the axes ("population", "data").

Inner models are spread over the groups of the "population" axis. Each model's batches are spread
over the "data" axis of its group; so are its parameters and optimizer state where one device is too
small for them. The meta-step runs under `jax.shard_map`, so the exchanges between devices are
written out here:

    over data        one sum of the inner gradient for each inner update, and one of its derivative;
                     one sum of the outer gradient; one sum of the rater's gradient; gathers of the
                     batch's scores and losses, B numbers each
    over population  one mean of the rater's update

With parameters cut over the data axis, the sums become reduce-scatters, and theta and each
cotangent are gathered just before they are used. Only the means of the metrics, a few numbers over
the population, are left to the compiler.

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarater.meta_training.errors import ConfigError
from datarater.rater_model.counted import counted

POPULATION, DATA = "population", "data"
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class PlacementConfig:
    """How inner models and their batches are spread over devices.

    Attributes:
        population: Groups of devices, each with an equal share of the inner models; 0 for the
            number that leaves the fewest devices idle, and the largest such number.
        data: Devices of a group, each with an equal share of every batch; 0 for the largest number
            that divides the batches.
        shard_parameters: Cut each inner model's parameters and optimizer state over its group's
            devices, each array along its longest axis that divides evenly. They are gathered
            just before they are used: what stays on a device between updates shrinks by the group's
            size.
    """

    population: int = 0
    data: int = 0
    shard_parameters: bool = False


def make_placement(
    config: PlacementConfig,
    population: int,
    batches: Sequence[int],
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """Returns the placement: on one device if all else would be idle, otherwise on a mesh.

    Args:
        config: Sizes of the axes, 0 for automatic.
        population: P, the number of inner models.
        batches: Batch sizes that are cut over the data axis.
        devices: Devices to use; all devices of all processes if None.

    Raises:
        ConfigError: If the axes do not fit the devices, the population or the batches.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    groups, group_size = _axes(config, population, math.gcd(*batches), count)

    if population % groups:
        raise ConfigError(
            f"placement.population ({groups}) must divide population.size ({population})"
        )
    for batch in batches:
        if batch % group_size:
            raise ConfigError(
                f"a batch of {counted(batch, 'window')} cannot be divided evenly among "
                f"{counted(group_size, 'device')}: "
                "set placement.data to a divisor of inner_batch and outer_batch, or change those"
            )
    if groups * group_size > count:
        raise ConfigError(
            f"placement asks for {groups} x {counted(group_size, 'device')}, but there are {count}"
        )
    if groups * group_size < count and jax.process_count() > 1:
        raise ConfigError(
            f"placement uses {groups} x {group_size} of {counted(count, 'device')}, but a run of "
            "several "
            "processes must use all: choose placement.population to divide population.size, and "
            "placement.data to divide inner_batch and outer_batch"
        )

    if groups * group_size == 1:
        return ONE_DEVICE
    mesh = Mesh(
        np.asarray(devices[: groups * group_size]).reshape(groups, group_size), (POPULATION, DATA)
    )
    return MeshPlacement(mesh, config.shard_parameters)


def _axes(config: PlacementConfig, population: int, batch: int, count: int) -> tuple[int, int]:
    """Returns (groups, devices of a group); those not configured use as many devices as fit."""

    def divisors(number: int) -> list[int]:
        return [i for i in range(1, min(number, count) + 1) if number % i == 0]

    choices = [
        (groups, group_size)
        for groups in ([config.population] if config.population else divisors(population))
        for group_size in ([config.data] if config.data else divisors(batch))
    ]
    fitting = [axes for axes in choices if math.prod(axes) <= count]
    return max(fitting or choices[:1], key=lambda axes: (math.prod(axes), axes[0]))


class Placement:
    """Which part of meta-training is where: here everything on one device, with nothing to place.

    Attributes:
        size: Number of devices used.
        group_size: Devices of a group, which share the batches of an inner model.
    """

    size = 1
    group_size = 1

    def data_axis(self, params: Any) -> DataAxis:
        """Returns the devices that share the batches of one inner model, for the meta-gradient.

        Args:
            params: theta of one inner model, or a tree of its shapes.
        """
        return ONE_DEVICE_AXIS

    def batch_axis(self, batch: int) -> DataAxis:
        """Returns the devices that share a batch of plain training, on which theta is complete.

        They are all devices if the batch can be divided evenly among them; otherwise the devices of
        each group share it, and all groups compute the same.

        Args:
            batch: Windows of the batch.
        """
        return ONE_DEVICE_AXIS

    def member_specs(self, member: Any, stacked: bool) -> Any:
        """Returns the partition specs of one inner model's arrays, or of a stack of inner models.

        Args:
            member: Tree of arrays, or of their shapes.
            stacked: Whether the arrays have a leading axis P.
        """
        return PartitionSpec()

    def shardings(self, specs: Any) -> Any:
        """Returns the shardings of partition specs; None for the default device."""
        return None

    def own_rows(self, shape: tuple[int, ...], spec: Any) -> np.ndarray | None:
        """Returns which rows of an array that is placed so go to devices of this process.

        Args:
            shape: Leading axes of the array: all that the spec names.
            spec: The partition spec.

        Returns:
            Booleans of that shape; None for all rows.
        """
        return None

    def place(self, tree: T, specs: Any) -> T:
        """Places arrays by their partition specs.

        Args:
            tree: Arrays with the same values in every process, or at least with the right ones in
                the parts that its devices get. JAX moves those that it can between devices; the
                others are copied from this process.
            specs: Tree of partition specs, or one spec for all arrays.
        """
        return tree

    def constrain(self, tree: T, specs: Any) -> T:
        """Returns arrays of a function that is being compiled, to be placed by partition specs."""
        return tree

    def on_each_device(self, function: F, in_specs: Any, out_specs: Any) -> F:
        """Returns a function that runs on each device's part of its arguments.

        Args:
            function: Function of arrays; on a mesh it makes its own exchanges.
            in_specs: Partition specs of its arguments.
            out_specs: Partition specs of its results.
        """
        return function

    def mean_over_population(self, tree: Any) -> Any:
        """Returns the mean over the groups, for use in a function `on_each_device`."""
        return tree

    def describe(self) -> str:
        """Returns a description in one line, for the log."""
        return "one device"


@dataclasses.dataclass(frozen=True)
class MeshPlacement(Placement):
    """Inner models and their batches spread over a mesh.

    Attributes:
        mesh: Mesh with the axes ("population", "data").
        shard_parameters: See `PlacementConfig`.
    """

    mesh: Mesh
    shard_parameters: bool = False

    @property
    def size(self) -> int:  # type: ignore[override] # a constant on one device
        """See `Placement`."""
        return self.mesh.size

    @property
    def groups(self) -> int:
        """Number of groups, the size of the population axis."""
        return self.mesh.shape[POPULATION]

    @property
    def group_size(self) -> int:  # type: ignore[override]
        """See `Placement`."""
        return self.mesh.shape[DATA]

    def cut_axis(self, shape: Sequence[int]) -> int:
        """Returns the axis along which an array of one inner model is cut over its group.

        The axis depends on the shape alone, so Adam's moments are cut as the parameters are.

        Args:
            shape: Shape of the array.

        Returns:
            The index of the axis, or -1 if the array is not cut.
        """
        lengths = [length if length and length % self.group_size == 0 else 0 for length in shape]
        if not self.shard_parameters or self.group_size == 1 or not any(lengths):
            return -1
        return int(np.argmax(lengths))

    def data_axis(self, params: Any) -> DataAxis:
        """See `Placement.data_axis`."""
        if self.group_size == 1:
            return ONE_DEVICE_AXIS
        cut_axes = tuple(self.cut_axis(leaf.shape) for leaf in jax.tree.leaves(params))
        return MeshAxis(self.group_size, cut_axes if self.shard_parameters else None)

    def batch_axis(self, batch: int) -> DataAxis:
        """See `Placement.batch_axis`."""
        names = (DATA,) if batch % self.size else (POPULATION, DATA)
        return MeshAxis(math.prod(self.mesh.shape[name] for name in names), name=names)

    def member_specs(self, member: Any, stacked: bool) -> Any:
        """See `Placement.member_specs`."""

        def spec(leaf: Any) -> PartitionSpec:
            shape = leaf.shape[1:] if stacked else leaf.shape
            axis = self.cut_axis(shape)
            parts = [DATA if i == axis else None for i in range(len(shape))]
            return PartitionSpec(POPULATION, *parts) if stacked else PartitionSpec(*parts)

        return jax.tree.map(spec, member)

    def shardings(self, specs: Any) -> Any:
        """See `Placement.shardings`."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def own_rows(self, shape: tuple[int, ...], spec: Any) -> np.ndarray | None:
        """See `Placement.own_rows`."""
        sharding = NamedSharding(self.mesh, spec)
        if sharding.is_fully_addressable:
            return None
        return rows_on(sharding, shape, self.mesh.local_devices)

    def place(self, tree: T, specs: Any) -> T:
        """See `Placement.place`."""
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

    def constrain(self, tree: T, specs: Any) -> T:
        """See `Placement.constrain`."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(specs))

    def on_each_device(self, function: F, in_specs: Any, out_specs: Any) -> F:
        """See `Placement.on_each_device`."""
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def mean_over_population(self, tree: Any) -> Any:
        """See `Placement.mean_over_population`."""
        return jax.lax.pmean(tree, POPULATION) if self.groups > 1 else tree

    def describe(self) -> str:
        """See `Placement.describe`."""
        kind = self.mesh.devices.flat[0].device_kind
        cut = (
            ", parameters sharded over the group"
            if self.shard_parameters and self.group_size > 1
            else ""
        )
        idle = jax.device_count() - self.size
        left_over = f"; {counted(idle, 'more device')} stay idle" if idle > 0 else ""
        groups = f"{counted(self.groups, 'group')} of {self.group_size}"
        return f"{self.size} x {kind}: {groups}{cut}{left_over}"


def rows_on(
    sharding: NamedSharding, shape: tuple[int, ...], devices: Sequence[jax.Device]
) -> np.ndarray:
    """Returns which rows of an array lie on some of the devices, as booleans of `shape`."""
    rows = np.zeros(shape, bool)
    for device, index in sharding.devices_indices_map(shape).items():
        if device in devices:
            rows[index] = True
    return rows


class DataAxis:
    """The devices that share a batch: here a single one, with nothing to exchange.

    Attributes:
        size: Number of devices.
        name: Name or names of the mesh axes.
    """

    size: int = 1
    name: str | tuple[str, ...] = ()

    def sum_value(self, tree: Any) -> Any:
        """Returns the sum over the devices, complete on every device."""
        return tree

    def own_part(self, x_B: jax.Array) -> jax.Array:
        """Returns this device's part of the batch, the array's last axis."""
        return x_B

    def whole_batch(self, x_B: jax.Array) -> jax.Array:
        """Returns the arrays of all devices joined along the batch, their last axis."""
        return x_B

    def whole_params(self, params: Any) -> Any:
        """Returns a complete tree like theta, gathered from the devices' parts."""
        return params

    def sum_params(self, tree: Any) -> Any:
        """Returns this device's part of the sum over the devices of trees like theta."""
        return tree


@dataclasses.dataclass(frozen=True)
class MeshAxis(DataAxis):
    """Several devices that share the batches of one inner model, seen from within `jax.shard_map`.

    Attributes:
        size: Number of devices.
        cut_axes: For each leaf of theta, in the order of `jax.tree.leaves`, the axis that is cut
            over the devices, or -1 for a leaf that is complete on every device; None if no leaf is
            cut.
        name: Name or names of the mesh axes.
    """

    size: int
    cut_axes: tuple[int, ...] | None = None
    name: str | tuple[str, ...] = DATA

    def sum_value(self, tree: Any) -> Any:
        """See `DataAxis.sum_value`."""
        return jax.lax.psum(tree, self.name)

    def own_part(self, x_B: jax.Array) -> jax.Array:
        """See `DataAxis.own_part`."""
        width = x_B.shape[-1] // self.size
        return jax.lax.dynamic_slice_in_dim(
            x_B, jax.lax.axis_index(self.name) * width, width, axis=-1
        )

    def whole_batch(self, x_B: jax.Array) -> jax.Array:
        """See `DataAxis.whole_batch`."""
        return jax.lax.all_gather(x_B, self.name, axis=x_B.ndim - 1, tiled=True)

    def whole_params(self, params: Any) -> Any:
        """See `DataAxis.whole_params`."""
        if self.cut_axes is None:
            return params
        leaves, structure = jax.tree.flatten(params)
        whole = [
            leaf if axis < 0 else jax.lax.all_gather(leaf, self.name, axis=axis, tiled=True)
            for leaf, axis in zip(leaves, self.cut_axes, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    def sum_params(self, tree: Any) -> Any:
        """See `DataAxis.sum_params`."""
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


ONE_DEVICE, ONE_DEVICE_AXIS = Placement(), DataAxis()
