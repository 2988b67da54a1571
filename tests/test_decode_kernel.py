"""Slow twin, invariance and semantics: the kernel that reads the cache on NVIDIA GPUs, computed by Pallas's
interpreter. tests/test_gpu.py compiles it for GPUs."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from tiny_model import LLAMA, on_mesh

from configs import aime
from ttrl_jax import programs
from ttrl_jax.errors import InputError
from ttrl_jax.model import attention, decode_kernel
from ttrl_jax.model.cache import LayerCache

PLACES, BLOCK = 64, 32
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    make = functools.partial(decode_kernel.pl.pallas_call, interpret=True)
    monkeypatch.setattr(decode_kernel.pl, "pallas_call", make)


def arrays(shape: tuple[int, int, int, int, int], dtype: jnp.dtype, places: int = PLACES) -> tuple:
    """Queries of prompts, votes, heads, kv heads and a head size; prompts of 5 places, of which 3 and more are real;
    rings."""
    prompts, votes, heads, kv_heads, size = shape
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(prompts, votes, heads, size)]
    shapes += 2 * [(prompts, kv_heads, 5, size)] + 2 * [(prompts, votes, kv_heads, places, size)]
    q, *caches = (jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))
    return q, LayerCache(*caches[:2]), jnp.arange(prompts) % 3 + 3, LayerCache(*caches[2:])


@functools.partial(jax.jit, static_argnames=("window", "block", "kernel"))
def run(*given, **way) -> jax.Array:
    return attention.cached(*given, **way)


def outputs(given: tuple, lengths: np.ndarray, at: int, window: int | None, **way) -> np.ndarray:
    return np.float32(run(*given, jnp.asarray(lengths, jnp.int32), jnp.int32(at), window=window, **way))


# Groups of one query, of some, and of more than a product of 16 rows has; each head size; one prompt and several.
SHAPES = [(2, 3, 4, 4, 16), (1, 4, 6, 1, 64), (2, 2, 12, 2, 128), (1, 2, 20, 1, 32), (1, 2, 4, 2, 256)]

QUICK = [
    ("float32", SHAPES[0], 1),
    ("float32", SHAPES[3], 40),
    ("bfloat16", SHAPES[1], None),
    ("bfloat16", SHAPES[2], 7),
]
QUICK += [("float32", shape, window) for shape in SHAPES[1:3] for window in (None, 7)]
ALL = [(dtype, shape, window) for dtype in TOLERANCES for shape in SHAPES for window in (None, 1, 7, 40)]


@pytest.mark.parametrize(
    ("dtype", "shape", "window"),
    [pytest.param(*case, id=str(case), marks=[pytest.mark.slow] * (case not in QUICK)) for case in ALL],
)
def test_the_kernel_agrees_with_whole_rings(dtype, shape, window):
    """Votes with no token but the new one, with a full ring, and between; round the end of the ring and not."""
    given, (prompts, votes) = arrays(shape, jnp.dtype(dtype)), shape[:2]
    lengths = np.resize([0, PLACES - 1, 31, 17, 45, 1], (prompts, votes))
    for at in (0, 20, 31, 32, PLACES - 1):
        want = outputs(given, lengths, at, window)
        got = outputs(given, lengths, at, window, block=BLOCK, kernel="triton")
        assert np.abs(got - want).max() <= TOLERANCES[dtype] * np.abs(want).max(), at


def test_a_vote_is_read_as_far_as_it_goes():
    """Hand-worked: rings of 4 blocks of 16 places. What is NaN, and read, makes the sum NaN, as 0 x NaN is NaN. The
    new token at 20 and 25 before it end at place 59, round the ring: blocks 1, 0 and 3."""
    q, shared, prompt_lengths, own = arrays((1, 3, 4, 2, 16), jnp.float32)
    lengths = np.array([[4, 5, 25]])
    for window, read in ((None, [{1}, {0, 1}, {0, 1, 3}]), (6, [{1}, {0, 1}, {0, 1}]), (5, [{1}, {1}, {1}])):
        want = outputs((q, shared, prompt_lengths, own), lengths, 20, window)
        missing = np.array([[place // 16 not in blocks for place in range(PLACES)] for blocks in read])
        blind = jax.tree.map(lambda x, m=missing: jnp.where(m[None, :, None, :, None], jnp.nan, x), own)
        got = outputs((q, shared, prompt_lengths, blind), lengths, 20, window, block=16, kernel="triton")
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        missing[2, 20] = True  # the new token, which each of them sees
        blind = jax.tree.map(lambda x, m=missing: jnp.where(m[None, :, None, :, None], jnp.nan, x), own)
        got = outputs((q, shared, prompt_lengths, blind), lengths, 20, window, block=16, kernel="triton")
        assert np.isnan(got[0, 2]).all() and not np.isnan(got[0, :2]).any()


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (6, 3)], ids=str)
def test_a_mesh_changes_nothing(heads):
    """Prompts, votes and kv heads split over 2 x 2 x 2 devices; kv heads that `tensor` does not divide are not."""
    given, lengths = arrays((2, 4, *heads, 16), jnp.float32), np.arange(8).reshape(2, 4) * 9
    want = outputs(given, lengths, 40, None)
    with on_mesh((2, 2, 2)):
        got = outputs(given, lengths, 40, None, block=BLOCK, kernel="triton")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_tiles_are_a_part_of_the_block_and_fill_16_kib():
    """Hand-worked: 64 x 128 x 2 bytes, 32 x 128 x 4, 16 x 256 x 4; never less than a product has rows."""
    sizes = {(128, "bfloat16"): 64, (128, "float32"): 32, (64, "bfloat16"): 128, (256, "float32"): 16}
    for (head_dim, dtype), want in sizes.items():
        assert attention.tile_places(head_dim, jnp.dtype(dtype), block=256) == want
    assert attention.tile_places(16, jnp.dtype("float32"), block=64) == 64


def test_rings_that_are_too_large_to_count_are_refused():
    ring = jax.ShapeDtypeStruct((1, 512, 8, 4096, 128), jnp.bfloat16)  # 2^31 numbers
    q = jax.ShapeDtypeStruct((1, 512, 8, 4, 128), jnp.bfloat16)
    one, lengths = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((1, 512), jnp.int32)
    with pytest.raises(InputError, match="2147483648 numbers.*lower rollout.rows, or set model.decode_attention"):
        jax.eval_shape(functools.partial(decode_kernel.attend, window=None, tile=64), q, ring, ring, lengths, one)


def test_the_kernel_is_one_call_of_triton(monkeypatch: pytest.MonkeyPatch):
    """Lowered for a GPU that need not be there: all that it computes with exists in Triton."""
    monkeypatch.undo()  # the interpreter is not what is lowered
    there = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=there)
    shapes = [(2, 4, 2, 6, 128), *2 * [(2, 4, 2, 512, 128)]]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    numbers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, 4), ())]
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(functools.partial(decode_kernel.attend, window=9, tile=64)).trace(*arrays, *numbers)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


def gpu(capability: str) -> SimpleNamespace:
    return SimpleNamespace(platform="gpu", device_kind="a GPU", compute_capability=capability)


WIDE = replace(LLAMA, head_dim=128)


@pytest.mark.parametrize(
    ("device", "config", "dtype", "words"),
    [
        (gpu("8.0"), WIDE, jnp.bfloat16, None),
        (gpu("12.0"), replace(WIDE, head_dim=64, windows=(None, 7)), jnp.float32, None),
        (gpu("7.5"), WIDE, jnp.bfloat16, "triton needs compute capability 8.0, and a GPU has 7.5"),
        (gpu("gfx942"), WIDE, jnp.bfloat16, "triton runs on NVIDIA GPUs"),
        (jax.devices("cpu")[0], WIDE, jnp.bfloat16, "triton runs on NVIDIA GPUs, and this is cpu"),
        (SimpleNamespace(platform="tpu", device_kind="TPU v5 lite"), WIDE, jnp.bfloat16, "and this is TPU v5 lite"),
        (gpu("9.0"), replace(LLAMA, head_dim=96), jnp.bfloat16, r"a head size of \(16, .*\), and it is 96"),
        (gpu("9.0"), WIDE, jnp.float16, "model.dtype is float16"),
    ],
)
def test_the_choice_is_made_by_the_devices_and_the_model(device, config, dtype, words):
    choose = functools.partial(attention.choose_decode, device=device, config=config, dtype=dtype)
    assert choose("xla", whole="auto") == ("xla", "by model.decode_attention='xla'")
    assert choose("auto", whole="xla") == ("xla", "by model.attention='xla'")
    if words is None:
        assert choose("auto", whole="cudnn") == ("triton", "by model.decode_attention='auto'")
        assert choose("triton", whole="xla") == ("triton", "by model.decode_attention='triton'")
    else:
        kernel, why = choose("auto", whole="auto")
        assert kernel == "xla" and why.startswith("because ")
        with pytest.raises(InputError, match=f"model.decode_attention='triton' cannot be used: .*{words}.*; set it to"):
            choose("triton", whole="auto")


def test_a_version_of_jax_that_knows_some_gpus_alone_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    kernel, why = attention.choose_decode("auto", whole="auto", device=gpu("9.0"), config=WIDE, dtype=jnp.bfloat16)
    assert kernel == "xla" and why.startswith("because jax 0.11.1 lowers to triton for some GPUs alone")


@pytest.mark.parametrize(
    ("decode", "whole", "kernel", "block", "decode_programs", "words"),
    [
        ("auto", "auto", "triton", 256, 4, "; over the cache triton, by model.decode_attention='auto'"),
        ("xla", "auto", "xla", None, 6, "; over the cache xla, by model.decode_attention='xla'"),
        ("auto", "xla", "xla", None, 6, "; over the cache xla, by model.attention='xla'"),
    ],
)
def test_the_keys_decide_what_reads_the_cache_and_its_shapes(decode, whole, kernel, block, decode_programs, words):
    """On one GPU, with the settings of AIME; a run prints the words."""
    mesh = SimpleNamespace(devices=np.array([gpu("9.0")]), shape={"data": 1, "fsdp": 1})
    config = aime.get_config()
    config.rollout.max_tokens = 3072
    config.model.decode_attention, config.model.attention = decode, whole
    model, why = programs.with_kernel(config, WIDE, mesh)
    assert model.decode_attention == kernel and why.endswith(words)
    shapes = programs.shapes_of(config, model, mesh, longest_prompt=384)
    layouts = shapes.layouts(prompts=8, votes=64)
    assert shapes.most_votes == 64
    config.canary.path, config.canary.samples = "canaries.jsonl", 128
    assert programs.shapes_of(config, model, mesh, longest_prompt=384).most_votes == 128
    assert shapes.block == block and sum(len(shapes.sizes(layout)) for layout in layouts) == decode_programs
