"""Slow twin: chunks, remat and gathering against full logits and jax.nn.log_softmax, gradients too."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import LLAMA, QWEN2, all_logits, random_params

from ttrl_jax.learn.logprobs import response_logprobs, token_logprobs

TEMPERATURE = 0.7


def assert_close(got, want):
    """1e-5 of the largest entry, leaf by leaf."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and np.abs(b).max() > 0
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(b).max()


def scores(logits, tokens):
    """Log-probs and entropies, the plain way."""
    log_probs = jax.nn.log_softmax(logits / TEMPERATURE)
    return jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0], -(jnp.exp(log_probs) * log_probs).sum(-1)


def test_uniform_by_hand():
    """Zero states: every token has log-prob -ln 61 and the entropy is ln 61, whatever the temperature."""
    logps, entropies = token_logprobs(
        random_params(QWEN2), QWEN2, jnp.zeros((2, 3, 16)), jnp.ones((2, 3), jnp.int32), temperature=0.3, chunk=4
    )
    np.testing.assert_allclose(logps, np.full((2, 3), -4.110874), rtol=1e-6)
    np.testing.assert_allclose(entropies, np.full((2, 3), 4.110874), rtol=1e-6)


# One token of one row at a time (less than a row each); two per row; a part left over; all at once.
@pytest.mark.parametrize("chunk", [1, 6, 13, 1000])
@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["tied", "untied"])
def test_chunks_equal_full_logits(config, chunk):
    rng = np.random.default_rng(0)
    params = {"embed": random_params(config)["embed"], "head": random_params(config, seed=1)["embed"]}
    hidden = rng.normal(size=(3, 7, 16)).astype(np.float32)
    tokens = rng.integers(config.vocab, size=(3, 7))
    weights = rng.normal(size=(2, 3, 7)).astype(np.float32)

    def chunked(params, hidden):
        logps, entropies = token_logprobs(params, config, hidden, tokens, temperature=TEMPERATURE, chunk=chunk)
        return (weights[0] * logps + weights[1] * entropies).sum(), (logps, entropies)

    def plain(params, hidden):
        table = params["embed" if config.tied else "head"]
        logps, entropies = scores(jnp.einsum("rtd,wd->rtw", hidden, table), tokens)
        return (weights[0] * logps + weights[1] * entropies).sum(), (logps, entropies)

    run, want = (jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True)) for f in (chunked, plain))
    (_, values), (table_grads, hidden_grad) = run(params, hidden)
    (_, want_values), (want_table_grads, want_hidden_grad) = want(params, hidden)
    assert_close(values, want_values)
    used, unused = ("embed", "head") if config.tied else ("head", "embed")
    assert_close([table_grads[used], hidden_grad], [want_table_grads[used], want_hidden_grad])
    assert not np.asarray(table_grads[unused]).any()


def example(config):
    """Rows with prompts of 1 to 6 tokens and 5 response places, two of which reach beyond the row."""
    rng = np.random.default_rng(0)
    prompt_lengths = np.array([1, 3, 6, 6], np.int32)
    ids = rng.integers(config.vocab, size=(4, 10)).astype(np.int32)
    where = prompt_lengths[:, None] + np.arange(5)
    inside = where < 10
    responses = np.where(inside, np.take_along_axis(ids, np.minimum(where, 9), 1), 0).astype(np.int32)
    return ids, prompt_lengths, responses, inside


@pytest.mark.parametrize(("config", "remat", "chunk"), [(LLAMA, False, 8), (QWEN2, True, 100)], ids=["llama", "qwen2"])
def test_responses_in_whole_rows(config, remat, chunk):
    ids, prompt_lengths, responses, inside = example(config)
    weights = np.random.default_rng(1).normal(size=(2, *inside.shape)).astype(np.float32) * inside

    def fast(params):
        logps, entropies = response_logprobs(
            params,
            config,
            ids,
            prompt_lengths,
            responses,
            temperature=TEMPERATURE,
            dtype=jnp.float32,
            remat=remat,
            chunk=chunk,
        )
        return (weights[0] * logps + weights[1] * entropies).sum(), (logps * inside, entropies * inside)

    def plain(params):
        logits = all_logits(params, config, ids)
        picked = jnp.stack(
            [row[np.minimum(np.arange(n - 1, n + 4), 9)] for row, n in zip(logits, prompt_lengths, strict=True)]
        )
        logps, entropies = scores(picked, responses)
        return (weights[0] * logps + weights[1] * entropies).sum(), (logps * inside, entropies * inside)

    params = jax.tree.map(jnp.asarray, random_params(config))
    (_, values), grads = jax.jit(jax.value_and_grad(fast, has_aux=True))(params)
    (_, want_values), want_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    assert inside.sum() == 18
    assert_close(values, want_values)
    assert_close(grads, want_grads)


def shapes_in(jaxpr):
    """Shapes of all intermediate values, in inner programs too."""
    for equation in jaxpr.eqns:
        yield from (out.aval.shape for out in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from shapes_in(getattr(inner, "jaxpr", inner))


def _is_jaxpr(node):
    return isinstance(node, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))


@pytest.mark.parametrize(("chunk", "most"), [(8, 8), (100, 80)])
def test_logits_never_exist_for_more_than_a_chunk(chunk, most):
    """Neither forward nor backward. 2 rows of 40 tokens; the vocabulary of 61 is a size that nothing else has."""
    hidden, tokens = np.zeros((2, 40, 16), np.float32), np.zeros((2, 40), np.int32)

    def loss(params, hidden):
        logps, entropies = token_logprobs(params, QWEN2, hidden, tokens, temperature=1.0, chunk=chunk)
        return (logps + entropies).sum()

    params = {"head": np.zeros((61, 16), np.float32)}
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, hidden)
    sizes = [int(np.prod(shape)) // 61 for shape in shapes_in(program.jaxpr) if 61 in shape and 16 not in shape]
    assert max(sizes) == most
