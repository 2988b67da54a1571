"""The device mesh, and the one table from logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttrl_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Weights: the model dimension over fsdp, heads and ffn over tensor. Activations: rows of training over both batch
# axes, and between layers, where no heads are, their places over tensor; in sampling prompts over data and their votes
# over fsdp, so that all votes of a prompt stay together. A token is drawn from whole logits: for that, the votes are
# split over tensor too, where parts of the vocabulary were.
RULES: dict[str, str | tuple[str, ...]] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "rows": ("data", "fsdp"),
    "places": "tensor",
    "prompts": "data",
    "votes": "fsdp",
    "draw_prompts": ("data", "tensor"),
    "draws": ("fsdp", "tensor"),
}

Axes = tuple[str | None, ...]


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build the `data, fsdp, tensor` mesh over `devices` (None: all there are); one size may be -1: whatever is left.

    The devices of a process are neighbours along tensor first, then fsdp, unless the network of TPUs has better ones.
    Raises InputError when the sizes do not multiply to the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], jax.devices() if devices is None else list(devices)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"mesh sizes must be positive, at most one of them -1; got data, fsdp, tensor = {sizes}")
    if -1 in sizes:
        known = -(data * fsdp * tensor)
        sizes[sizes.index(-1)] = len(devices) // known
    if sizes[0] * sizes[1] * sizes[2] != len(devices):
        raise InputError(
            f"mesh data x fsdp x tensor = {data} x {fsdp} x {tensor} does not fit {len(devices)} devices; choose from "
            f"{_divisors(len(devices))} with a product of {len(devices)}, or -1 for one of them, which is the rest"
        )
    # jax.make_mesh splits an axis of a TPU slice only on v5e; else 32 x 2 on 8 x 8 chips would be an error.
    placed = mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def require_fit(mesh: Mesh, *, heads: int) -> None:
    """Raise InputError if the model's query heads cannot be split evenly over `tensor`."""
    if heads % mesh.shape["tensor"]:
        raise InputError(
            f"mesh.tensor={mesh.shape['tensor']} does not divide the {heads} heads of the model; set it to one of "
            f"{_divisors(math.gcd(heads, mesh.size))}"
        )


def require_fit_of_batch(mesh: Mesh, *, prompts: int) -> None:
    """Raise InputError if `data` does not divide the prompts of a step."""
    data = mesh.shape["data"]
    if prompts % data:
        raise InputError(
            f"mesh.data={data} does not divide rollout.prompts={prompts}; set it to one of "
            f"{_divisors(math.gcd(prompts, mesh.size))}"
        )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def partition(axes: Axes, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Mesh axes for an array whose dimensions have the logical names `axes` (None: not split).

    A dimension that its mesh axes do not divide is split over the first of two alone, or replicated: kv heads fewer
    than the tensor size, an odd vocabulary. A mesh axis splits one dimension, the first of those that have it.
    """
    spec, taken = [], set()
    for name, size in zip(axes, shape, strict=True):
        target = RULES[name] if name in RULES else None
        names = (target,) if isinstance(target, str) else target or ()
        names = tuple(axis for axis in names if axis not in taken)
        while names and size % math.prod(mesh.shape[axis] for axis in names):
            names = names[:-1]
        parts = math.prod(mesh.shape[axis] for axis in names)
        taken |= set(names)
        spec.append(None if parts == 1 else names[0] if len(names) == 1 else names)
    return PartitionSpec(*spec)


def shardings(axes: Any, shapes: Any, mesh: Mesh, *, without: tuple[str, ...] = ()) -> Any:
    """NamedShardings for a tree of logical axes and a like tree of shaped arrays; axes in `without` are not split."""

    def one(shape, names):
        names = tuple(None if name in without else name for name in names)
        return NamedSharding(mesh, partition(names, shape.shape, mesh))

    return jax.tree.map(one, shapes, axes)


def placed(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The same shape and dtype, lying as `sharding` says."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def of_hosts(mesh: Mesh) -> Mesh:
    """The devices of `mesh` by host: axes "hosts", data (1), fsdp and tensor. Its `local_mesh` is that of one host.

    tensor is as large as on `mesh` if that divides the devices of a host. What names no axis "hosts" lies whole on
    each of them.
    """
    rows = {}
    for device in mesh.devices.flat:
        rows.setdefault(device.process_index, []).append(device)
    devices = np.array([rows[process] for process in sorted(rows)])
    tensor = math.gcd(devices.shape[1], mesh.shape["tensor"])
    shape = (len(devices), 1, devices.shape[1] // tensor, tensor)
    return Mesh(devices.reshape(shape), ("hosts", *MESH_AXES), axis_types=(jax.sharding.AxisType.Auto,) * 4)


def on_this_host(x: jax.Array) -> jax.Array:
    """The copy that this host has of an array, as an array of this host alone. The mesh is one of hosts that each hold
    the whole array."""
    sharding = NamedSharding(x.sharding.mesh.local_mesh, x.sharding.spec)
    return jax.make_array_from_single_device_arrays(x.shape, sharding, [part.data for part in x.addressable_shards])


def stands_for_this_host(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """`on_this_host` for the shape, dtype and sharding of an array."""
    sharding = NamedSharding(x.sharding.mesh.local_mesh, x.sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


HOST = "pinned_host"  # kind of memory


def on_hosts(tree: Any) -> Any:
    """The arrays in the memory of the hosts that their devices are of. Those on the devices are deleted."""
    moved = jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind(HOST), tree))
    jax.block_until_ready(moved)
    jax.tree.map(lambda x: x.delete(), tree)
    return moved


def on_devices(tree: Any) -> Any:
    """Copies on the devices of arrays that may be in the memory of their hosts."""
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), tree))


def require_host_memory(mesh: Mesh) -> None:
    """Raise InputError if the devices cannot compute with what is in their hosts' memory."""
    kinds = [memory.kind for memory in mesh.devices.flat[0].addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"mesh.offload=True needs memory of the kind {HOST}; the devices here have {', '.join(kinds)}; set it to "
            "False"
        )


def key_on(mesh: Mesh, key: jax.Array) -> jax.Array:
    """A random key, from whatever device, whole on every device of `mesh`, which is set."""
    return jax.random.wrap_key_data(jax.device_put(np.asarray(jax.random.key_data(key)), replicated(mesh)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin the layout of an activation inside jit. Does nothing where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh))


def parts_of(axis: str, size: int) -> int:
    """In how many parts an axis of that name and size is split over the devices; 1 where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (names,) = partition((axis,), (size,), mesh)
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names or ()))
