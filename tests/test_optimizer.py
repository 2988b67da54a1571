"""Hand-worked: the schedule and AdamW; and a second witness, optax.adamw under the same schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ttrl_jax.learn.optimizer import apply, learning_rate, make_optimizer


def rates(total, warmup, peak=2.0):
    return [learning_rate(step, peak=peak, total_steps=total, warmup=warmup) for step in range(total)]


def test_schedule_by_hand():
    """Two steps of warm-up, then 1 + cos of 0, 1/8, ... 7/8 of pi."""
    want = [1.0, 2.0, 2.0, 1.923880, 1.707107, 1.382683, 1.0, 0.617317, 0.292893, 0.076120]
    assert rates(10, 0.2) == pytest.approx(want, abs=1e-6)


def test_schedule_of_the_reference_settings():
    """240 steps, int(0.03 * 240) = 7 of warm-up, peak 5e-7."""
    got = rates(240, 0.03, peak=5e-7)
    assert got[0] == pytest.approx(5e-7 / 7) and got[6] == got[7] == 5e-7 and got[8] < 5e-7
    assert got[239] == pytest.approx(4.5e-5 * 5e-7, rel=0.02)
    assert got[123] == pytest.approx(5e-7 * 0.5 * (1 + np.cos(np.pi * 116 / 233)))


@pytest.mark.parametrize("total", [1, 2, 10, 33, 240])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0])
def test_no_rate_is_zero(total, warmup):
    got = rates(total, warmup)
    assert min(got) > 0 and max(got) == pytest.approx(2.0)
    top = int(np.argmax(got))
    assert got[: top + 1] == sorted(got[: top + 1]) and got[top:] == sorted(got[top:], reverse=True)
    if int(warmup * total) == 0:
        assert got[0] == 2.0


def test_a_stream_has_no_schedule():
    """Nobody knows its length: the peak at every step, without warm-up and without decay."""
    got = [learning_rate(step, peak=2.0, total_steps=None, warmup=0.5) for step in (0, 1, 10_000)]
    assert got == [2.0, 2.0, 2.0]


def test_first_step_by_hand():
    """Adam's first update is the sign of the gradient; decay adds 0.01 * 2; rate 0.1: 2 - 0.1 * (1 + 0.02)."""
    optimizer = make_optimizer(b1=0.9, b2=0.999, weight_decay=0.01, grad_clip=1.0)
    params = {"w": jnp.array([2.0, -1.0, 3.0])}
    updates, _ = optimizer.update({"w": jnp.array([0.3, -0.2, 0.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(apply(params, updates, 0.1)["w"], [1.898, -0.899, 2.997], rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_clip_of_0_is_off(size):
    """As one that no gradient reaches, and with the same state: a checkpoint fits both."""
    off, far = (make_optimizer(b1=0.9, b2=0.999, weight_decay=0.01, grad_clip=clip) for clip in (0.0, 1e9))
    params = {"w": jnp.array([2.0, -1.0, 3.0])}
    grads = {"w": size * jnp.array([0.3, -0.2, 0.1])}
    (got, state), (want, other) = (each.update(grads, each.init(params), params) for each in (off, far))
    assert np.abs(got["w"]).min() > 0.9
    np.testing.assert_array_equal(got["w"], want["w"])
    assert jax.tree.structure(state) == jax.tree.structure(other)


def adamw_by_hand(params, grads, rates, *, b1, b2, weight_decay, grad_clip):
    """Algorithm 2 of arXiv 1711.05101 on one float64 vector, after clipping by norm."""
    m = v = np.zeros_like(params)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g * min(1, grad_clip / np.linalg.norm(g))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        params = params - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8) + weight_decay * params)
    return params


def test_adamw_and_two_witnesses():
    settings = dict(b1=0.8, b2=0.95, weight_decay=0.1)
    rng = np.random.default_rng(0)
    start = rng.normal(size=5)
    grads = rng.normal(size=(12, 5)) * np.array([0.01, 3.0] * 6)[:, None]  # every second one is clipped
    steps = rates(12, 0.25, peak=0.05)
    ours = make_optimizer(**settings, grad_clip=1.0)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda n: jnp.array(steps)[n], **settings))

    def tree(x):  # the norm is that of all leaves together
        return {"a": jnp.float32(x[:2]), "b": {"c": jnp.float32(x[2:])}}

    a = b = tree(start)
    a_state, b_state = ours.init(a), theirs.init(b)
    for g, rate in zip(grads, steps, strict=True):
        updates, a_state = ours.update(tree(g), a_state, a)
        a = apply(a, updates, jnp.float32(rate))
        updates, b_state = theirs.update(tree(g), b_state, b)
        b = optax.apply_updates(b, updates)
    want = adamw_by_hand(start, grads, steps, **settings, grad_clip=1.0)
    for got in (a, b):
        np.testing.assert_allclose(np.concatenate([got["a"], got["b"]["c"]]), want, rtol=1e-5, atol=1e-6)
