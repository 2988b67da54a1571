"""How the masters and the optimizer's state lie on the mesh: ShapeDtypeStructs with shardings, nothing allocated."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ttrl_jax.model import decoder, lora
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import placed, replicated, shardings
from ttrl_jax.records import Model, TrainState


def params_layout(model: ModelConfig, mesh: jax.sharding.Mesh, dtype: Any = jnp.float32) -> decoder.Params:
    """The parameters of `model` that are trained, in `dtype`: all, or its adapters."""
    room = lora if model.lora else decoder
    shapes = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape.shape, dtype), room.shapes(model))
    return jax.tree.map(placed, shapes, shardings(room.logical_axes(model), shapes, mesh))


def sums_layout(params: Any) -> Any:
    """How the sums of gradients of such parameters lie: as these, in float32."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params)


def model_layout(params: decoder.Params, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> Model:
    """A model that is trained, for parameters as `params_layout` has them; each moment lies as its parameter does."""
    opt_state = optax.tree.map_params(
        optimizer,
        lambda shape, of: placed(shape, of.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda shape: placed(shape, replicated(mesh)),
    )
    return Model(params, opt_state)


def state_layout(models: dict[str, Model], mesh: jax.sharding.Mesh) -> TrainState:
    """The whole state, for models as `model_layout` has them."""
    return TrainState(placed(jax.ShapeDtypeStruct((), jnp.int32), replicated(mesh)), models)
