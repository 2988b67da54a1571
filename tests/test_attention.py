"""Slow twin, invariance and semantics: the kernels for whole rows are the plain softmax, in one piece and over a mesh,
and the one that is chosen runs on the devices."""

import contextlib
import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from tiny_model import LLAMA, QWEN3, on_mesh

from configs import quickstart_sums
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import identity, read_inputs
from ttrl_jax.model import attention
from ttrl_jax.records import padded_length

CPU = jax.devices("cpu")[0]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's own kernel, computed by Pallas's interpreter: it needs no TPU, and is slow."""
    make = functools.partial(attention.splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(attention.splash, "make_splash_mha", make)


def inputs(rows, length, heads, kv_heads, size, dtype):
    """Queries, keys, values, and what the outputs are weighted with to get one number."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (heads, kv_heads, kv_heads, heads)
    pairs = zip(keys, counts, strict=True)
    return [jax.random.normal(key, (rows, length, count, size)).astype(dtype) for key, count in pairs]


def outputs_and_gradients(kernel, q, k, v, weights, window):
    def weighted(q, k, v):
        out = attention.causal(q, k, v, window, kernel=kernel, rows="rows")
        return (out.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


@pytest.mark.parametrize("window", [None, 5])
def test_no_scores_are_kept_for_the_backward_pass(window):
    """Queries, keys and values are: 64 tokens have 64 x 64 scores a head, and 64 x 8 numbers."""
    *qkv, _ = inputs(1, 64, 2, 1, 8, jnp.float32)
    _, pull = jax.vjp(lambda q, k, v: attention.causal(q, k, v, window, kernel="xla", rows="rows"), *qkv)
    assert max(leaf.size for leaf in jax.tree.leaves(pull)) == qkv[0].size


def plain(q, k, v, window):
    """One softmax over the tokens that a token sees, row by row and head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    length, share = q.shape[1], q.shape[2] // k.shape[2]
    back = np.arange(length)[:, None] - np.arange(length)
    seen = (back >= 0) & (back < (window or length))
    out = np.zeros_like(q)
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        scores = q[row, :, head] @ k[row, :, head // share].T / np.sqrt(q.shape[3])
        weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        out[row, :, head] = weights / weights.sum(-1, keepdims=True) @ v[row, :, head // share]
    return out


@pytest.mark.parametrize("window", [None, 1, 7])
def test_xla_is_the_plain_softmax(window):
    q, k, v, _ = inputs(2, 19, 6, 2, 8, jnp.float32)
    got = attention.causal(q, k, v, window, kernel="xla", rows="rows")
    np.testing.assert_allclose(got, plain(q, k, v, window), rtol=1e-5, atol=1e-5)


# Rows that fill blocks of 128 and rows that do not, shared kv heads, windows; then split over a mesh: the kv heads
# too, or repeated since they are fewer than the devices, or not split at all.
CASES = [
    ((2, 100, 4, 2, 8), None, None),
    ((1, 256, 2, 1, 64), None, None),
    ((1, 300, 4, 4, 16), 50, None),
    ((4, 100, 4, 2, 8), None, (2, 2, 2)),
    ((4, 100, 8, 2, 8), 30, (1, 2, 4)),
    ((3, 40, 3, 3, 6), None, (1, 4, 2)),
]


@pytest.mark.parametrize(
    ("dtype", "tolerance", "shape", "window", "mesh"),
    [
        pytest.param(
            *kind, *case, id=f"{name}-{case}", marks=[pytest.mark.slow] * (name == "bf16" and case != CASES[0])
        )
        for name, kind in (("f32", (jnp.float32, 1e-5)), ("bf16", (jnp.bfloat16, 2e-2)))
        for case in CASES
    ],
)
def test_splash_agrees_with_xla(interpreted, shape, window, mesh, dtype, tolerance):
    arrays = inputs(*shape, dtype)
    with on_mesh(mesh) if mesh else contextlib.nullcontext():
        want = outputs_and_gradients("xla", *arrays, window)
        got = outputs_and_gradients("splash", *arrays, window)
    for one, other in zip(jax.device_get(got), jax.device_get(want), strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        one, other = np.float32(one), np.float32(other)
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def test_long_rows_need_no_padding_for_splash():
    lengths = {padded_length(n) for n in range(1, 40_000)}
    assert {n for n in lengths if n % 128} == {16, 24, 32, 48, 64, 96, 192}


def gpu(capability: str) -> SimpleNamespace:
    """What `choose` reads of a GPU, whether it is there or only compiled for (tests/test_gpu.py does that)."""
    return SimpleNamespace(platform="gpu", device_kind="a GPU", compute_capability=capability)


TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
WIDE = replace(LLAMA, head_dim=128)
WINDOWED = replace(WIDE, windows=(7, 7))
MIXED = replace(WIDE, windows=(None, 7))


@pytest.mark.parametrize(
    ("device", "config", "dtype", "kernel", "words"),
    [
        (CPU, WIDE, jnp.bfloat16, "xla", "by model.attention='auto', on cpu"),
        (TPU, WIDE, jnp.bfloat16, "splash", "on TPU v5 lite"),
        (TPU, LLAMA, jnp.float32, "splash", "on TPU v5 lite"),
        (TPU, WINDOWED, jnp.bfloat16, "splash", "on TPU v5 lite"),
        (TPU, MIXED, jnp.bfloat16, "xla", "because splash needs one window for all layers"),
        (TPU, replace(MIXED, windows=(None, 64)), jnp.bfloat16, "splash", "on TPU v5 lite"),  # hides nothing
        (gpu("8.0"), WIDE, jnp.bfloat16, "cudnn", "on a GPU"),
        (gpu("10.3"), WINDOWED, jnp.bfloat16, "cudnn", "on a GPU"),
        (gpu("7.5"), WIDE, jnp.bfloat16, "xla", "because cudnn needs compute capability 8.0, and a GPU has 7.5"),
        (gpu("8.0"), WIDE, jnp.float32, "xla", "because cudnn computes in bfloat16, and model.dtype is float32"),
        (gpu("9.0"), LLAMA, jnp.bfloat16, "xla", "a multiple of 8 up to 256, and it is 6"),
        (gpu("8.6"), replace(LLAMA, head_dim=256), jnp.bfloat16, "xla", "up to 128, and it is 256"),
        (gpu("9.0"), replace(LLAMA, head_dim=256), jnp.bfloat16, "cudnn", "on a GPU"),
        (gpu("9.0"), MIXED, jnp.bfloat16, "xla", "because cudnn needs one window for all layers"),
        (gpu("gfx942"), WIDE, jnp.bfloat16, "xla", "because cudnn runs on NVIDIA GPUs"),
    ],
)
def test_the_choice_is_made_by_the_devices_and_the_model(device, config, dtype, kernel, words):
    chosen, why = attention.choose("auto", device=device, config=config, dtype=dtype, length=64)
    assert chosen == kernel and words in why
    assert attention.choose("xla", device=device, config=config, dtype=dtype, length=64)[0] == "xla"
    for forced in {"cudnn", "splash"} - {kernel}:
        with pytest.raises(InputError, match=f"model.attention='{forced}' cannot be used: .*; set it to 'auto' or"):
            attention.choose(forced, device=device, config=config, dtype=dtype, length=64)


@pytest.mark.parametrize("wanted", ["auto", "xla"])
def test_a_run_on_the_cpu_takes_xla_and_stays_the_same_model(wanted):
    config = quickstart_sums.get_config()
    config.model.attention = wanted
    found = read_inputs(FrozenConfigDict(config))
    assert found.model.attention == "xla"
    assert found.attention == f"by model.attention='{wanted}', on cpu"
    shape = identity(found).model
    assert "attention" not in shape and shape["head_dim"] == found.model.head_dim


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("splash", "splash runs on TPUs, and this is cpu"), ("cudnn", "cudnn runs on NVIDIA GPUs, and this is cpu")],
)
def test_a_run_on_the_cpu_refuses_other_kernels(wanted, words):
    config = quickstart_sums.get_config()
    config.model.attention = wanted
    with pytest.raises(InputError, match=words):
        read_inputs(FrozenConfigDict(config))


def test_windows_that_hide_nothing_are_none():
    """Hand-worked."""
    assert QWEN3.windows == (None, 5)
    assert attention.windows(QWEN3, 5) == (None, None) and attention.windows(QWEN3, 6) == (None, 5)
    assert attention.windows(LLAMA, 100) == (None, None)
