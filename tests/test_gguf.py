"""Slow twin and semantics: a GGUF file is the safetensors folder of the same numbers, and what is none is refused."""

import dataclasses

import gguf
import jax
import numpy as np
import pytest
import tiny_gguf
from safetensors.numpy import save_file
from tiny_model import LLAMA, QWEN2, all_logits, on_mesh, random_params

from ttrl_jax.errors import InputError
from ttrl_jax.model.config import read_config
from ttrl_jax.model.gguf import llama3_rope, tensors
from ttrl_jax.model.rope import Rope
from ttrl_jax.model.weights import check, fingerprint, load, to_huggingface

# Quantisation is in blocks of 32 numbers.
SIZES = dict(width=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=64, norm_eps=2.0**-17)
MODELS = [dataclasses.replace(LLAMA, **SIZES), dataclasses.replace(QWEN2, **SIZES)]
FAMILIES = pytest.mark.parametrize("config", MODELS, ids=["llama", "qwen2"])


def made(folder, config, **options):
    """A GGUF file of random weights, and these as its reader should find them."""
    path = folder / "model.gguf"
    return path, tiny_gguf.write(path, config, to_huggingface(random_params(config), config), **options)


@FAMILIES
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_weights_are_bitwise_those_of_the_folder(config, kind, tmp_path):
    path, expected = made(tmp_path, config, kinds=(kind,))
    assert read_config(path) == config
    save_file(expected, tmp_path / "model.safetensors")
    for shape in [(1, 1, 1), (2, 2, 2)]:
        with on_mesh(shape) as mesh:
            one, other = (jax.tree.leaves(load(source, config, mesh)) for source in (path, tmp_path))
        assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, other, strict=True))


@FAMILIES
def test_logits_are_those_of_the_folder(config, tmp_path):
    path, expected = made(tmp_path, config, kinds=("F32", "F16", "Q8_0", "Q4_1"))
    save_file(expected, tmp_path / "model.safetensors")
    ids = np.random.default_rng(1).integers(0, config.vocab, (2, 9))
    with on_mesh((1, 1, 1)) as mesh:
        logits = [np.asarray(all_logits(load(source, config, mesh), config, ids)) for source in (path, tmp_path)]
        # Sharp enough to tell: the order of rows that llama.cpp stores is felt.
        exact = np.asarray(all_logits(random_params(config), config, ids))
    np.testing.assert_array_equal(*logits)
    assert 0.01 < np.abs(logits[0] - exact).max() < 0.3 * np.abs(exact).max()


@FAMILIES
def test_slices_of_a_tensor(config, tmp_path):
    path, expected = made(tmp_path, config, kinds=("Q8_0",))
    found = tensors(path)
    assert found.keys() == expected.keys()
    name = "model.layers.1.self_attn.q_proj.weight"
    assert found[name].get_shape() == list(expected[name].shape) and found[name].get_dtype() == "F32"
    for index in [slice(None), slice(3, 21), (slice(5, 6), slice(None)), (slice(0, 32, 3), slice(7, 30))]:
        got = found[name][index]
        assert got.dtype == np.float32 and got.tobytes() == np.ascontiguousarray(expected[name][index]).tobytes()
    assert found["model.norm.weight"][2:5].tobytes() == expected["model.norm.weight"][2:5].tobytes()


def test_the_shape_in_other_words(tmp_path):
    """Hand-worked: what is left out has llama.cpp's defaults, a tied table is a missing one."""
    llama, qwen2 = MODELS
    shape = tiny_gguf.metadata(qwen2)
    for name in ("attention.key_length", "attention.value_length", "vocab_size", "rope.freq_base"):
        del shape[name]
    tiny = {"tokens": [str(i) for i in range(qwen2.vocab)]}
    path, _ = made(tmp_path, qwen2, shape=shape, tokenizer=tiny)
    assert (
        read_config(path) == dataclasses.replace(qwen2, rope=Rope("default", 10_000.0))
        and not qwen2.tied
        and llama.tied
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"expert_count": 8}, "llama.expert_count=8"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count=4"),
        ({"attention.value_length": 16}, "llama.attention.value_length=16"),
        ({"block_count": None}, "num_hidden_layers is missing"),
        ({"embedding_length": 2.5, "attention.sliding_window": 7}, "llama.attention.sliding_window=7"),
    ],
)
def test_shapes_that_are_not_computed_here(changed, message, tmp_path):
    shape = {name: x for name, x in (tiny_gguf.metadata(MODELS[0]) | changed).items() if x is not None}
    path, _ = made(tmp_path, MODELS[0], shape=shape)
    with pytest.raises(InputError, match=message):
        read_config(path)


def test_other_architectures(tmp_path):
    path, _ = made(tmp_path, MODELS[0], architecture="gemma3")
    with pytest.raises(InputError, match="model_type is 'gemma3', expected one of"):
        read_config(path)


def test_tensors_that_do_not_fit(tmp_path):
    config = MODELS[0]
    weights = to_huggingface(random_params(config), config)
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.norm.weight"] = np.ones(33, np.float32)
    tiny_gguf.write(tmp_path / "model.gguf", config, weights, extra={"blk.0.attn_q.scale": np.ones(1, np.float32)})
    with pytest.raises(InputError) as error:
        check(tmp_path / "model.gguf", config)
    for phrase in (
        "missing model.layers.1.mlp.up_proj.weight",
        "unexpected model.layers.0.self_attn.q_proj.scale",
        "shape [33]",
    ):
        assert phrase in str(error.value)


def test_a_format_that_cannot_be_dequantised(tmp_path):
    made(tmp_path, MODELS[0], extra={"blk.0.attn_sinks": np.ones(8, np.int32)})
    with pytest.raises(InputError, match="blk.0.attn_sinks is I32, which cannot be dequantised"):
        check(tmp_path / "model.gguf", MODELS[0])


def test_files_that_cannot_be_read(tmp_path):
    path, _ = made(tmp_path, MODELS[0], tokenizer=tiny_gguf.TOKENIZER)
    whole = path.read_bytes()
    for broken in (b"", b"GGUF", whole[:100], whole[: len(whole) // 2], whole[:-1000], b"\xff" * 64 + whole[64:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="model.gguf is not a readable GGUF file"):
            read_config(path)
    made(tmp_path, MODELS[0], endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(InputError, match="big-endian"):
        read_config(path)


def test_fingerprint_is_of_the_file(tmp_path):
    path, _ = made(tmp_path, MODELS[0])
    first = fingerprint(path)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert len(first) == 64 and fingerprint(path) != first


def test_llama3_factors_become_its_scaling():
    """Hand-worked from the definition: a wavelength over 8192 positions is scaled whole, one under 2048 not at all."""
    theta, factor, half = 500_000.0, 32.0, 32
    wavelengths = 2 * np.pi * theta ** (np.arange(half) / half)
    factors = []
    for wavelength in wavelengths:
        smooth = (8192 / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wavelength < 2048 else factor if wavelength > 8192 else between)
    factors = np.array(factors, np.float32)
    assert 1 in factors and factor in factors and len(set(factors.tolist())) > 3
    rope = {"rope_type": "default", "rope_theta": theta}
    assert llama3_rope(factors, rope, source="x.gguf") == {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors[-8] *= 1.01
    with pytest.raises(InputError, match="rope_freqs.weight otherwise than Llama 3"):
        llama3_rope(factors, rope, source="x.gguf")
