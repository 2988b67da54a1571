"""Slow twin: the product behind every projection, SwiGLU, and their gradients, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttrl_jax.model.layers import gated, product


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_product_and_its_gradients(dtype, rounding):
    """What comes out in `dtype` is rounded once. The weight's gradient is not rounded to bfloat16."""
    rng = np.random.default_rng(0)
    x, slope = (jnp.asarray(rng.normal(size=(2, 30, n)), dtype) for n in (5, 7))
    weight = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    out, pull = jax.vjp(product, x, weight)
    of_x, of_weight = pull(slope)
    x64, w64, slope64 = (np.asarray(a.astype(dtype), np.float64) for a in (x, weight, slope))
    for got, want, kind, error in (
        (out, x64 @ w64, dtype, rounding),
        (of_x, slope64 @ w64.T, dtype, rounding),
        (of_weight, np.einsum("rtm,rtn->mn", x64, slope64), "float32", 1e-6),
    ):
        assert got.dtype == kind
        assert np.abs(np.asarray(got, np.float64) - want).max() <= error * np.abs(want).max()


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_swiglu_and_its_gradients(dtype, rounding):
    """Rounded once, each. Only its two arguments are kept for the gradients."""
    rng = np.random.default_rng(0)
    gate, up, slope = (jnp.asarray(3 * rng.normal(size=(4, 50)), dtype) for _ in range(3))
    out, pull = jax.vjp(gated, gate, up)
    g, u, s = (np.asarray(x, np.float64) for x in (gate, up, slope))
    share = 1 / (1 + np.exp(-g))
    wants = (g * share * u, s * u * share * (1 + g * (1 - share)), s * g * share)
    for got, want in zip((out, *pull(slope)), wants, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=rounding)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(pull)) == [gate.shape, up.shape]
