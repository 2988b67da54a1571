"""Golden, parity and invariance: the logits are those of transformers, by whole rows and token by token alike."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_model import LLAMA, QWEN2, QWEN3, all_logits, on_mesh, placed, random_params, sampling_copy

from ttrl_jax.model import attention, cache, decode_kernel, decoder, weights
from ttrl_jax.model.cache import LayerCache
from ttrl_jax.model.config import read_config
from ttrl_jax.model.layers import rotation_at
from ttrl_jax.model.rope import Rope
from ttrl_jax.model.sharding import RULES, partition

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "ministral"]
WINDOWS = ["mistral", "ministral", "qwen2_windows"]
ROTATIONS = ["linear", "llama3", "yarn"]
TOLERANCE = 1e-4  # of max |a - b| / max |b|, in float32


def relative_error(got, want):
    assert got.shape == want.shape
    return np.abs(np.asarray(got) - np.asarray(want)).max() / np.abs(want).max()


def load(folder):
    config = read_config(folder)
    with on_mesh((8, 1, 1)) as mesh:
        return config, jax.device_get(weights.load(folder, config, mesh))


@partial(jax.jit, static_argnums=1)
def prefill(weights, config, ids, lengths):
    return decoder.prefill(weights, config, ids, lengths)


@partial(jax.jit, static_argnums=1, static_argnames="block")
def decode_all(weights, config, tokens, prefix, suffix, *, block=None):
    """Feed tokens [P, V, S], one at a time, through the ring, past its end. Logits [S, P, V, W]."""

    def step(suffix, x):
        lengths, at = jnp.full(tokens.shape[:2], x[1]), (x[1] + 7) % suffix[0].k.shape[3]
        rotation = rotation_at(prefix.lengths[:, None] + lengths, config)
        logits, suffix = decoder.decode_step(weights, config, x[0], prefix, suffix, lengths, at, rotation, block=block)
        return suffix, logits

    return jax.lax.scan(step, suffix, (jnp.moveaxis(tokens, 2, 0), jnp.arange(tokens.shape[2])))[1]


def cached_errors(config, params, ids, lengths, want, *, dtype=jnp.float32, block=None):
    """Errors of prefill and of decoding, for ids [P, V, T] whose V rows share the first lengths[p] tokens.
    block: places of the cache that are read at once."""
    p, votes, total = ids.shape
    copy = decoder.sampling_weights(params, config, dtype)
    width = lengths.max() + 3
    prompts = np.where(np.arange(width) < lengths[:, None], ids[:, 0, :width], 7)  # what pads them is never seen
    prefix, first = prefill(copy, config, prompts, lengths)
    at = np.arange(p), lengths - 1
    prefill_error = relative_error(first, want[:, 0][at])
    steps = total - lengths.max()
    take = lengths[:, None] + np.arange(steps)  # [P, S], positions of the response tokens
    slots = steps + 5 if block is None else -(-(steps + 5) // block) * block
    suffix = cache.empty_suffix(config, prompts=p, votes=votes, slots=slots, dtype=dtype)
    tokens = np.take_along_axis(ids, take[:, None], 2)
    got = decode_all(copy, config, tokens, prefix, suffix, block=block)
    expected = np.take_along_axis(want, take[:, None, :, None], 2)
    return prefill_error, relative_error(jnp.moveaxis(got, 0, 2), expected)


@pytest.fixture(params=["llama", "qwen2", "qwen3", *WINDOWS, *ROTATIONS])
def golden(request):
    folder = GOLDEN / request.param
    config, params = load(folder)
    return config, params, np.load(folder / "logits.npz")


def test_golden_logits(golden):
    config, params, table = golden
    ids, want, lengths = table["ids"], table["logits"], table["prompt_lengths"]
    assert len(set(lengths)) == 3 and (ids[:, 0] != ids[:, 1]).any(-1).all()
    flat = ids.reshape(-1, ids.shape[2])
    assert relative_error(all_logits(params, config, flat), want.reshape(*flat.shape, -1)) <= TOLERANCE
    prefill_error, decode_error = cached_errors(config, params, ids, lengths, want)
    assert prefill_error <= TOLERANCE
    assert decode_error <= TOLERANCE
    assert cached_errors(config, params, ids, lengths, want, block=4)[1] <= TOLERANCE


def test_golden_logits_by_the_kernel_of_gpus(monkeypatch):
    """With and without a window, in layers of one model; computed by Pallas's interpreter."""
    monkeypatch.setattr(decode_kernel.pl, "pallas_call", partial(decode_kernel.pl.pallas_call, interpret=True))
    config, params = load(GOLDEN / "ministral")
    assert len(set(config.windows)) == 2
    table = np.load(GOLDEN / "ministral" / "logits.npz")
    ids, want, lengths = table["ids"], table["logits"], table["prompt_lengths"]
    config = replace(config, decode_attention="triton")
    assert cached_errors(config, params, ids, lengths, want, block=4)[1] <= TOLERANCE


def test_blocks_of_the_cache_without_tokens_are_not_read():
    """Hand-worked: rings of 4 blocks of 4 places. What is NaN, and read, makes the sum NaN, as 0 x NaN is NaN."""
    rng = np.random.default_rng(0)
    shared = LayerCache(*rng.normal(size=(2, 1, 2, 3, 8)).astype(np.float32))
    q, lengths = rng.normal(size=(1, 2, 4, 8)).astype(np.float32), np.array([[5, 2]], np.int32)
    for at, window, read in ((6, None, {0, 1}), (2, None, {0, 3}), (6, 3, {1}), (13, None, {2, 3})):
        own = rng.normal(size=(2, 1, 2, 2, 16, 8)).astype(np.float32)
        whole = attention.cached(q, shared, np.array([3]), LayerCache(*own), lengths, at, window)
        holed = own.copy()  # for `whole` may be computed later, out of the memory of `own`
        holed[:, :, :, :, [place for place in range(16) if place // 4 not in read]] = np.nan
        got = attention.cached(q, shared, np.array([3]), LayerCache(*holed), lengths, at, window, block=4)
        np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-6)
        assert int(cache.blocks_read(5 if window is None else 2, at, places=16, block=4)) == len(read)
    assert int(cache.blocks_read(15, 6, places=16, block=4)) == 4  # 5 parts of blocks, of which two are of one


def test_golden_models_use_what_the_families_differ_in():
    """Otherwise agreement would say little."""
    llama, params = load(GOLDEN / "llama")
    assert llama.tied and llama.head_dim != llama.width // llama.heads and llama.kv_heads < llama.heads
    assert np.std(params["norm"]) > 0.1
    qwen2, params = load(GOLDEN / "qwen2")
    assert not qwen2.tied and qwen2.rope != llama.rope
    assert all(np.std(params["blocks"]["attention"][name]) > 0.1 for name in ("q_bias", "k_bias", "v_bias"))
    qwen3, params = load(GOLDEN / "qwen3")
    assert qwen3.tied and not qwen3.qkv_bias
    assert all(np.std(params["blocks"]["attention"][name]) > 0.1 for name in ("q_norm", "k_norm"))


@pytest.mark.parametrize("name", [*WINDOWS, *ROTATIONS])
def test_golden_models_show_their_windows_and_rotations(name):
    """Without them the logits are other ones, from the first token outside the window, or right away."""
    config, params = load(GOLDEN / name)
    table = np.load(GOLDEN / name / "logits.npz")
    ids, want = table["ids"][:, 0], table["logits"][:, 0]
    if name in WINDOWS:
        window = next(window for window in config.windows if window)
        assert {"mistral": (8, 8), "ministral": (6, None, 6), "qwen2_windows": (None, 7, 7)}[name] == config.windows
        got = all_logits(params, replace(config, windows=None), ids)
        assert relative_error(got[:, :window], want[:, :window]) <= TOLERANCE
        assert relative_error(got[:, window], want[:, window]) > 0.01
        assert min(table["prompt_lengths"]) < window < max(table["prompt_lengths"]) < ids.shape[1] - window
    else:
        assert config.rope.kind == name and ids.shape[1] > max(config.rope.original, 32)
        assert relative_error(all_logits(params, replace(config, rope=Rope(theta=100.0)), ids), want) > 0.01


def test_a_window_as_long_as_the_row_makes_no_mask():
    params, ids = random_params(LLAMA), np.zeros((1, 12), np.int32)

    def program(*windows):
        config = replace(LLAMA, windows=windows)
        return str(
            jax.make_jaxpr(partial(decoder.forward, dtype=jnp.float32, remat="none"), static_argnums=1)(
                params, config, ids
            )
        )

    plain = program(None, None)
    assert program(12, 12) == program(12, None) == plain != program(11, None)


def test_bfloat16_stays_close_to_float32():
    """Not equal (then it would not be bfloat16), and not further off than its 8 bits of precision explain."""
    config, params = load(GOLDEN / "qwen2")
    table = np.load(GOLDEN / "qwen2" / "logits.npz")
    ids, want, lengths = table["ids"], table["logits"], table["prompt_lengths"]
    flat = ids.reshape(-1, ids.shape[2])

    @jax.jit
    def run(params, ids):
        hidden = decoder.forward(params, config, ids, dtype=jnp.bfloat16, remat="none")
        return hidden, decoder.logits(params, config, hidden)

    hidden, logits = run(params, flat)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert 1e-4 < relative_error(logits, want.reshape(*flat.shape, -1)) < 0.05
    for error in cached_errors(config, params, ids, lengths, want, dtype=jnp.bfloat16):
        assert 1e-4 < error < 0.05


def test_remat_changes_nothing():
    params = random_params(QWEN3)
    ids = np.random.default_rng(0).integers(QWEN3.vocab, size=(2, 12))

    @partial(jax.jit, static_argnums=1)
    def run(params, remat):
        def loss(params):
            hidden = decoder.forward(params, QWEN3, ids, dtype=jnp.float32, remat=remat)
            return jnp.square(decoder.logits(params, QWEN3, hidden)).mean()

        return jax.value_and_grad(loss)(params)

    plain, plain_grads = run(params, "none")
    for remat in ("dots", "full"):
        again, again_grads = run(params, remat)
        np.testing.assert_allclose(again, plain, rtol=1e-6)
        for got, want in zip(jax.tree.leaves(again_grads), jax.tree.leaves(plain_grads), strict=True):
            assert np.abs(want).max() > 0
            assert relative_error(got, want) < 1e-5


def test_remat_by_name_keeps_less_and_computes_more():
    """Read in the program before XLA: what stays of all layers for the backward pass, and the operations."""
    params, ids = random_params(LLAMA), np.zeros((4, 32), np.int32)

    def loss(params, remat):
        return decoder.forward(params, LLAMA, ids, dtype=jnp.float32, remat=remat).sum()

    found = {}
    for remat in ("none", "dots", "full"):
        kept = jax.eval_shape(lambda params, remat=remat: jax.vjp(partial(loss, remat=remat), params)[1], params)
        gradient = jax.jit(jax.grad(partial(loss, remat=remat))).lower(params)
        found[remat] = sum(leaf.size for leaf in jax.tree.leaves(kept)), gradient.cost_analysis()["flops"]
    bytes_of, flops = ({remat: each[i] for remat, each in found.items()} for i in (0, 1))
    assert bytes_of["none"] > 1.3 * bytes_of["dots"] > 1.3**2 * bytes_of["full"]
    assert flops["none"] < flops["dots"] < flops["full"]


def test_padding_on_the_right_is_never_seen():
    params, ids = random_params(LLAMA), np.random.default_rng(0).integers(LLAMA.vocab, size=(2, 12))
    other = ids.copy()
    other[:, 8:] = (other[:, 8:] + 1) % LLAMA.vocab
    a, b = all_logits(params, LLAMA, ids), all_logits(params, LLAMA, other)
    np.testing.assert_array_equal(a[:, :8], b[:, :8])
    assert np.abs(a[:, 8:] - b[:, 8:]).max() > 0.1


def test_a_mesh_changes_nothing():
    """Norms of queries and keys, a window in one layer and a stretched rotation, split over data, fsdp and tensor."""
    params, rng = random_params(QWEN3), np.random.default_rng(0)
    rows = rng.integers(QWEN3.vocab, size=(8, 24)).astype(np.int32)
    ids, lengths = rows.reshape(2, 4, 24).copy(), np.array([4, 9], np.int32)
    for prompt, length in zip(ids, lengths, strict=True):
        prompt[:, :length] = prompt[0, :length]
    tokens = np.take_along_axis(ids, (lengths[:, None] + np.arange(15))[:, None], 2)

    def run(shape):
        with on_mesh(shape) as mesh:
            whole = all_logits(placed(params, QWEN3, mesh), QWEN3, rows)
            copy = sampling_copy(params, QWEN3, mesh)
            prefix, first = prefill(copy, QWEN3, ids[:, 0, :10], lengths)
            suffix = cache.empty_suffix(QWEN3, prompts=2, votes=4, slots=16, dtype=jnp.float32)
            return jax.device_get((whole, first, decode_all(copy, QWEN3, tokens, prefix, suffix)))

    for got, want in zip(run((2, 2, 2)), run((1, 1, 1)), strict=True):
        assert relative_error(got, want) < 1e-5


def test_what_long_rows_keep_is_split_over_tensor(monkeypatch):
    """Semantics: with remat, what each layer keeps for the backward pass has its places split where its heads are."""
    config = replace(LLAMA, layers=8)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), decoder.shapes(config))
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def bytes_between():
        def loss(params, ids):  # of a device
            return decoder.forward(params, config, ids, dtype=jnp.float32, remat="full").sum()

        with on_mesh((1, 2, 4)):
            return jax.jit(jax.grad(loss)).lower(params, ids).compile().memory_analysis().temp_size_in_bytes

    split = bytes_between()
    monkeypatch.delitem(RULES, "places")
    assert bytes_between() - split > 0.7 * 3 / 4 * 8 * 256 * config.width * 4


def test_a_mesh_axis_splits_one_dimension_of_the_logits_that_tokens_are_drawn_from():
    """Hand-worked, for 2 x 2 x 2: prompts over data and tensor, votes over what is left of fsdp and tensor."""
    with on_mesh((2, 2, 2)) as mesh:
        specs = [partition(("draw_prompts", "draws", None), (*shape, 9), mesh) for shape in ((8, 4), (6, 4), (3, 3))]
    assert specs == [P(("data", "tensor"), "fsdp", None), P("data", ("fsdp", "tensor"), None), P(None, None, None)]


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_logical_axes_name_each_dimension_of_each_parameter(config):
    shapes, axes = decoder.shapes(config), decoder.logical_axes(config)
    sizes = {"vocab": config.vocab, "embed": config.width, "ffn": config.ffn}
    sizes |= {"heads": config.heads, "kv_heads": config.kv_heads}
    assert len(jax.tree.leaves(shapes)) == {"llama": 11, "qwen2": 15, "qwen3": 14}[config.family]

    def fits(shape, names):
        return all(name is None or sizes[name] == size for name, size in zip(names, shape.shape, strict=True))

    assert all(jax.tree.leaves(jax.tree.map(fits, shapes, axes)))
    assert axes["embed"] == ("vocab", "embed")
    assert axes["blocks"]["attention"]["q"] == (None, "embed", "heads", None)
    assert axes["blocks"]["attention"]["o"] == (None, "heads", None, "embed")
    assert axes["blocks"]["ffn"]["down"] == (None, "ffn", "embed")


def test_sampling_axes_name_each_dimension_of_the_copy():
    copy = jax.eval_shape(lambda p: decoder.sampling_weights(p, QWEN2, jnp.bfloat16), decoder.shapes(QWEN2))
    axes = decoder.sampling_axes(QWEN2)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: len(names) == leaf.ndim, copy, axes)))
    assert {leaf.dtype for leaf in jax.tree.leaves(copy)} == {jnp.dtype("bfloat16")}
    assert len(copy["blocks"]) == QWEN2.layers and axes["blocks"][1]["attention"]["k"] == ("embed", "kv_heads", None)


def test_init_is_the_families_own():
    params = decoder.init(QWEN2, jax.random.key(0))
    assert np.std(params["embed"]) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(params["blocks"]["ffn_norm"], np.ones((2, 16)))
    np.testing.assert_array_equal(params["blocks"]["attention"]["k_bias"], np.zeros((2, 2, 4)))
    assert np.abs(params["blocks"]["ffn"]["up"][0] - params["blocks"]["ffn"]["up"][1]).max() > 0.01
    again = decoder.init(QWEN2, jax.random.key(1))
    assert np.abs(params["embed"] - again["embed"]).max() > 0.01


def random_fields(family, seed, rng):
    """Fields of a random tiny config of `family`: shapes, windows and a rotation of each kind in turn."""
    kv_heads, groups, head_dim = (int(x) for x in (rng.integers(1, 4), rng.integers(1, 4), 2 * rng.integers(2, 9)))
    layers, window = int(rng.integers(1, 4)), int(rng.integers(2, 12))
    theta = {"rope_theta": float(rng.choice([1e2, 1e4, 1e6]))}
    rotation = [
        {"rope_type": "default"},
        {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 20, "truncate": False},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 4.0},
    ][(seed + FAMILIES.index(family)) % 5]
    return dict(
        vocab_size=int(rng.integers(50, 150)),
        hidden_size=kv_heads * groups * int(rng.integers(8, 17)),
        intermediate_size=int(rng.integers(20, 80)),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * groups,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=32,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])),
        rope_parameters={**rotation, **theta},
        tie_word_embeddings=bool(seed % 2),
        **{
            "llama": {},
            "qwen2": {"use_sliding_window": True, "sliding_window": window, "max_window_layers": int(rng.integers(3))},
            "qwen3": {"use_sliding_window": seed > 0, "sliding_window": window, "max_window_layers": 1},
            "mistral": {"sliding_window": window},
            "ministral": {
                "sliding_window": window,
                "layer_types": [f"{kind}_attention" for kind in rng.choice(["full", "sliding"], size=layers)],
            },
        }[family],
    )


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_live_parity_with_transformers(family, seed, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    hf_config = transformers.AutoConfig.for_model(family, **random_fields(family, seed, rng))
    model = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.25, generator=generator)
    model.save_pretrained(tmp_path)
    config, params = load(tmp_path)
    ids = rng.integers(config.vocab, size=(3, 2, 40)).astype(np.int32)
    lengths = rng.integers(1, 15, size=3).astype(np.int32)
    for prompt, length in zip(ids, lengths, strict=True):
        prompt[:, :length] = prompt[0, :length]
    flat = ids.reshape(6, 40)
    with torch.no_grad():
        want = model(torch.tensor(flat)).logits.numpy()
    assert relative_error(all_logits(params, config, flat), want) <= TOLERANCE
    errors = cached_errors(config, params, ids, lengths, want.reshape(3, 2, 40, -1))
    assert max(errors) <= TOLERANCE
