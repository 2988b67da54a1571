"""Hand-worked: single numbers and where means go. Invariance: meshes. Semantics: what random bits depend on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ttrl_jax.learn import rounding
from ttrl_jax.learn.optimizer import make_optimizer, step
from ttrl_jax.model.sharding import make_mesh

BF16 = jnp.bfloat16


def rounded(numbers, random) -> list[float]:
    random = jnp.full(len(numbers), random, jnp.uint32)
    found = rounding.stochastic(jnp.array(numbers, jnp.float32), random)
    assert found.dtype == BF16
    return found.astype(np.float32).tolist()


@pytest.mark.parametrize(("random", "up"), [(0, False), (0xBFFF, False), (0xC000, True), (0xFFFF, True)])
def test_a_quarter_of_the_way_by_hand(random: int, up: bool):
    """Beyond 1 the next number in bfloat16 is 1 + 2^-7, and below it 2^-8 apart. A quarter of the way from 1 is
    0x3F804000 in float32: with 0xC000 or more, which 0x4000 of 0x10000 random numbers are, it carries into the upper
    half, 0x3F81. The sign is a bit of its own."""
    quarter = 1 + 2**-9
    assert rounded([quarter, -quarter], random) == ([1 + 2**-7, -1 - 2**-7] if up else [1, -1])
    # bits above the lower 16 do not count
    assert rounded([quarter], random | 0xABC0000) == rounded([quarter], random)


def test_what_bfloat16_has_stays():
    """Also with the largest random number: zeros with their signs, subnormal numbers, the largest number."""
    exact = [0.0, -0.0, 1.0, -2.5, 2.0**-133, float(jnp.finfo(BF16).max), float("inf"), -float("inf")]
    assert str(rounded(exact, 0xFFFF)) == str(exact) == str(rounded(exact, 0))


def test_what_is_no_number_stays_none():
    """Those with few bits at the end, where adding carries into the sign, and with few at the start, which are cut."""
    patterns = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32)
    for random in (0, 0xFFFF):
        found = rounding.stochastic(jnp.asarray(patterns.view(np.float32)), jnp.full(5, random, jnp.uint32))
        assert np.isnan(np.asarray(found, np.float32)).all()


def test_beyond_the_largest_number_is_infinite_or_the_largest():
    """As to nearest, where one may be either, too. What lies between them can be nothing else."""
    largest, beyond = float(jnp.finfo(BF16).max), float(np.finfo(np.float32).max)
    assert rounded([beyond, -beyond], 0) == [largest, -largest]
    assert rounded([beyond, -beyond], 0xFFFF) == [float("inf"), -float("inf")]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("size", [1.0, -0.02, 3e-12])
def test_the_mean_is_the_number(share: float, size: float):
    """40,000 roundings: within 4 standard errors, each of sqrt(s (1 - s)) of the distance to the neighbour; and within
    2^-16 of that distance, by which the random numbers are apart."""
    low = float(np.float32(BF16(size)))
    step_up = float(np.array(np.array(low, BF16).view(np.uint16) + 1).view(BF16)) - low
    x = jnp.full(40_000, low + share * step_up, jnp.float32)
    found = np.asarray(
        rounding.rounded_like({"x": x}, {"x": x.astype(BF16)}, rounding.key_of((0,), 1))["x"], np.float64
    )
    assert set(found) <= {low, low + step_up}
    error = abs((found.mean() - low) / step_up - share)
    assert error <= 4 * np.sqrt(share * (1 - share) / len(x)) + 2**-16


def masters_after(steps: int, *, params, rate: float, seed: rounding.Seed = (0,)):
    """A step of -rate each."""
    optimizer = make_optimizer(b1=0.9, b2=0.999, weight_decay=0.0, grad_clip=0.0)
    state = optimizer.init(params)
    grads = jax.tree.map(lambda x: jnp.ones_like(x, jnp.float32), params)

    @jax.jit
    def all_steps(params, state):
        def one(_, now):
            return step(optimizer, grads, now[1], now[0], jnp.float32(rate), seed=seed)

        return jax.lax.fori_loop(0, steps, one, (params, state))

    return all_steps(params, state)[0]


def test_small_steps_are_not_lost():
    """Hand-worked: around 0.02 numbers of bfloat16 are 2^-13 = 1.2e-4 apart. 100 steps of 1e-6 of Adam, whose gradients
    are all the same, are 1e-4: the mean of 20,000 weights gets there, while each of them is rounded to nearest to where
    it was. Each step goes down with probability 1e-6 / 2^-13 = p, so that the standard error of the mean is
    2^-13 sqrt(100 p (1 - p) / 20,000), 7.8e-7."""
    start = np.float32(BF16(0.02))
    assert BF16(start - np.float32(1e-6)) == BF16(start)
    params = {"w": jnp.full(20_000, start, BF16)}
    found = np.asarray(masters_after(100, params=params, rate=1e-6)["w"], np.float64)
    assert found.mean() == pytest.approx(start - 1e-4, abs=4 * 7.8e-7)
    assert 0.3 < (found == start).mean() < 0.6  # e^(-100 p) = 0.44


def test_masters_in_float32_are_what_they_were():
    """Those of optax, up to the order of single operations, and bit by bit those of any seed."""
    params = {"w": jnp.linspace(-1, 1, 100, dtype=jnp.float32)}
    found = [masters_after(3, params=params, rate=1e-3, seed=(seed,))["w"] for seed in (0, 1)]
    optimizer, want = optax.scale_by_adam(b1=0.9, b2=0.999), params["w"]
    state = optimizer.init(want)
    for _ in range(3):
        updates, state = optimizer.update(jnp.ones(100), state)
        want = want - np.float32(1e-3) * updates
    for each in found:
        np.testing.assert_allclose(each, want, rtol=1e-6)
    np.testing.assert_array_equal(*found)


def adam(dtype):
    return make_optimizer(b1=0.9, b2=0.999, weight_decay=0.0, grad_clip=0.0, moments_dtype=dtype, seed=(3,))


def moments(state):
    return optax.tree.get(state, "mu"), optax.tree.get(state, "nu")


def test_the_second_moment_forgets():
    """Hand-worked: after a gradient of 1 comes none for 1,000 steps, and the second moment goes from 0.001 to
    0.001 x 0.999^1000 = 0.000368, in the mean of 20,000. To nearest it would stay: a thousandth less is less than half
    of the distance to the number below, which is 2^-9 to 2^-8 of it."""
    optimizer, params = adam(BF16), {"w": jnp.zeros(20_000)}
    grown = BF16(0.001)
    assert BF16(np.float32(grown) * np.float32(0.999)) == grown

    @jax.jit
    def run(state):
        _, state = optimizer.update({"w": jnp.ones(20_000)}, state, params)
        nothing = {"w": jnp.zeros(20_000)}
        return jax.lax.fori_loop(0, 1000, lambda _, now: optimizer.update(nothing, now, params)[1], state)

    _, nu = moments(run(optimizer.init(params)))
    assert nu["w"].dtype == BF16
    nu = np.asarray(nu["w"], np.float64)
    # Rounding leaves them apart: each step adds up to a quarter of the squared distance, 2^-8 of the number, of which
    # 500 count at the end. That is less than 0.08 of it, so that the mean is within 4 x 0.08 / sqrt(20,000).
    assert nu.std() / nu.mean() < 0.08
    assert nu.mean() == pytest.approx(0.001 * 0.999**1000, rel=0.0023)


def test_moments_in_bfloat16_follow_those_in_float32():
    """Slow twin: noisy gradients; steps differ by a few percent, and in the mean by nothing that could be seen."""
    rng, size = np.random.default_rng(0), 5_000
    signal = rng.normal(size=size)
    params, states = {"w": jnp.zeros(size)}, {}
    optimizers = {dtype: adam(dtype) for dtype in (jnp.float32, BF16)}
    updates = {}
    for dtype, optimizer in optimizers.items():
        states[dtype] = optimizer.init(params)
    for _ in range(60):
        grads = {"w": jnp.asarray(signal + rng.normal(size=size), jnp.float32)}
        for dtype, optimizer in optimizers.items():
            found, states[dtype] = jax.jit(optimizer.update)(grads, states[dtype], params)
            updates[dtype] = np.asarray(found["w"], np.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(moments(states[BF16]))} == {jnp.dtype(BF16)}
    assert updates[BF16].dtype == np.float64
    off = updates[BF16] - updates[jnp.float32]
    assert 0.001 < np.sqrt((off**2).mean()) < 0.03  # of updates of about 0.7
    along = (off * updates[jnp.float32]).sum() / (updates[jnp.float32] ** 2).sum()
    assert abs(along) < 0.003


@pytest.mark.parametrize("masters", [jnp.float32, BF16])
@pytest.mark.parametrize("kept", [jnp.float32, BF16])
def test_moments_have_their_own_dtype(masters, kept):
    optimizer, params = adam(kept), {"a": jnp.ones(3, masters), "b": jnp.ones((), jnp.float32)}
    state = optimizer.init(params)
    grads = jax.tree.map(lambda x: jnp.ones_like(x, jnp.float32), params)
    new, after = step(optimizer, grads, state, params, jnp.float32(0.1), seed=(0,))
    for mu_or_nu in (*moments(state), *moments(after)):
        assert {leaf.dtype for leaf in jax.tree.leaves(mu_or_nu)} == {jnp.dtype(kept)}
    assert (new["a"].dtype, new["b"].dtype) == (masters, jnp.float32)
    assert float(new["b"]) == pytest.approx(0.9) and jax.tree.structure(state) == jax.tree.structure(after)


def test_random_bits_are_those_of_seed_step_and_leaf():
    """Each of them, and each half of the moments' numbers, rounds otherwise; the same again rounds as before."""
    x = jnp.full(1_000, 1 + 2**-8, jnp.float32)  # half of the way
    tree = {"a": x, "b": x}

    def of(seed, number):
        return rounding.rounded_like(tree, jax.tree.map(lambda x: x.astype(BF16), tree), rounding.key_of(seed, number))

    ways = [((0, 0, 0), 1), ((1, 0, 0), 1), ((0, 1, 0), 1), ((0, 0, 1), 1), ((0, 0, 0), 2)]
    found = [np.asarray(leaf, np.float32) for way in ways for leaf in of(*way).values()]
    found += [np.asarray(leaf, np.float32) for leaf in rounding.pair(x, x, rounding.key_of((5,), 1))]
    for one, other in itertools.combinations(found, 2):
        assert 0.4 < (one == other).mean() < 0.6
    again = of((0, 0, 0), 1)
    np.testing.assert_array_equal(np.asarray(again["b"], np.float32), found[1])


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 2, 2), (1, 4, 1)])
def test_devices_agree(shape):
    """Bit by bit what one device gets, without a word between them."""
    tree = {"w": np.random.default_rng(0).normal(size=(4, 8, 12)).astype(np.float32)}
    numbers = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))

    def both(tree, number):
        like = jax.tree.map(lambda x: x.astype(BF16), tree)
        key = rounding.key_of((7, 0, 0), number)
        return rounding.rounded_like(tree, like, key), *rounding.pair(tree, tree, key)

    want = jax.jit(both)(tree, jnp.int32(5))
    mesh = make_mesh(**numbers, devices=jax.devices()[: np.prod(shape)])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp", "tensor"))
    split = jax.jit(both, out_shardings=jax.tree.map(lambda _: where, want))
    there = jax.device_put(tree, where)
    for one, other in zip(jax.tree.leaves(want), jax.tree.leaves(split(there, jnp.int32(5))), strict=True):
        assert len(other.addressable_shards) == np.prod(shape)
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    text = split.lower(there, jnp.int32(5)).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
