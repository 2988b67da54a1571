"""Slow twin: the product behind every projection, and its gradients, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttrl_jax.model.layers import product


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
