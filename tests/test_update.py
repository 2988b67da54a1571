"""Slow twin and invariance: the optimizer steps of one batch against full logits and one gradient per minibatch, and
micro-batches, chunks, remat, devices and rows left out, which change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import LLAMA, MESHES, QWEN2, all_logits, forward_of, on_mesh, placed, random_params

from ttrl_jax.learn import microbatch
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.learn.loss import Loss, grpo
from ttrl_jax.learn.optimizer import make_optimizer
from ttrl_jax.learn.update import Sizes, Update
from ttrl_jax.model.sharding import replicated
from ttrl_jax.records import Model, Prompts, Rollouts


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scalars of the loss."""

    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coef: float
    entropy_coef: float


# The clip range is narrow: the steps below are small, and still leave it.
LOSS = Settings(clip_low=0.005, clip_high=0.008, dual_clip=3.0, kl_coef=0.05, entropy_coef=0.01)
TEMPERATURE = 0.8
ROWS = 16  # 2 prompts, 8 samples each


def reference_params(config):
    """Near the start, as in a run, but not equal to it (and not so far that k3 reaches its limit of 10)."""
    noise = random_params(config, seed=1, std=0.01)
    return jax.tree.map(lambda x, y: x + (y - y.mean()), random_params(config), noise)


def make_batch(config):
    rng = np.random.default_rng(0)
    prompts = Prompts(rng.integers(config.vocab, size=(2, 6)), np.array([6, 3], np.int32), np.arange(2))
    lengths = rng.integers(1, 13, size=(2, 8)).astype(np.int32)
    tokens, logps = rng.integers(config.vocab, size=(2, 8, 12)), -rng.exponential(size=(2, 8, 12))
    rollouts = Rollouts(tokens, lengths, logps, lengths == 12, 0)
    batch = train_batch(prompts, rollouts, np.tile(np.arange(8), (2, 1)))
    return batch, (rng.normal(size=(ROWS, 1)) * batch.mask).astype(np.float32)


def model_of(params, optimizer):
    """A fresh model on one device: `Update` uses it up."""
    params = jax.tree.map(jnp.array, params)
    return Model(params, optimizer.init(params))


def learn(update, model, batch, rate):
    rows, advantages = batch
    model, metrics, kept = update(model, rows, {"advantages": advantages}, rate)
    assert kept is None
    return model, metrics


def make_update(
    config,
    optimizer,
    *,
    minibatch,
    micro,
    loss=LOSS,
    remat="none",
    chunk=1000,
    shards=1,
    few=False,
    unroll=False,
    model=None,
    reference=True,
    announce=lambda *told: None,
):
    """micro: tokens of a shard in one pass. Rows are of at most 18 tokens, on rungs of 16 and 24."""
    reference = reference_params(config) if reference is True else reference
    model = model or model_of(random_params(config), optimizer)
    return Update(
        forward_of(config, temperature=TEMPERATURE, remat=remat, unroll=unroll),
        optimizer,
        loss=grpo(**vars(loss)),
        sizes=Sizes(
            minibatch_rows=minibatch,
            micro_tokens=micro,
            chunk_tokens=chunk,
            longest=18,
            shards=shards,
            in_place=remat == "full",
            few=few,
        ),
        reference=jax.tree.map(jnp.asarray, reference),
        shardings=jax.tree.map(lambda leaf: leaf.sharding, model),
        announce=announce,
    )


def plain_scores(params, config, batch):
    """Log-probs and entropies of all response tokens from full logits."""
    log_probs = jax.nn.log_softmax(all_logits(params, config, batch.ids) / TEMPERATURE)
    before = batch.prompt_lengths[:, None] - 1 + np.arange(batch.mask.shape[1])[None]
    before = jnp.minimum(before, batch.ids.shape[1] - 1)
    log_probs = jnp.take_along_axis(log_probs, before[..., None], 1)
    logps = jnp.take_along_axis(log_probs, batch.responses[..., None], 2)[..., 0]
    return logps, -(jnp.exp(log_probs) * log_probs).sum(-1)


def plain_loss(params, config, batch, old, reference, loss):
    """The loss as on paper: the mean over the tokens of the batch of
    -min(r A, clip(r) A), at most -3 A where A < 0, + kl_coef k3 - entropy_coef H."""
    batch, a = batch
    logps, entropies = plain_scores(params, config, batch)
    ratio = jnp.exp(logps - old)
    objective = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - loss.clip_low, 1 + loss.clip_high) * a)
    objective = jnp.where(a < 0, jnp.maximum(objective, loss.dual_clip * a), objective)
    per_token = -objective - loss.entropy_coef * entropies
    if loss.kl_coef:
        d = reference - logps
        per_token += loss.kl_coef * (jnp.exp(d) - d - 1)
    return (per_token * batch.mask).sum() / batch.mask.sum()


plain_gradient = jax.jit(
    lambda params, config, batch, old, reference, loss: jax.value_and_grad(plain_loss)(
        params, config, batch, old, reference, loss
    ),
    static_argnames=("config", "loss"),
)


def rows(batch, index):
    return jax.tree.map(lambda x: x[index], batch)


def assert_close(got, want, tolerance=1e-5):
    """Relative to the largest entry, leaf by leaf."""
    for path, b in jax.tree.leaves_with_path(want):
        a = got
        for key in path:
            a = a[key.key]
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / np.abs(b).max()
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


NO_KL = Settings(clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=0.0, entropy_coef=0.0)


SMALL, ONE = (LLAMA, 48, "full", 8, LOSS), (QWEN2, 1000, "none", 1000, LOSS)
ROW_BY_ROW = (LLAMA, 1, "dots", 3, NO_KL)


@pytest.mark.parametrize(
    ("config", "micro", "remat", "chunk", "loss", "way"),
    [
        pytest.param(*SMALL, "whole", id="small pieces"),
        pytest.param(*SMALL, "packed", id="small pieces, packed", marks=pytest.mark.slow),
        pytest.param(*SMALL, "few", id="small pieces of few shapes"),
        pytest.param(*ONE, "packed", id="one piece, packed"),
        pytest.param(*ROW_BY_ROW, "whole", id="row by row without KL"),
    ],
)
def test_gradient_equals_the_slow_twin(config, micro, remat, chunk, loss, way, monkeypatch):
    """Read off a step at rate 1e4 without an optimizer: what is left of the parameters themselves is rounding."""
    params, batch = jax.tree.map(jnp.asarray, random_params(config)), make_batch(config)
    optimizer = optax.identity()
    update = make_update(
        config,
        optimizer,
        minibatch=ROWS,
        micro=micro,
        loss=loss,
        remat=remat,
        chunk=chunk,
        few=way == "few",
        unroll=way == "packed",
        reference=None if loss is NO_KL else True,
    )
    if way == "whole":
        monkeypatch.setattr(microbatch, "WORTH_PACKING", 0)
    state, metrics = learn(update, model_of(params, optimizer), batch, 1e4)
    got = jax.tree.map(lambda before, after: (before - after) / 1e4, params, state.params)
    rows, advantages = batch
    old, entropies = plain_scores(params, config, rows)
    reference = None if loss is NO_KL else plain_scores(reference_params(config), config, rows)[0]
    value, want = plain_gradient(params, config, batch, old, reference, loss)
    assert_close(got, want)
    tokens = rows.mask.sum()
    assert any(piece.packing for piece in update.micro_batches(rows, np.arange(ROWS))) == (way != "whole")
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(want)), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(float((entropies * rows.mask).sum() / tokens), rel=1e-5)
    gap = np.abs(np.asarray(old) - rows.sampler_logps) * rows.mask
    assert metrics["logp_gap"] == pytest.approx(gap.sum() / tokens, rel=1e-5)
    assert ("kl" in metrics) == (loss is LOSS)
    # The first step of a batch is at ratio 1: the policy loss is the mean of -A, and nothing is clipped.
    assert metrics["policy_loss"] == pytest.approx(-advantages.sum() / tokens, rel=1e-4)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-4) and metrics["clip_fraction"] == metrics["skipped"] == 0


ADAM = dict(b1=0.9, b2=0.99, weight_decay=0.01, grad_clip=0.05)  # clips every gradient here
RATE = 0.0003  # Adam turns rounding of small gradients into steps of its own: larger rates show that instead


def adam_twin(params, config, batch, minibatches, loss=LOSS):
    """Gradients one by one, optax.adamw. Returns the parameters, and a loss for each minibatch (row indices)."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(ADAM["grad_clip"]),
        optax.adamw(RATE, b1=ADAM["b1"], b2=ADAM["b2"], weight_decay=ADAM["weight_decay"]),
    )
    old, _ = plain_scores(params, config, batch[0])
    reference, _ = plain_scores(reference_params(config), config, batch[0])
    opt_state, losses = optimizer.init(params), []
    for index in minibatches:
        value, grads = plain_gradient(params, config, rows(batch, index), old[index], reference[index], loss)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return params, losses


QUARTERS = [slice(i, i + 4) for i in range(0, ROWS, 4)]


@pytest.fixture(scope="module")
def four_steps():
    """Minibatches of 4 rows in micro-batches of 2 long ones or 3 short ones."""
    return make_update(LLAMA, make_optimizer(**ADAM), minibatch=4, micro=48, chunk=16, few=False)


@pytest.mark.slow
def test_several_steps_keep_the_log_probs_from_before_the_first(four_steps):
    params, batch = jax.tree.map(jnp.asarray, random_params(LLAMA)), make_batch(LLAMA)
    state, metrics = learn(four_steps, model_of(params, make_optimizer(**ADAM)), batch, RATE)
    want, losses = adam_twin(params, LLAMA, batch, QUARTERS)
    assert_close(state.params, want)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["clip_fraction"] > 0.1 and metrics["ratio_max"] > 1.01
    assert metrics["skipped"] == 0
    # The same steps with old log-probs taken anew for each are something else.
    fresh = params
    for index in QUARTERS[:2]:
        fresh, _ = adam_twin(fresh, LLAMA, rows(batch, index), [slice(None)])
    assert np.abs(adam_twin(params, LLAMA, batch, QUARTERS[:2])[0]["embed"] - fresh["embed"]).max() > 5e-5


def test_each_minibatch_is_divided_by_its_own_tokens(four_steps):
    """The test above would notice another denominator: the steps have different ones, and so have their pieces."""
    batch, _ = make_batch(LLAMA)
    pieces = [four_steps.micro_batches(batch, np.arange(ROWS)[index]) for index in QUARTERS]
    assert all(len(each) == 2 for each in pieces)
    tokens = np.array([[micro.mask.sum() for micro in each] for each in pieces])
    assert (np.abs(tokens[:, 0] - tokens[:, 1]) > 2).any() and len(set(tokens.sum(1))) > 1


def poisoned(batch, index):
    advantages = batch[1].copy()
    advantages[index] = np.nan
    return batch[0], advantages


@pytest.mark.slow
def test_a_step_without_a_finite_gradient_is_skipped_and_counted(four_steps):
    params, batch = jax.tree.map(jnp.asarray, random_params(LLAMA)), make_batch(LLAMA)
    state, metrics = learn(four_steps, model_of(params, make_optimizer(**ADAM)), poisoned(batch, 5), RATE)
    want, losses = adam_twin(params, LLAMA, batch, [QUARTERS[0], QUARTERS[2], QUARTERS[3]])
    assert_close(state.params, want)
    assert metrics["skipped"] == 1
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_no_finite_gradient_at_all_is_an_error(four_steps):
    with pytest.raises(FloatingPointError, match="not finite"):
        state = model_of(random_params(LLAMA), make_optimizer(**ADAM))
        learn(four_steps, state, poisoned(make_batch(LLAMA), [0, 4, 8, 12]), RATE)


def unanimous(batch, index):
    """As from groups in which all rewards are the same."""
    advantages = batch[1].copy()
    advantages[index] = 0
    return batch[0], advantages


def test_rows_without_an_advantage_count_and_are_not_computed():
    """The first minibatch lacks some of its rows, the second all. Adam's moments and the weights decay all the same."""
    loss = Settings(**{**vars(LOSS), "kl_coef": 0.0, "entropy_coef": 0.0})
    batch = unanimous(make_batch(LLAMA), [0, 3, 4, *range(8, 16)])
    optimizer = make_optimizer(**ADAM)
    update = make_update(LLAMA, optimizer, minibatch=8, micro=48, loss=loss, reference=None)
    state, metrics = learn(update, model_of(random_params(LLAMA), optimizer), batch, RATE)
    want, losses = adam_twin(random_params(LLAMA), LLAMA, batch, [slice(0, 8), slice(8, 16)], loss)
    assert_close(state.params, want)
    assert metrics["loss"] == pytest.approx(losses[0] / 2, abs=1e-6) and losses[1] == 0  # of terms that are near 1
    assert metrics["rows_skipped"] == 11 and metrics["skipped"] == 0
    some, _ = rows(batch, [1, 2, 5, 6, 7])
    _, entropies = plain_scores(random_params(LLAMA), LLAMA, some)
    mask = some.mask
    assert metrics["entropy"] == pytest.approx(float((entropies * mask).sum() / mask.sum()), rel=1e-5)


def test_a_batch_without_any_advantage_still_decays():
    loss = Settings(**{**vars(LOSS), "kl_coef": 0.0, "entropy_coef": 0.0})
    batch, optimizer = unanimous(make_batch(LLAMA), slice(None)), make_optimizer(**ADAM)
    update = make_update(LLAMA, optimizer, minibatch=ROWS, micro=48, loss=loss, reference=None)
    state, metrics = learn(update, model_of(random_params(LLAMA), optimizer), batch, RATE)
    decayed = jax.tree.map(lambda x: x * (1 - RATE * ADAM["weight_decay"]), random_params(LLAMA))
    assert_close(state.params, decayed, 5e-7)  # the decay is 3e-6
    names = ("loss", "policy_loss", "clip_fraction", "dual_clip_fraction", "grad_norm", "skipped", "rows_skipped")
    assert metrics == dict.fromkeys(names, 0.0) | {"rows_skipped": ROWS}


def test_with_a_kl_term_rows_without_an_advantage_are_computed():
    batch, optimizer = unanimous(make_batch(LLAMA), slice(0, 8)), make_optimizer(**ADAM)
    update = make_update(LLAMA, optimizer, minibatch=ROWS, micro=1000)
    state, metrics = learn(update, model_of(random_params(LLAMA), optimizer), batch, RATE)
    want, _ = adam_twin(random_params(LLAMA), LLAMA, batch, [slice(None)])
    assert_close(state.params, want)
    assert metrics["rows_skipped"] == 0


def test_few_programs_are_compiled_whatever_comes():
    said, optimizer, rng = [], make_optimizer(**ADAM), np.random.default_rng(1)
    update = make_update(LLAMA, optimizer, minibatch=4, micro=48, few=True, announce=lambda *told: said.append(told))
    state, batch = model_of(random_params(LLAMA), optimizer), make_batch(LLAMA)
    for _ in range(4):
        state, _ = learn(update, state, rows(batch, rng.permutation(ROWS)), RATE)
    assert [program.split(",")[0] for program, _, seconds in said if seconds] == ["score", "gradient", "optimizer step"]
    assert {program.split(", ")[-1] for program, *_ in said[:4]} == {"1 x 48 tokens"}


def test_six_programs_are_enough_where_rows_are_long():
    """With a step: three shapes of the gradient, and two that only compute scores. Otherwise two of each."""
    sizes = Sizes(
        minibatch_rows=32, micro_tokens=8192, chunk_tokens=1024, longest=33280, shards=1, in_place=False, few=True,
        even=30_000.0,
    )  # fmt: skip
    found = sizes.kinds().rows
    assert len(found) == 3 and sizes.kinds(scores=True).rows == found[:2]
    short = dataclasses.replace(sizes, longest=3584)
    assert short.kinds() == short.kinds(scores=True) and len(short.kinds().rows) == 2
    assert dataclasses.replace(sizes, few=False).kinds() is None


@pytest.mark.parametrize(("shape", "few"), [(MESHES[0], False), (MESHES[1], True)], ids=str)
def test_eight_devices_equal_the_slow_twin(shape, few):
    """Two steps of 8 rows: one row for each device, or two."""
    params, batch = jax.tree.map(jnp.asarray, random_params(LLAMA)), make_batch(LLAMA)
    want, losses = adam_twin(params, LLAMA, batch, [slice(0, 8), slice(8, 16)])
    optimizer = make_optimizer(**ADAM)
    with on_mesh(shape) as mesh:
        masters = placed(random_params(LLAMA), LLAMA, mesh)
        state = Model(masters, optimizer.init(masters))
        state = jax.tree.map(
            lambda x: x if isinstance(x.sharding, jax.NamedSharding) else jax.device_put(x, replicated(mesh)), state
        )
        layout = jax.tree.map(lambda leaf: leaf.sharding, state)
        update = make_update(
            LLAMA,
            optimizer,
            minibatch=8,
            micro=24,
            chunk=16,
            shards=shape[0] * shape[1],
            few=few,
            model=state,
            reference=placed(reference_params(LLAMA), LLAMA, mesh),
        )
        state, metrics = learn(update, state, batch, RATE)
        scores = update.score(state.params, batch[0])
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == layout
    assert len(state.params["embed"].addressable_shards) == 8
    assert scores.sharding.is_fully_replicated
    logps, _ = plain_scores(jax.tree.map(np.asarray, state.params), LLAMA, batch[0])
    np.testing.assert_allclose(scores, np.where(batch[0].mask > 0, logps, 0), atol=2e-5)
    assert_close(state.params, want)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("few", [False, True])
def test_scores_are_in_the_order_of_the_rows(few):
    """Slow twin, full logits: minibatches of 6 rows, the last of 4, in micro-batches of few; 0 where no token is."""
    (batch, _), optimizer = make_batch(LLAMA), optax.identity()
    update = make_update(LLAMA, optimizer, minibatch=6, micro=48, chunk=8, few=few)
    params = jax.tree.map(jnp.asarray, random_params(LLAMA))
    for found, want in zip((update.score, update.entropies), plain_scores(params, LLAMA, batch), strict=True):
        numbers = found(params, batch)
        assert numbers.shape == batch.mask.shape and numbers.dtype == jnp.float32
        np.testing.assert_allclose(numbers, np.where(batch.mask > 0, want, 0), atol=2e-5)


def test_advantages_of_single_tokens():
    """Slow twin: each token has its own, and a row of which one token has one is computed whole."""
    (rows_, _), optimizer = make_batch(LLAMA), optax.identity()
    advantages = (np.random.default_rng(3).normal(size=rows_.mask.shape) * rows_.mask).astype(np.float32)
    advantages[4:] = 0
    advantages[9, 0] = -2
    batch, params = (rows_, advantages), jax.tree.map(jnp.asarray, random_params(LLAMA))
    update = make_update(LLAMA, optimizer, minibatch=ROWS, micro=48, loss=NO_KL, reference=None)
    model, metrics = learn(update, model_of(params, optimizer), batch, 1e4)
    old, _ = plain_scores(params, LLAMA, rows_)
    value, want = plain_gradient(params, LLAMA, batch, old, None, NO_KL)
    assert_close(jax.tree.map(lambda before, after: (before - after) / 1e4, params, model.params), want)
    assert metrics["rows_skipped"] == ROWS - 5 and metrics["loss"] == pytest.approx(float(value), rel=1e-4)


def test_the_loss_is_handed_in():
    """Hand-worked: a loss of its own, the squared log-probs with a number that only it asks for."""
    (rows_, advantages), optimizer = make_batch(LLAMA), optax.identity()
    weights = np.arange(rows_.mask.size, dtype=np.float32).reshape(rows_.mask.shape) / 100
    params = jax.tree.map(jnp.asarray, random_params(LLAMA))

    def squares(logps, entropies, numbers, mask):
        total = (numbers["weights"] * logps**2 * mask).sum()
        return total, {"loss": total}

    update = Update(
        forward_of(LLAMA, temperature=TEMPERATURE),
        optimizer,
        loss=Loss(
            squares, all_rows=True, of_advantages=("loss",), keep=lambda logps, numbers: logps - numbers["weights"]
        ),
        sizes=Sizes(
            minibatch_rows=ROWS, micro_tokens=1000, chunk_tokens=1000, longest=18, shards=1, in_place=False, few=False
        ),
        reference=None,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, model_of(params, optimizer)),
        announce=lambda *told: None,
    )
    model, metrics, kept = update(
        model_of(params, optimizer), rows_, {"advantages": advantages, "weights": weights}, 1e4
    )
    logps, _ = plain_scores(params, LLAMA, rows_)
    np.testing.assert_allclose(kept, np.where(rows_.mask > 0, logps - weights, 0), atol=2e-5)

    def plain(params):
        logps, _ = plain_scores(params, LLAMA, rows_)
        return (weights * logps**2 * rows_.mask).sum() / rows_.mask.sum()

    value, want = jax.value_and_grad(plain)(params)
    assert_close(jax.tree.map(lambda before, after: (before - after) / 1e4, params, model.params), want)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
