"""Losses of tokens. They return sums, not means: the update adds up micro-batches, and divides once by the number of
tokens in the minibatch."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

_LOG_RATIO_LIMIT = 20.0  # verl core_algos.compute_policy_loss: keeps exp finite
_KL_LIMIT = 10.0  # verl core_algos.kl_penalty

Sums = dict[str, jax.Array]


@dataclass(frozen=True)
class Loss:
    """A loss that an update minimises, and what the update must know about it beforehand."""

    # (scores, entropies, numbers, mask) -> the loss summed over the tokens in mask, and sums of what is worth logging.
    # All float32 of one shape. scores: log-probs, or a critic's values, whose entropies are zeros. numbers: those of
    # each token by name, such as "advantages"; "old" are the scores before the first optimizer step, "reference" those
    # of the start, where there is one.
    sums: Callable[[jax.Array, jax.Array, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, Sums]]
    all_rows: bool  # whether a row whose advantages are all 0 has a gradient
    entropy_gradient: bool = False  # whether entropies have one
    of_advantages: tuple[str, ...] = ()  # names of sums that are 0 in a row whose advantages are
    largest: tuple[str, ...] = ()  # names of what is no sum but a maximum
    names: tuple[str, ...] = ()  # of the numbers that it asks for and whoever updates has to give
    asks_old: bool = True  # "old" is among the numbers that it asks for
    row_counts: float | None = None  # what the sum is divided by, for each row; None: its tokens
    by_rows: tuple[str, ...] = ()  # names of sums that are divided by that too; others are means over tokens
    # (scores, numbers) -> numbers [X, Z, C] that an update returns, of its own forward passes.
    keep: Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array] | None = None


def grpo(
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    kl_coef: float,
    entropy_coef: float,
    row_counts: float | None = None,
) -> Loss:
    """The loss of GRPO, RLOO, PPO's actor and PRIME's policy: `token_sums` with these scalars, a mean over tokens.

    row_counts: if given, the loss is divided by the number of rows times this, not by their tokens. Dr. GRPO gives the
    largest number of tokens that a response may have (arXiv 2503.20783).
    """
    scalars = dict(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    scalars |= dict(kl_coef=kl_coef, entropy_coef=entropy_coef)
    return Loss(
        functools.partial(token_sums, **scalars),
        all_rows=kl_coef != 0 or entropy_coef != 0,
        names=("advantages",),
        entropy_gradient=entropy_coef != 0,
        of_advantages=("loss", "policy_loss", "clip_fraction", "dual_clip_fraction"),
        largest=("ratio_max",),
        row_counts=row_counts,
        by_rows=() if row_counts is None else ("loss", "policy_loss"),
    )


def values(*, clip: float) -> Loss:
    """The loss of PPO's critic, `value_sums`."""
    return Loss(functools.partial(value_sums, clip=clip), all_rows=True, names=("returns", "old"))


def process(*, beta: float, rows: int) -> Loss:
    """The loss of PRIME's process model, `process_sums`; it keeps the log-ratio of each token to the start."""
    return Loss(
        functools.partial(process_sums, beta=beta, rows=rows),
        all_rows=True,
        names=("outcome", "row"),
        asks_old=False,
        row_counts=1,
        by_rows=("loss", "accuracy"),
        keep=lambda scores, numbers: scores - numbers["reference"],
    )


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
    numbers: Mapping[str, jax.Array],
    mask: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    kl_coef: float,
    entropy_coef: float,
) -> tuple[jax.Array, Sums]:
    """The loss summed over the tokens in `mask`, and sums of what is worth logging.

    logps, entropies, mask and the numbers "old", "advantages", "reference" and "sampler_logps", which are compared with
    the old ones: float32, all of one shape. loss = policy
    loss + kl_coef * k3 - entropy_coef * entropy. Divide by the token count of the whole minibatch for its token mean.
    The KL term is left out (and with it "reference") when kl_coef is 0.
    """
    old_logps, advantages = numbers["old"], numbers["advantages"]
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
        sums["kl"] = (kl_k3(logps, numbers["reference"]) * mask).sum()
        total = total + kl_coef * sums["kl"]
    sums["loss"] = total
    sums["ratio_max"] = jnp.where(mask > 0, seen["ratio"], 0).max()
    sums["logp_gap"] = (jnp.abs(old_logps - numbers["sampler_logps"]) * mask).sum()
    return total, jax.lax.stop_gradient(sums)


def value_sums(
    values: jax.Array, entropies: jax.Array, numbers: Mapping[str, jax.Array], mask: jax.Array, *, clip: float
) -> tuple[jax.Array, Sums]:
    """Half the squared distance between values and returns, summed over tokens. A value that has moved by more than
    `clip` is also counted as one that has moved by `clip`, and the larger distance is taken (verl
    core_algos.compute_value_loss).

    values, mask and the numbers "returns" and "old", the values before the first optimizer step: float32, of one shape.
    """
    old, returns = numbers["old"], numbers["returns"]
    near = jnp.clip(values, old - clip, old + clip)
    free, clipped = jnp.square(values - returns), jnp.square(near - returns)
    total = 0.5 * (jnp.maximum(free, clipped) * mask).sum()
    return total, jax.lax.stop_gradient({"loss": total, "clip_fraction": ((clipped > free) * mask).sum()})


def process_sums(
    logps: jax.Array,
    entropies: jax.Array,
    numbers: Mapping[str, jax.Array],
    mask: jax.Array,
    *,
    beta: float,
    rows: int,
) -> tuple[jax.Array, Sums]:
    """PRIME's cross-entropy (arXiv 2502.01456, equation 5; recipe/prime/prime_core_algos.py): of the outcome of each
    row, under sigmoid(beta * the sum of log pi - log pi_start), summed over rows.

    logps, mask and the numbers "reference", "outcome" (0 or 1, the same for all tokens of a row) and "row" (its number,
    of `rows` at most): float32, of one shape. A row is whole in one micro-batch.
    """
    row = numbers["row"].astype(jnp.int32)

    def by_row(x: jax.Array) -> jax.Array:
        return jnp.zeros(rows, jnp.float32).at[row].add(x * mask)

    tokens = by_row(jnp.ones_like(mask))
    here, outcome = tokens > 0, by_row(numbers["outcome"]) / jnp.maximum(tokens, 1)
    logit = beta * by_row(logps - numbers["reference"])
    each = jnp.where(here, jax.nn.softplus(logit) - outcome * logit, 0.0)
    right = jnp.where(here, (logit > 0) == (outcome > 0.5), False)
    return each.sum(), jax.lax.stop_gradient({"loss": each.sum(), "accuracy": right.sum().astype(jnp.float32)})
