"""Slow twin: chunks, their own gradient, remat and gathering against full logits and jax.nn.log_softmax."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import LLAMA, MESHES, QWEN2, all_logits, on_mesh, placed, random_params

from ttrl_jax.learn.logprobs import response_logprobs, token_logprobs
from ttrl_jax.learn.microbatch import micro_batches
from ttrl_jax.model.sharding import partition
from ttrl_jax.plan import hlo
from ttrl_jax.records import TrainBatch

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
    """Zero states: every token has log-prob -ln 61 and the entropy is ln 61, whatever the temperature. The third
    chunk is not computed."""
    table = random_params(QWEN2)["head"]
    logps, entropies = token_logprobs(
        table,
        jnp.zeros((1, 3, 2, 16)),
        jnp.ones((1, 3, 2), jnp.int32),
        jnp.int32(2),
        temperature=0.3,
        entropy_gradient=False,
    )
    np.testing.assert_allclose(logps, [[[-4.110874] * 2] * 2 + [[0, 0]]], rtol=1e-6)
    np.testing.assert_allclose(entropies, [[[4.110874] * 2] * 2 + [[0, 0]]], rtol=1e-6)


# Shards, chunks, tokens of a chunk. Of the chunks, all but the last are computed.
@pytest.mark.parametrize("shape", [(1, 2, 21), (3, 8, 1), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("entropy_gradient", [True, False])
def test_chunks_equal_full_logits(shape, entropy_gradient):
    rng = np.random.default_rng(0)
    table = random_params(QWEN2)["head"]
    hidden = rng.normal(size=(*shape, 16)).astype(np.float32)
    tokens = jnp.asarray(rng.integers(61, size=shape))
    computed = np.broadcast_to((np.arange(shape[1]) < shape[1] - 1)[None, :, None], shape)
    weights = rng.normal(size=(2, *shape)).astype(np.float32) * computed

    def chunked(table, hidden):
        logps, entropies = token_logprobs(
            table, hidden, tokens, shape[1] - 1, temperature=TEMPERATURE, entropy_gradient=entropy_gradient
        )
        return (weights[0] * logps + weights[1] * entropies).sum(), (logps, entropies)

    def plain(table, hidden):
        logps, entropies = scores(jnp.einsum("xzcd,wd->xzcw", hidden, table), tokens)
        learned = entropies if entropy_gradient else jax.lax.stop_gradient(entropies)
        return (weights[0] * logps + weights[1] * learned).sum(), (logps * computed, entropies * computed)

    run, want = (jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True)) for f in (chunked, plain))
    assert_close(run(table, hidden), want(table, hidden))


def test_a_certain_token_keeps_its_small_entropy():
    """A logit of 16, 60 zeros: H is about 60 e^-16 (16 + 1). In float32 log Z - E[logit] is off by 1 % of that."""
    table = np.zeros((61, 1), np.float32)
    table[5] = 16
    one = jnp.ones((1, 1, 1, 1))
    _, entropies = token_logprobs(
        table, one, jnp.full((1, 1, 1), 5), jnp.int32(1), temperature=1.0, entropy_gradient=False
    )
    assert float(entropies.squeeze()) == pytest.approx(60 * np.exp(-16) * 17, rel=2e-3)


def example(config):
    """Rows with prompts of 1 to 6 tokens and responses of 1 to 5."""
    rng = np.random.default_rng(0)
    prompt_lengths, lengths = np.array([1, 3, 6, 6, 2], np.int32), np.array([5, 4, 5, 1, 3])
    ids = rng.integers(config.vocab, size=(5, 11)).astype(np.int32)
    mask = np.arange(5) < lengths[:, None]
    responses = np.take_along_axis(ids, prompt_lengths[:, None] + np.arange(5), 1) * mask
    return TrainBatch(ids, prompt_lengths, responses.astype(np.int32), mask.astype(np.float32), mask - 0.5)


@pytest.mark.parametrize(
    ("config", "mesh", "remat", "chunk"),
    [
        (LLAMA, (1, 1, 1), "none", 8),
        (QWEN2, (1, 1, 1), "full", 100),
        *((LLAMA, mesh, "dots", 3) for mesh in MESHES),
    ],
    ids=["one device", "one device, untied", *map(str, MESHES)],
)
def test_responses_in_whole_rows(config, mesh, remat, chunk):
    """One micro-batch of all rows, and rows of padding where 8 or 4 shards share 5 rows."""
    batch = example(config)
    weights = np.random.default_rng(1).normal(size=(2, config.vocab)).astype(np.float32)
    shards = mesh[0] * mesh[1]
    sizes = dict(tokens=1000, chunk=chunk, full=5, longest=100)
    [micro] = micro_batches(batch, np.arange(5), shards=shards, **sizes)

    def total(logps, entropies, tokens, mask):
        return ((weights[0][tokens] * logps + weights[1][tokens] * entropies) * mask).sum()

    def fast(params):
        found = response_logprobs(
            params,
            config,
            micro,
            temperature=TEMPERATURE,
            dtype=jnp.float32,
            remat=remat,
            entropy_gradient=True,
        )
        return total(*found, micro.tokens, micro.mask)

    def plain(params):
        before = batch.prompt_lengths[:, None] - 1 + np.arange(5)
        logits = jnp.take_along_axis(all_logits(params, config, batch.ids), before[..., None], 1)
        return total(*scores(logits, batch.responses), batch.responses, batch.mask)

    want = jax.jit(jax.value_and_grad(plain))(jax.tree.map(jnp.asarray, random_params(config)))
    with on_mesh(mesh) as devices:
        assert_close(jax.jit(jax.value_and_grad(fast))(placed(random_params(config), config, devices)), want)


def shapes_in(jaxpr):
    """Shapes of all intermediate values, in inner programs too."""
    for equation in jaxpr.eqns:
        yield from (out.aval.shape for out in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from shapes_in(getattr(inner, "jaxpr", inner))


def _is_jaxpr(node):
    return isinstance(node, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))


def gradient_of(vocab, *, chunks, slots, width=16, shards=1):
    """The program of a gradient through `chunks` chunks of each shard, traced."""

    def loss(table, hidden, tokens):
        logps, entropies = token_logprobs(
            table, hidden, tokens, jnp.int32(chunks), temperature=1.0, entropy_gradient=True
        )
        return (logps + entropies).sum()

    rows = (shards, chunks, slots)
    inputs = [
        ((vocab, width), "float32", ("vocab", "embed")),
        ((*rows, width), "float32", ("rows", None, None, None)),
        (rows, "int32", ("rows", None, None)),
    ]
    return jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*(lying(*each) for each in inputs))


def lying(shape, dtype, axes):
    """An array of the mesh that is set, if one is."""
    mesh = jax.sharding.get_mesh()
    sharding = None if mesh.empty else jax.sharding.NamedSharding(mesh, partition(axes, shape, mesh))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@pytest.mark.parametrize("vocab", [384, 1000], ids=["an odd number of blocks of 128", "no blocks of 128"])
def test_a_vocabulary_split_over_devices_is_not_gathered(vocab):
    """In the loop over the chunks devices exchange the gradients to their states, and sums of tokens; no logits."""
    chunk = 64
    with on_mesh((2, 2, 2)):
        program = gradient_of(vocab, chunks=3, slots=chunk, shards=4).lower().compile().as_text()
    exchanged = hlo.loop_collectives(program)
    assert exchanged[0]["kind"] == "all-reduce" and exchanged[0]["bytes"] == 4 * chunk * 16, exchanged


def test_logits_never_exist_for_more_than_a_chunk():
    """Neither forward nor backward. The vocabulary of 61 is a size that nothing else has."""
    program = gradient_of(61, chunks=10, slots=8)
    sizes = [int(np.prod(s)) // 61 for s in shapes_in(program.jaxpr) if 61 in s and 16 not in s and s != (61,)]
    assert max(sizes) == 8


@pytest.mark.parametrize("vocab", [32_000, 152_064])
def test_memory_grows_with_tokens_not_with_their_logits(vocab):
    """Bytes beside arguments and results, as XLA plans them: 2,048 or 4,096 tokens, 256 at a time."""
    sizes = []
    for chunks in (8, 16):
        plan = gradient_of(vocab, chunks=chunks, slots=256).lower().compile().memory_analysis()
        sizes.append(plan.temp_size_in_bytes)
    logits, table = 256 * vocab * 4, vocab * 16 * 4
    assert sizes[0] < 4 * logits + 4 * table < 8 * logits  # all logits of the smaller one: 8 of these
    assert sizes[1] - sizes[0] < 2048 * 1000  # of one more token: 1 kB, not its 128 kB or 608 kB of logits
