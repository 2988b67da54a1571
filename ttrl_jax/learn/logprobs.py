"""Log-probs and entropies of response tokens, a chunk at a time: logits never exist for more tokens than that."""

import functools

import jax
import jax.numpy as jnp

from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import constrain, parts_of
from ttrl_jax.records import VECTOR


def response_logprobs(
    params: decoder.Params,
    config: ModelConfig,
    micro: MicroBatch,
    *,
    temperature: float,
    dtype: jnp.dtype,
    remat: str,
    entropy_gradient: bool,
    table_gradient: bool = True,
    unroll: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies of the response tokens of a micro-batch, as token_logprobs has them: float32 [X, Z, C].

    Prompts and padding never reach the vocabulary projection.
    """
    ids = constrain(micro.ids, "rows", None)
    hidden = decoder.forward(params, config, ids, micro.packing, dtype=dtype, remat=remat, unroll=unroll)
    shards, chunks, slots = micro.tokens.shape
    states = constrain(micro.states.reshape(shards, chunks * slots, 1), "rows", None, None)
    hidden = jnp.take_along_axis(hidden.reshape(shards, -1, hidden.shape[-1]), states, 1)
    return token_logprobs(
        decoder.output_table(params, config),
        hidden.reshape(shards, chunks, slots, -1),
        constrain(micro.tokens, "rows", None, None),
        micro.chunks,
        temperature=temperature,
        entropy_gradient=entropy_gradient,
        table_gradient=table_gradient,
    )


def token_logprobs(
    table: jax.Array,
    hidden: jax.Array,
    tokens: jax.Array,
    chunks: jax.Array,
    *,
    temperature: float,
    entropy_gradient: bool,
    table_gradient: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each token under softmax(hidden @ table.T / temperature), and the entropy of that distribution.

    table [W, D]; hidden [X, Z, C, D], the state before each token; tokens int32 [X, Z, C]: for each of X shards
    Z chunks of C tokens, of which only the first `chunks` (int32 []) are computed -> two float32 [X, Z, C], entropy in
    nats, zeros in the other chunks. Logits exist for one chunk at a time: the backward pass computes them again, and
    adds up the table's gradient in float32. Without entropy_gradient entropies are constants to it; without
    table_gradient the table is one, too.
    """
    logps, entropies, _ = _scores(table, hidden, tokens, chunks, temperature, entropy_gradient, table_gradient)
    return logps, entropies


def _logits(table: jax.Array, states: jax.Array, temperature: float) -> jax.Array:
    """states [X, C, D], table [W, D] -> float32 [X, C, W]."""
    logits = jnp.einsum("xcd,wd->xcw", states, table, preferred_element_type=jnp.float32)
    return constrain(logits, "rows", None, "vocab") / temperature


def _sums(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of both over the last axis, the vocabulary: float32 [X, C, W] -> [X, C], in one pass over what they are
    made of."""
    return jax.lax.platform_dependent(x, y, cpu=_sums_by_columns, default=lambda x, y: (x.sum(-1), y.sum(-1)))


def _sums_by_columns(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One reduction of both: of two, the CPU backend of XLA would store what each adds up, several times. Columns are
    added first, since adding one number after the other would lose digits. Columns are of each device's part of the
    vocabulary; across parts, every device would gather the whole of it. (A TPU would copy both to lay out columns.)"""
    parts = parts_of("vocab", x.shape[-1])

    def columns(z: jax.Array) -> jax.Array:
        z = constrain(z.reshape(*z.shape[:-1], parts, -1), "rows", None, "vocab", None)
        return jnp.pad(z, [(0, 0)] * 3 + [(0, -z.shape[-1] % VECTOR)]).reshape(*z.shape[:-1], -1, VECTOR)

    zeros = (jnp.zeros((), x.dtype),) * 2
    sums = jax.lax.reduce((columns(x), columns(y)), zeros, lambda one, two: (one[0] + two[0], one[1] + two[1]), (3,))
    return tuple(z.sum((-2, -1)) for z in sums)


def _gathered(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The table as the products take it, gathered over fsdp once and not chunk by chunk."""
    return constrain(table.astype(dtype), "vocab", None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _scores(table, hidden, tokens, chunks, temperature, entropy_gradient, table_gradient):
    """float32 [3, X, Z, C]: log-probs, entropies, and the logarithms of the softmax's denominators."""
    table = _gathered(table, hidden.dtype)

    def one(k: jax.Array, found: jax.Array) -> jax.Array:
        logits = _logits(table, hidden[:, k], temperature)
        target = jnp.take_along_axis(logits, tokens[:, k, :, None], -1)[..., 0]
        top = logits.max(-1)
        logits = logits - top[..., None]
        weights = jnp.exp(logits)
        total, moment = _sums(weights, weights * logits)
        log_total = jnp.log(total)
        entropy = log_total - moment / total
        return found.at[:, :, k].set(jnp.stack([target - top - log_total, entropy, top + log_total]))

    found = jnp.zeros((3, *tokens.shape), jnp.float32)
    return jax.lax.fori_loop(0, chunks, one, constrain(found, None, "rows", None, None))


def _scores_forward(table, hidden, tokens, chunks, temperature, entropy_gradient, table_gradient):
    found = _scores(table, hidden, tokens, chunks, temperature, entropy_gradient, table_gradient)
    return found, (table, hidden, tokens, chunks, found)


def _scores_backward(temperature, entropy_gradient, table_gradient, kept, slopes):
    """d log p_j / d logit_i = [i = j] - p_i, and d H / d logit_i = -p_i (log p_i + H)."""
    table, hidden, tokens, chunks, (_, entropies, log_z) = kept
    of_logp, of_entropy, _ = slopes
    rows = _gathered(table, hidden.dtype)
    turned = hidden.swapaxes(2, 3)  # once: a CPU multiplies slower where the first operand is to be transposed

    def one(k: jax.Array, sums: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array | None]:
        to_hidden, to_table = sums
        states = hidden[:, k]
        log_probs = _logits(rows, states, temperature) - log_z[:, k, :, None]
        factor = of_logp[:, k, :, None]
        if entropy_gradient:
            factor = factor + of_entropy[:, k, :, None] * (log_probs + entropies[:, k, :, None])
        slope = -jnp.exp(log_probs) * factor
        its_own = jnp.arange(table.shape[0]) == tokens[:, k, :, None]
        slope = (slope + jnp.where(its_own, of_logp[:, k, :, None], 0)) / temperature
        slope = constrain(slope.astype(hidden.dtype), "rows", None, "vocab")
        f32 = dict(preferred_element_type=jnp.float32)
        to_hidden = to_hidden.at[:, k].set(jnp.einsum("xcw,wd->xcd", slope, rows, **f32).astype(hidden.dtype))
        if to_table is None:
            return to_hidden, None
        # Each shard adds up its own, so that devices exchange the sums once.
        return to_hidden, to_table + jnp.einsum("xdc,xcw->xdw", turned[:, k], slope, **f32)

    to_hidden = constrain(jnp.zeros_like(hidden), "rows", None, None, None)
    to_table = None
    if table_gradient:
        to_table = constrain(jnp.zeros((len(hidden), *table.shape[::-1]), jnp.float32), "rows", None, "vocab")
    to_hidden, to_table = jax.lax.fori_loop(0, chunks, one, (to_hidden, to_table))
    return None if to_table is None else to_table.sum(0).T.astype(table.dtype), to_hidden, None, None


_scores.defvjp(_scores_forward, _scores_backward)
