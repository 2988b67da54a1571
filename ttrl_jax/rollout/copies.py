"""The copy of the weights that samples. After each update it is made from the master weights: each layer by itself, in
the type of the computation, and not split over fsdp."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import of_hosts, on_this_host, shardings

Copy = Callable[[decoder.Params], decoder.Params]  # masters -> their copy


def layout(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> decoder.Params:
    """ShapeDtypeStructs with shardings: whole on each fsdp group of the mesh."""
    shapes = jax.eval_shape(_make(model, dtype), decoder.shapes(model))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(decoder.sampling_axes(model), shapes, mesh, without=("embed",)),
    )


def of_the_mesh(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Copy:
    """A jitted program that makes the copy with the shardings of `layout`."""
    return jax.jit(_make(model, dtype), out_shardings=_shardings(layout(model, mesh, dtype)))


def of_each_host(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Copy:
    """A function that makes the copy for hosts that sample by themselves: whole on the devices of each host, and
    returned as arrays of this host alone."""
    make = _make(model, dtype)
    axes, shapes = decoder.sampling_axes(model), jax.eval_shape(make, decoder.shapes(model))
    cast = jax.jit(make, out_shardings=shardings(axes, shapes, mesh))
    on_hosts = _shardings(layout(model, of_hosts(mesh), dtype))

    def copy(params: decoder.Params) -> decoder.Params:
        # First into the type, then to the hosts: half the bytes travel. The devices may be in another order there.
        return jax.tree.map(on_this_host, jax.device_put(cast(params), on_hosts))

    return copy


def _make(model: ModelConfig, dtype: jnp.dtype) -> Copy:
    return functools.partial(decoder.sampling_weights, config=model, dtype=dtype)


def _shardings(tree: decoder.Params) -> decoder.Params:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
