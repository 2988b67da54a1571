"""AdamW behind gradient clipping, and the cosine schedule with warm-up, both from scalars."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ttrl_jax.learn import rounding

_MASTERS, _MOMENTS = 0, 1  # what is rounded, in seeds


def make_optimizer(
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    grad_clip: float,
    moments_dtype: Any = jnp.float32,
    seed: rounding.Seed = (0,),
) -> optax.GradientTransformation:
    """Clip by global norm (grad_clip 0: do not clip), then AdamW (arXiv 1711.05101) without its learning rate, which
    `step` takes.

    The rate comes from outside because the schedule counts training steps, and one training step has several updates.
    moments_dtype: float32 or bfloat16, how both moments are kept between updates; seed: of their rounding.
    """
    return optax.chain(
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        _adam(b1=b1, b2=b2, moments_dtype=moments_dtype, seed=(*seed, _MOMENTS)),
        optax.add_decayed_weights(weight_decay),
    )


def _adam(*, b1: float, b2: float, moments_dtype: Any, seed: rounding.Seed) -> optax.GradientTransformation:
    """Adam that computes in float32, whatever the dtype of parameters and of the moments that it keeps.

    Moments in bfloat16 are rounded by chance. To nearest, the second would hardly ever shrink: with b2 = 0.999 it
    loses at most a thousandth of itself in a step, and half of the distance to the next number is at least two
    thousandths. The first would stop a few percent before a gradient that stays.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2)

    def init(params: Any) -> optax.ScaleByAdamState:
        return cast(adam.init(optax.tree.cast(params, jnp.float32)), moments_dtype)

    def cast(state: optax.ScaleByAdamState, dtype: Any) -> optax.ScaleByAdamState:
        return state._replace(mu=optax.tree.cast(state.mu, dtype), nu=optax.tree.cast(state.nu, dtype))

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        updates, new = adam.update(grads, cast(state, jnp.float32), params)
        if moments_dtype == jnp.float32:
            return updates, new
        mu, nu = rounding.pair(new.mu, new.nu, rounding.key_of(seed, new.count))
        return updates, new._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def step(
    optimizer: optax.GradientTransformation,
    grads: Any,
    state: Any,
    params: Any,
    learning_rate: jax.Array,
    *,
    seed: rounding.Seed,
) -> tuple[Any, Any]:
    """Masters and state after one optimizer step, computed in float32.

    grads: float32. params: float32 or bfloat16; those in bfloat16 are rounded by chance, from `seed` and the number of
    the step, which the state of `make_optimizer` counts.
    """
    whole = optax.tree.cast(params, jnp.float32)
    updates, state = optimizer.update(grads, state, whole)
    new = apply(whole, updates, learning_rate)
    if all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params)):
        return new, state
    key = rounding.key_of((*seed, _MASTERS), optax.tree.get(state, "count"))
    return rounding.rounded_like(new, params, key), state


def apply(params: Any, updates: Any, learning_rate: jax.Array) -> Any:
    """params - learning_rate * updates, leaf by leaf."""
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)


def learning_rate(step: int, *, peak: float, total_steps: int | None, warmup: float) -> float:
    """The rate of training step `step` (from 0): linear warm-up over int(warmup * total_steps) steps, then cosine to 0.

    The rate of the first step is not 0 (in the reference it is). The rate of the last step is near 0, as in the
    reference: with n steps after the warm-up about (pi / 2n)^2 of the peak, which is 4.5e-5 with the 240 steps of AIME.
    total_steps None: the steps come from a stream, whose end nobody knows, so that the rate is always the peak.
    """
    if total_steps is None:
        return peak
    ramp = int(warmup * total_steps)
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total_steps - ramp)))
