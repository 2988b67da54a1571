"""Semantics and invariance: tensors come in whatever the mesh, and what does not fit is refused in one error."""

import dataclasses
import io
import json
import pickle
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import LLAMA, MESHES, QWEN2, on_mesh, random_params

from ttrl_jax.errors import InputError
from ttrl_jax.model import decoder, weights
from ttrl_jax.model.sharding import shardings
from ttrl_jax.model.weights import check, fingerprint, load, read_model, sha256, to_huggingface

CONFIGS = pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["llama", "qwen2"])


def write(folder, tensors, *, dtype=np.float32):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: x.astype(dtype) for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def write_sharded(folder, tensors, shards=3):
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: x for name, x in tensors.items() if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def load_one(folder, config):
    with on_mesh((1, 1, 1)) as mesh:
        return jax.device_get(load(folder, config, mesh))


def assert_bitwise(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == np.float32 and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@CONFIGS
def test_round_trip_is_bitwise_on_every_mesh(config, tmp_path):
    params = random_params(config)
    tensors = to_huggingface(params, config)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in tensors.values())
    write(tmp_path, tensors)
    for shape in [(1, 1, 1), *MESHES]:
        with on_mesh(shape) as mesh:
            loaded = load(tmp_path, config, mesh)
            assert_bitwise(loaded, params)
            again = to_huggingface(loaded, config)
            assert sha256(loaded) == sha256(params)
        assert again.keys() == tensors.keys()
        assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)
        if shape == (2, 2, 2):  # fsdp takes D, tensor takes heads
            assert loaded["blocks"]["attention"]["q"].addressable_shards[0].data.shape == (2, 8, 2, config.head_dim)
            split = config.vocab // 2 if config is LLAMA else config.vocab  # an odd vocabulary is not split
            assert loaded["embed"].addressable_shards[0].data.shape == (split, 8)


class Counted:
    """A tensor that counts the numbers taken out of it."""

    def __init__(self, values: np.ndarray):
        self.values, self.taken = values, 0

    def __getitem__(self, index):
        self.taken += self.values[index].size
        return self.values[index]


@CONFIGS
@pytest.mark.parametrize("chunk", [5, 1 << 22])  # numbers converted at once: rows one by one, and all
def test_parts_are_read_by_themselves_and_once(config, chunk, monkeypatch):
    """Slow twin: the parts are those of the whole parameter, and reading them all takes each number once."""
    monkeypatch.setattr(weights, "_CHUNK", chunk)
    params, tensors = random_params(config), to_huggingface(random_params(config), config)
    with on_mesh((2, 2, 2)) as mesh:
        placed = jax.tree.leaves(shardings(decoder.logical_axes(config), decoder.shapes(config), mesh))
    entries = jax.tree.leaves(weights.table(config), is_leaf=lambda node: isinstance(node, weights.Entry))
    for entry, sharding, ours in zip(entries, placed, jax.tree.leaves(params), strict=True):
        stacked = "{l}" in entry.name
        ours = ours[1] if stacked else ours
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*sharding.spec[stacked:]))
        tensor = Counted(tensors[entry.name.format(l=1)])
        indices = {str(index): index for index in spec.devices_indices_map(ours.shape).values()}
        for index in indices.values():
            part = entry.read(tensor, index)
            assert part.flags.c_contiguous and part.tobytes() == np.ascontiguousarray(ours[index]).tobytes()
        assert tensor.taken == ours.size == tensor.values.size


def test_parts_of_an_inner_axis_are_refused():
    entry = weights.table(LLAMA)["blocks"]["attention"]["q"]
    with pytest.raises(ValueError, match="scattered"):
        entry.read(np.zeros((24, 16), np.float32), (slice(None), slice(None), slice(0, 3)))


def test_names_and_layouts_are_those_of_huggingface():
    """y = x W^T there, x W here: head n of the queries is rows n * H ... of q_proj."""
    params = random_params(QWEN2)
    tensors = to_huggingface(params, QWEN2)
    block, h = params["blocks"], QWEN2.head_dim
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    assert q.shape == (16, 16) and tensors["model.layers.1.self_attn.v_proj.weight"].shape == (8, 16)
    np.testing.assert_array_equal(q[2 * h : 3 * h], block["attention"]["q"][1, :, 2].T)
    o = tensors["model.layers.0.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(o[:, 3 * h : 4 * h], block["attention"]["o"][0, 3].T)
    bias = tensors["model.layers.1.self_attn.k_proj.bias"]
    np.testing.assert_array_equal(bias[h : 2 * h], block["attention"]["k_bias"][1, 1])
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.down_proj.weight"], block["ffn"]["down"][0].T)
    np.testing.assert_array_equal(tensors["model.layers.0.post_attention_layernorm.weight"], block["ffn_norm"][0])
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"])
    assert len(tensors) == 3 + 2 * 12


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files_become_float32_masters(dtype, tmp_path):
    params = random_params(QWEN2)
    write(tmp_path, to_huggingface(params, QWEN2), dtype=dtype)
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    assert sha256(rounded) != sha256(params)
    with on_mesh((2, 2, 2)) as mesh:
        assert_bitwise(load(tmp_path, QWEN2, mesh), rounded)


def test_shards_with_an_index(tmp_path):
    params = random_params(LLAMA)
    weight_map = write_sharded(tmp_path, to_huggingface(params, LLAMA))
    assert len(set(weight_map.values())) == 3
    assert_bitwise(load_one(tmp_path, LLAMA), params)
    lost = "model-00002-of-00003.safetensors"
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=lost):
        check(tmp_path, LLAMA)


def test_a_copy_of_the_tied_table_and_old_buffers_are_ignored(tmp_path):
    params = random_params(LLAMA)
    tensors = to_huggingface(params, LLAMA)
    tensors["lm_head.weight"] = np.zeros((64, 16), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    assert_bitwise(load_one(write(tmp_path, tensors), LLAMA), params)


def test_everything_that_does_not_fit_comes_in_one_error(tmp_path):
    tensors = to_huggingface(random_params(QWEN2), QWEN2)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
    tensors["model.layers.0.mlp.gate_proj.weight"] = tensors["model.layers.0.mlp.gate_proj.weight"].T.copy()
    tensors["model.norm.weight"] = np.zeros(17, np.float32)
    write(tmp_path, tensors)
    with pytest.raises(InputError) as error:
        load_one(tmp_path, QWEN2)
    for phrase in (
        "missing model.layers.1.mlp.up_proj.weight",
        "missing lm_head.weight",
        "unexpected model.layers.2.mlp.up_proj.weight",
        "model.layers.0.mlp.gate_proj.weight has shape [16, 24], expected [24, 16]",
        "model.norm.weight has shape [17], expected [16]",
    ):
        assert phrase in str(error.value)
    assert str(error.value).count("model.layers.0") == 1


def test_integer_tensors_are_refused(tmp_path):
    tensors = to_huggingface(random_params(LLAMA), LLAMA)
    write(tmp_path, tensors, dtype=np.int32)
    with pytest.raises(InputError, match="model.embed_tokens.weight is I32"):
        check(tmp_path, LLAMA)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="model.safetensors"):
        check(tmp_path, LLAMA)
    folder = write(tmp_path / "model", to_huggingface(random_params(LLAMA), LLAMA))
    check(folder, LLAMA)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-100], whole[:20], b"", b"\xff" * 64 + whole[64:]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="model.safetensors is not a readable safetensors file"):
            check(folder, LLAMA)
    index = tmp_path / "model" / "model.safetensors.index.json"
    for broken in ("{", "{}", "[]", '{"weight_map": []}'):
        index.write_text(broken)
        with pytest.raises(InputError, match="index"):
            check(folder, LLAMA)


def test_fingerprint_tells_models_apart(tmp_path):
    tensors = to_huggingface(random_params(LLAMA), LLAMA)
    folder = write(tmp_path / "a", tensors)
    first = fingerprint(folder)
    assert len(first) == 64 and first == fingerprint(write(tmp_path / "copy", tensors))
    seen = {first}
    whole = bytearray((folder / "model.safetensors").read_bytes())
    for at in (8, len(whole) // 2, len(whole) - 1):  # a small file is hashed whole
        changed = whole.copy()
        changed[at] ^= 1
        (folder / "model.safetensors").write_bytes(changed)
        seen.add(fingerprint(folder))
    (folder / "model.safetensors").write_bytes(whole)
    assert fingerprint(folder) == first
    (folder / "config.json").write_text("{} ")
    seen.add(fingerprint(folder))
    assert len(seen) == 5


def test_fingerprint_reads_both_ends_of_large_files(tmp_path):
    folder = tmp_path
    (folder / "config.json").write_text("{}")
    whole = bytearray(5 << 20)
    seen = set()
    for at in (None, 0, (1 << 20) - 1, (4 << 20), len(whole) - 1):
        changed = whole.copy()
        if at is not None:
            changed[at] ^= 1
        (folder / "model.safetensors").write_bytes(changed)
        seen.add(fingerprint(folder))
    (folder / "model.safetensors").write_bytes(whole + b"\0")  # the size counts too
    assert len(seen | {fingerprint(folder)}) == 6


def test_sha256_changes_with_one_bit():
    params = random_params(QWEN2)
    first = sha256(params)
    assert first == sha256(jax.tree.map(jnp.asarray, params)) and len(first) == 64
    for name in ("embed", "norm"):
        bits = params[name].copy()
        bits.view(np.uint32).reshape(-1)[-1] ^= 1
        assert sha256({**params, name: bits}) != first


def test_float32_masters_whatever_the_mesh_does_not_divide(tmp_path):
    """Two kv heads over a tensor axis of 8: they are replicated, the numbers stay."""
    params = random_params(LLAMA)
    write(tmp_path, to_huggingface(params, LLAMA))
    with on_mesh((1, 1, 8)) as mesh:
        loaded = load(tmp_path, LLAMA, mesh)
        assert loaded["blocks"]["attention"]["k"].addressable_shards[0].data.shape == (2, 16, 2, 6)
        assert loaded["blocks"]["ffn"]["up"].addressable_shards[0].data.shape == (2, 16, 3)
        assert_bitwise(loaded, params)
    assert set(decoder.shapes(LLAMA)) == set(params)


# ---- a head of its own beside a tied config


def test_a_tied_config_with_a_head_of_its_own_is_untied(tmp_path):
    """As transformers 5 does; one that is the table again stays tied."""
    tensors = to_huggingface(random_params(LLAMA), LLAMA)
    folder = write(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    (folder / "config.json").write_text(json.dumps(FIELDS))
    assert read_model(folder) == LLAMA
    other = tensors["model.embed_tokens.weight"].copy()
    other[-1, -1] += 1
    write(tmp_path, tensors | {"lm_head.weight": other})
    (folder / "config.json").write_text(json.dumps(FIELDS))
    untied = dataclasses.replace(LLAMA, tied=False)
    assert read_model(folder) == untied
    np.testing.assert_array_equal(load_one(folder, untied)["head"], other)


FIELDS = {
    "model_type": "llama", "vocab_size": LLAMA.vocab, "hidden_size": LLAMA.width, "intermediate_size": LLAMA.ffn,
    "num_hidden_layers": LLAMA.layers, "num_attention_heads": LLAMA.heads, "num_key_value_heads": LLAMA.kv_heads,
    "head_dim": LLAMA.head_dim, "rms_norm_eps": LLAMA.norm_eps, "rope_theta": LLAMA.rope.theta,
    "tie_word_embeddings": LLAMA.tied, "max_position_embeddings": LLAMA.max_positions,
}  # fmt: skip


# ---- PyTorch's files


class _Call:
    """What pickle writes as a call of a named function."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class _Pickler(pickle._Pickler):
    """Writes a state dict as torch.save does, without torch: names instead of functions, storages by reference."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value):
        return value[1] if isinstance(value, tuple) and value[:1] == ("a storage",) else None

    def save_global_by_name(self, value):
        self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        if value.arguments:
            self.save(value.arguments)
            self.write(b"R")

    dispatch[_Call] = save_global_by_name


def torch_file(path, tensors, *, dtype=np.float32, storage="FloatStorage", extra=None):
    """A file as torch.save writes it: all tensors in one storage, each with its offset and strides."""
    flat = np.concatenate([x.astype(dtype).ravel() for x in tensors.values()])
    pid = ("storage", _Call("torch", storage), "0", "cpu", len(flat))
    state, offset = OrderedDict(), 0
    for name, x in tensors.items():
        strides = tuple(stride // x.itemsize for stride in x.strides)
        arguments = (("a storage", pid), offset, x.shape, strides, False, OrderedDict())
        state[name] = _Call("torch._utils", "_rebuild_tensor_v2", *arguments)
        offset += x.size
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(extra or state)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", buffer.getvalue())
        file.writestr("archive/data/0", flat.tobytes())


def test_weights_in_a_file_of_pytorch(tmp_path):
    params = random_params(QWEN2)
    tensors = to_huggingface(params, QWEN2)
    torch_file(tmp_path / "pytorch_model.bin", tensors)
    assert_bitwise(load_one(tmp_path, QWEN2), params)
    torch_file(tmp_path / "pytorch_model.bin", tensors, dtype=ml_dtypes.bfloat16, storage="BFloat16Storage")
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_bitwise(load_one(tmp_path, QWEN2), half)
    write(tmp_path, tensors)  # safetensors go first
    assert_bitwise(load_one(tmp_path, QWEN2), params)


def test_several_files_of_pytorch(tmp_path):
    tensors = to_huggingface(random_params(LLAMA), LLAMA)
    halves = list(tensors.items())[::2], list(tensors.items())[1::2]
    for i, half in enumerate(halves):
        torch_file(tmp_path / f"pytorch_model-{i}.bin", dict(half))
    listed = {"weight_map": {name: f"pytorch_model-{i}.bin" for i, half in enumerate(halves) for name, _ in half}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(listed))
    assert check(tmp_path, LLAMA).keys() == tensors.keys()
    (tmp_path / "config.json").write_text("{}")
    assert len(fingerprint(tmp_path)) == 64


@pytest.mark.parametrize("call", [("os", "system", "true"), ("builtins", "eval", "1"), ("numpy", "dtype", "f4")])
def test_nothing_in_a_file_of_pytorch_is_run(tmp_path, call):
    torch_file(tmp_path / "pytorch_model.bin", {"x": np.ones(3, np.float32)}, extra={"x": _Call(*call)})
    with pytest.raises(InputError, match=f"asks for {call[0]}.{call[1]}, which no weights need"):
        check(tmp_path, LLAMA)


def test_a_file_of_pytorch_that_lies_about_its_sizes(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    pid = ("storage", _Call("torch", "FloatStorage"), "0", "cpu", 3)
    for shape, strides, offset in [((4,), (1,), 0), ((2, 2), (2, 1), 0), ((2,), (1,), 2), ((2,), (-1,), 1)]:
        lie = _Call("torch._utils", "_rebuild_tensor_v2", ("a storage", pid), offset, shape, strides, False, {})
        torch_file(path, {"x": np.ones(3, np.float32)}, extra={"x": lie})
        with pytest.raises(InputError, match="larger than its storage"):
            check(tmp_path, LLAMA)
    for broken in (b"", b"PK\x03\x04", pickle.dumps({"x": 1})):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="is not a file of weights that can be read"):
            check(tmp_path, LLAMA)
