"""The GRPO loss, token by token. Sums, not means: who adds up micro-batches divides by the minibatch's tokens once."""

import jax
import jax.numpy as jnp

_LOG_RATIO_LIMIT = 20.0  # verl core_algos.compute_policy_loss: keeps exp finite
_KL_LIMIT = 10.0  # verl core_algos.kl_penalty


def policy_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's clipped objective with separate bounds (arXiv 1707.06347 eq. 7; DAPO, arXiv 2503.14476 eq. 8) and dual clip
    (arXiv 1912.09729 eq. 5), as a loss per token.

    logps, old_logps, advantages float32, all of one shape. Returns the loss of each token, its ratio and where each
    clip decided. Where the advantage is negative the loss is at most -dual_clip * advantage.
    """
    ratio = jnp.exp(jnp.clip(logps - old_logps, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    free = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    worst = jnp.maximum(free, clipped)
    bound = -advantages * dual_clip
    negative = advantages < 0
    loss = jnp.where(negative, jnp.minimum(worst, bound), worst)
    return loss, {"ratio": ratio, "clipped": clipped > free, "dual_clipped": negative & (worst > bound)}


def kl_k3(logps: jax.Array, reference_logps: jax.Array) -> jax.Array:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1, d = reference - policy, at most 10.

    float32, of one shape. Unbiased in value, never negative (verl's low_var_kl).
    """
    d = jnp.clip(reference_logps - logps, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return jnp.minimum(jnp.exp(d) - d - 1, _KL_LIMIT)


def token_sums(
    logps: jax.Array,
    entropies: jax.Array,
    old_logps: jax.Array,
    reference_logps: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    kl_coef: float,
    entropy_coef: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss summed over the tokens in `mask`, and sums of what is worth logging.

    logps, entropies, old_logps, reference_logps, advantages, mask: float32, all of one shape. loss = policy loss
    + kl_coef * k3 - entropy_coef * entropy. Divide by the token count of the whole minibatch for its token mean. The KL
    term is left out (and reference_logps may be None) when kl_coef is 0.
    """
    loss, seen = policy_loss(logps, old_logps, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    sums = {
        "policy_loss": (loss * mask).sum(),
        "entropy": (entropies * mask).sum(),
        "clip_fraction": (seen["clipped"] * mask).sum(),
        "dual_clip_fraction": (seen["dual_clipped"] * mask).sum(),
        "approx_kl": ((old_logps - logps) * mask).sum(),
    }
    total = sums["policy_loss"] - entropy_coef * sums["entropy"]
    if kl_coef:
        sums["kl"] = (kl_k3(logps, reference_logps) * mask).sum()
        total = total + kl_coef * sums["kl"]
    sums["loss"] = total
    sums["ratio_max"] = jnp.where(mask > 0, seen["ratio"], 0).max()
    return total, jax.lax.stop_gradient(sums)
