"""AdamW behind gradient clipping, and the cosine schedule with warm-up, both from scalars."""

import math
from typing import Any

import jax
import optax


def make_optimizer(*, b1: float, b2: float, weight_decay: float, grad_clip: float) -> optax.GradientTransformation:
    """Clip by global norm (grad_clip 0: do not clip), then AdamW (arXiv 1711.05101) without its learning rate, which
    `apply` takes.

    The rate comes from outside because the schedule counts training steps, and one training step has several updates.
    """
    return optax.chain(
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay),
    )


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
