"""Where the arrays of a run live: which part of the state and of a batch every device holds."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from deqflow.machine.leaves import Leaves, Shapes
from deqflow.registry import UserError

_AXIS = "batch"
_SPREAD = ("params", "average", "optimizer")
"""The roles that full sharding spreads; the other leaves are a few numbers, or are read inside of solver loops."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a run in one row, each of which works on its part of every batch.

    Of the state every device holds all, or with `full` its part of every parameter, average and optimizer state: of the largest axis that
    the number of devices divides; a leaf without one stays whole.

    Args:
      devices: of all processes, those of one process beside each other.
      full: whether the state is spread as well.

    Example:
      >>> placement = Placement.here()
      >>> len(placement.devices), placement.share
      (1, {'process_index': 0, 'process_count': 1})

    Rajbhandari, Rasley, Ruwase and He, "ZeRO: memory optimizations toward training trillion parameter models", 2020.
    """

    devices: tuple[Any, ...]
    full: bool = False

    @classmethod
    def here(cls) -> "Placement":
        """The first device of this process alone."""
        return cls((jax.local_devices()[0],))

    @classmethod
    def everywhere(cls, *, full: bool = False) -> "Placement":
        """All devices of all processes."""
        return cls(tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id))), full)

    @functools.cached_property
    def whole(self) -> Sharding:
        """Every device holds all of an array."""
        return self._sharding()

    @functools.cached_property
    def rows(self) -> Sharding:
        """Every device holds its rows of an array, as of a batch."""
        return self._sharding(_AXIS)

    @functools.cached_property
    def share(self) -> dict[str, int]:
        """Which rows of a batch this process reads, in the words of `deqflow.data.pipeline`."""
        processes = sorted({device.process_index for device in self.devices})
        return {"process_index": processes.index(jax.process_index()), "process_count": len(processes)}

    def require_divisible(self, batch_size: int, parts: int = 1) -> None:
        """Raise `UserError` unless the devices can share every one of `parts` equal parts of a batch equally."""
        count = len(self.devices) * parts
        if batch_size % count:
            below = batch_size - batch_size % count
            sizes = " or ".join(str(size) for size in (below, below + count) if size)
            devices = f"the number of devices, {len(self.devices)}" if len(self.devices) > 1 or parts == 1 else ""
            factor = " times ".join(filter(None, [devices, f"train.accumulate, {parts}" if parts > 1 else ""]))
            remedy = ", or let JAX see fewer devices (CUDA_VISIBLE_DEVICES)" if len(self.devices) > 1 else ""
            raise UserError(f"data.batch_size must be a multiple of {factor}, got {batch_size}; choose {sizes}{remedy}")

    def state(self, shapes: Shapes) -> dict[str, Sharding]:
        """How every leaf of a state lies on the devices."""
        return {name: self._leaf(name, leaf.shape) for name, leaf in shapes.items()}

    def batch(self, share: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """A batch of all processes from this one's share of it."""
        if self.share["process_count"] == 1:
            return share  # which the compiled function divides among its devices itself
        return {name: jax.make_array_from_process_local_data(self.rows, column) for name, column in share.items()}

    def gathered(self, leaves: Leaves) -> Leaves:
        """Within a compiled function, the same leaves whole on every device.

        Parameters are gathered before they are used, so that no step of a solver has to.
        """
        return jax.lax.with_sharding_constraint(leaves, self.whole) if self.full and len(self.devices) > 1 else leaves

    def spread(self, leaves: Leaves) -> Leaves:
        """Within a compiled function, the inverse of `gathered`."""
        if not (self.full and len(self.devices) > 1):
            return leaves
        # Whole first: from where a gradient is to lie XLA would infer how the activations do, and exchange those.
        leaves = jax.lax.with_sharding_constraint(leaves, self.whole)
        return {name: jax.lax.with_sharding_constraint(leaf, self._leaf(name, leaf.shape)) for name, leaf in leaves.items()}

    def fetched(self, leaves: Leaves) -> Leaves:
        """The same leaves on one device of this process, for what is not compiled; all processes call it together."""
        if len(self.devices) == 1:
            return leaves
        whole = jax.jit(lambda leaves: leaves, out_shardings=self.whole)(leaves)
        return {name: leaf.addressable_data(0) for name, leaf in whole.items()}

    def _leaf(self, name: str, shape: tuple[int, ...]) -> Sharding:
        divisible = [axis for axis, size in enumerate(shape) if size and size % len(self.devices) == 0]
        if not (self.full and divisible and name.partition("/")[0] in _SPREAD):
            return self.whole
        axis = max(divisible, key=lambda axis: shape[axis])
        return self._sharding(*[None] * axis, _AXIS)

    def _sharding(self, *spec: str | None) -> Sharding:
        if len(self.devices) == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self._mesh, PartitionSpec(*spec))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.asarray(self.devices), (_AXIS,))
