"""AdamW behind gradient clipping, and the cosine schedule with warm-up, both from scalars."""

import math
from typing import Any

import jax
import optax


def make_optimizer(*, b1: float, b2: float, weight_decay: float, grad_clip: float) -> optax.GradientTransformation:
    """Clip by global norm (grad_clip 0: not at all), then AdamW (arXiv 1711.05101) but for its learning rate, which
    `apply` gives.

    The rate comes from outside because the schedule counts training steps, of which each makes several updates.
    """
    return optax.chain(
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay),
    )


def apply(params: Any, updates: Any, learning_rate: jax.Array) -> Any:
    """params - learning_rate * updates, leaf by leaf."""
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)


def learning_rate(step: int, *, peak: float, total_steps: int, warmup: float) -> float:
    """The rate of training step `step` (from 0): linear warm-up over int(warmup * total_steps) steps, then cosine to 0.

    The first step's rate is not 0 (the reference's is). Nor is the last one's, but it is near 0, as in the reference:
    of n steps after the warm-up about (pi / 2n)^2 of the peak, 4.5e-5 with AIME's 240.
    """
    ramp = int(warmup * total_steps)
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total_steps - ramp)))
