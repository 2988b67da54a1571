"""The weights that sample: each layer by itself, in the type of the computation, and not split over fsdp.

They are a copy of the masters, made after each update. With LoRA the base, which nothing changes, lies so from the
start, and only the adapters are copied.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ttrl_jax.model import decoder, lora
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.int8 import Int8
from ttrl_jax.model.sharding import of_hosts, on_this_host, placed, shardings

Copy = Callable[[decoder.Params], decoder.Params]  # masters -> the weights that sample


def layout(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> decoder.Params:
    """ShapeDtypeStructs with shardings of all weights that sample: whole on each fsdp group of the mesh."""
    copied = _copied(model, mesh, dtype, without=("embed",))
    return base_layout(model, mesh, dtype) | copied if model.lora else copied


def base_layout(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> decoder.Params:
    """The same of the base alone."""
    shapes = jax.eval_shape(
        functools.partial(decoder.sampling_weights, config=model, dtype=dtype), decoder.shapes(model)
    )
    where = shardings(decoder.sampling_axes(model), shapes, mesh, without=("embed",))
    base = jax.tree.map(placed, shapes, where)
    if model.lora is None or model.lora.base != "int8":
        return base
    return {**base, "blocks": tuple(_in_int8(block) for block in base["blocks"])}


def program(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> jax.stages.Wrapped:
    """The jitted program that copies the masters, with the shardings of `layout`."""
    return jax.jit(_make(model, dtype), out_shardings=_shardings(_copied(model, mesh, dtype, without=("embed",))))


def of_the_mesh(
    model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype, *, base: decoder.Params | None = None
) -> Copy:
    """A function that makes the weights from masters; base: under adapters, as `base_layout` has it."""
    copied = program(model, mesh, dtype)
    return lambda params: {**(base or {}), **copied(params)}


def of_each_host(
    model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype, *, base: decoder.Params | None = None
) -> Copy:
    """The same for hosts that sample by themselves: whole on the devices of each host, and returned as arrays of this
    host alone."""
    cast = jax.jit(_make(model, dtype), out_shardings=_shardings(_copied(model, mesh, dtype)))
    on_hosts = _shardings(_copied(model, of_hosts(mesh), dtype, without=("embed",)))
    under = {}
    if base is not None:  # what lies the same way on the devices is not moved
        where = _shardings(base_layout(model, of_hosts(mesh), dtype))
        under = jax.tree.map(on_this_host, jax.device_put(base, where))

    def copy(params: decoder.Params) -> decoder.Params:
        # First into the type, then to the hosts: half the bytes travel. The devices may be in another order there.
        return {**under, **jax.tree.map(on_this_host, jax.device_put(cast(params), on_hosts))}

    return copy


def _make(model: ModelConfig, dtype: jnp.dtype) -> Copy:
    return functools.partial(
        lora.sampling_adapters if model.lora else decoder.sampling_weights, config=model, dtype=dtype
    )


def _copied(
    model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype, *, without: tuple[str, ...] = ()
) -> decoder.Params:
    """What is copied: all weights, or the adapters."""
    shapes = jax.eval_shape(_make(model, dtype), lora.shapes(model) if model.lora else decoder.shapes(model))
    axes = lora.sampling_axes(model) if model.lora else decoder.sampling_axes(model)
    return jax.tree.map(placed, shapes, shardings(axes, shapes, mesh, without=without))


def _in_int8(block: decoder.Params) -> decoder.Params:
    """One layer's layout, with the weights of products in 8 bits."""

    def one(weight: jax.ShapeDtypeStruct, inputs: int) -> Int8:
        mesh, spec = weight.sharding.mesh, weight.sharding.spec
        scales = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec[inputs:]))
        return Int8(
            jax.ShapeDtypeStruct(weight.shape, jnp.int8, sharding=weight.sharding),
            jax.ShapeDtypeStruct(weight.shape[inputs:], jnp.float32, sharding=scales),
        )

    return decoder.at_products(one, block)


def _shardings(tree: decoder.Params) -> decoder.Params:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
