"""Log-probs and entropies of response tokens, a slice at a time: logits never exist as [rows, T, vocabulary]."""

import jax
import jax.numpy as jnp

from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import constrain


def token_logprobs(
    params: decoder.Params, config: ModelConfig, hidden: jax.Array, tokens: jax.Array, *, temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each token under softmax(logits / temperature), and the entropy of that distribution.

    hidden [R, T, D] (the state before each token), tokens int32 [R, T] -> two float32 [R, T], entropy in nats. At most
    about `chunk` tokens (of all rows together) have logits at any time, in the backward pass too, where they are
    recomputed.
    """
    rows, length, width = hidden.shape
    step = max(1, min(length, chunk // rows))
    pad = -length % step
    hidden = jnp.pad(hidden, [(0, 0), (0, pad), (0, 0)]).reshape(rows, -1, step, width).swapaxes(0, 1)
    targets = jnp.pad(tokens, [(0, 0), (0, pad)]).reshape(rows, -1, step).swapaxes(0, 1)

    @jax.checkpoint
    def of_slice(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = constrain(decoder.logits(params, config, hidden), "rows", None, "vocab") / temperature
        log_z = jax.nn.logsumexp(logits, -1)
        logp = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] - log_z
        entropy = log_z - (jnp.exp(logits - log_z[..., None]) * logits).sum(-1)
        return logp, entropy

    _, (logps, entropies) = jax.lax.scan(lambda _, xs: (None, of_slice(*xs)), None, (hidden, targets))
    unslice = lambda x: x.swapaxes(0, 1).reshape(rows, -1)[:, :length]  # noqa: E731
    return unslice(logps), unslice(entropies)


def response_logprobs(
    params: decoder.Params,
    config: ModelConfig,
    ids: jax.Array,
    prompt_lengths: jax.Array,
    responses: jax.Array,
    *,
    temperature: float,
    dtype: jnp.dtype,
    remat: bool,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies of the responses in whole rows.

    ids int32 [R, T] (prompt then response), prompt_lengths int32 [R], responses int32 [R, T'] -> two float32 [R, T'];
    entries beyond a response's length are meaningless. Prompt positions never reach the vocabulary projection.
    """
    hidden = decoder.forward(params, config, ids, dtype=dtype, remat=remat)
    before = (prompt_lengths - 1)[:, None] + jnp.arange(responses.shape[1])[None]
    hidden = jnp.take_along_axis(hidden, jnp.minimum(before, ids.shape[1] - 1)[..., None], 1)
    return token_logprobs(params, config, hidden, responses, temperature=temperature, chunk=chunk)
