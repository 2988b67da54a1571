"""The device mesh, and the one table from logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttrl_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Weights: the model dimension over fsdp, heads and ffn over tensor. Activations: rows of training over both batch
# axes; in sampling prompts over data and their votes over fsdp, so that all votes of a prompt stay together. A token is
# drawn from whole logits: for that, the votes are split over tensor too, where parts of the vocabulary were.
RULES: dict[str, str | tuple[str, ...]] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "rows": ("data", "fsdp"),
    "prompts": "data",
    "votes": "fsdp",
    "draws": ("fsdp", "tensor"),
}

Axes = tuple[str | None, ...]


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build the `data, fsdp, tensor` mesh over `devices` (None: all there are); one size may be -1: whatever is left.

    Raises InputError when the sizes do not multiply to the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], jax.devices() if devices is None else list(devices)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"mesh sizes must be positive, at most one of them -1; got data, fsdp, tensor = {sizes}")
    if -1 in sizes:
        known = -(data * fsdp * tensor)
        sizes[sizes.index(-1)] = len(devices) // known
    if sizes[0] * sizes[1] * sizes[2] != len(devices):
        raise InputError(f"mesh data x fsdp x tensor = {data} x {fsdp} x {tensor} does not fit {len(devices)} devices")
    # jax.make_mesh splits an axis of a TPU slice only on v5e; else 32 x 2 on 8 x 8 chips would be an error.
    placed = mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def partition(axes: Axes, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Mesh axes for an array whose dimensions have the logical names `axes` (None: not split).

    A dimension that its mesh axes do not divide is split over the first of two alone, or replicated: kv heads fewer
    than the tensor size, an odd vocabulary.
    """
    spec = []
    for name, size in zip(axes, shape, strict=True):
        target = RULES[name] if name in RULES else None
        names = (target,) if isinstance(target, str) else target or ()
        while names and size % math.prod(mesh.shape[axis] for axis in names):
            names = names[:-1]
        parts = math.prod(mesh.shape[axis] for axis in names)
        spec.append(None if parts == 1 else names[0] if len(names) == 1 else names)
    return PartitionSpec(*spec)


def shardings(axes: Any, shapes: Any, mesh: Mesh, *, without: tuple[str, ...] = ()) -> Any:
    """NamedShardings for a tree of logical axes and a like tree of shaped arrays; axes in `without` are not split."""

    def one(shape, names):
        names = tuple(None if name in without else name for name in names)
        return NamedSharding(mesh, partition(names, shape.shape, mesh))

    return jax.tree.map(one, shapes, axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin the layout of an activation inside jit. Does nothing where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh))
