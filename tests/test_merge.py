"""Semantics: what a recipe asks for is what the merged folder holds, and what cannot be merged is one sentence."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_gguf
import yaml
from absl import flags
from safetensors.numpy import load_file, save_file
from test_lora import random_adapters, with_adapters
from tiny_model import LLAMA, all_logits, on_mesh, random_params

from ttrl_jax import cli, commands, merge
from ttrl_jax.data.prompts import load_tokenizer
from ttrl_jax.model import peft, weights
from ttrl_jax.model.config import read_config

MODEL = Path(__file__).parent.parent / "configs" / "quickstart_model"
LAYERS = 5
BY_FILTER = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]


def make_model(where: Path, *, seed: int, **fields: object) -> Path:
    shutil.copytree(MODEL, where)
    made = json.loads((where / "config.json").read_text()) | {"num_hidden_layers": LAYERS, "hidden_size": 16} | fields
    (where / "config.json").write_text(json.dumps(made))
    config = read_config(where)
    save_file(weights.to_huggingface(random_params(config, seed=seed), config), where / "model.safetensors")
    return where


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    where = tmp_path_factory.mktemp("merge")
    return make_model(where / "base", seed=1), make_model(where / "other", seed=2)


def recipe(
    pair: tuple[Path, Path], t: object = 0.5, *, slices: object = ((0, LAYERS),), dtype: str = "float32"
) -> dict:
    names = [str(path) for path in pair]
    return {
        "slices": [{"sources": [{"model": name, "layer_range": list(span)} for name in names]} for span in slices],
        "merge_method": "slerp",
        "base_model": names[0],
        "parameters": {"t": t},
        "dtype": dtype,
    }


@pytest.fixture
def call(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Write a recipe (or text) and call the command -> (exit code, stdout, stderr). The folder is tmp_path / "out"."""

    def command(given: object, *arguments: str) -> tuple[int, str, str]:
        flags.FLAGS.unparse_flags()
        flags.FLAGS["out"].value = ""
        path = tmp_path / "merge.yml"
        path.write_text(given if isinstance(given, str) else yaml.safe_dump(given))
        monkeypatch.setattr(sys, "argv", ["merge", str(path), *(arguments or [f"--out={tmp_path / 'out'}"])])
        code = cli.run(merge.main, commands.MERGE)
        return code, *capfd.readouterr()

    commands.MERGE.define()
    yield command
    flags.FLAGS.unparse_flags()
    flags.FLAGS["out"].value = ""


def read(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def assert_bitwise(got: dict[str, np.ndarray], want: dict[str, np.ndarray]):
    assert got.keys() == want.keys()
    for name, x in got.items():
        assert x.dtype == want[name].dtype and x.tobytes() == want[name].tobytes(), name


def test_adapters_are_added_to_their_model(pair, call, tmp_path: Path):
    """MODEL+ADAPTER is the model with the adapters merged into its weights, in float32."""
    config = with_adapters(read_config(pair[1]), targets=("q_proj", "down_proj"))
    adapters = random_adapters(config)
    (tmp_path / "lora").mkdir()
    peft.write(tmp_path / "lora", adapters, config, base="none")
    wanted = recipe((pair[0], f"{pair[1]}+{tmp_path / 'lora'}"), t=1)
    code, out, err = call(wanted)
    assert code == 0, err
    more, plain = peft.deltas(adapters, config), read(pair[1])
    assert_bitwise(read(tmp_path / "out"), {name: x + more[name]() if name in more else x for name, x in plain.items()})
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "lora" / peft.WEIGHTS).unlink()
    shutil.rmtree(tmp_path / "out")
    code, _, err = call(wanted)
    assert code == 2 and "has no adapter_model.safetensors" in err


def test_slerp_of_two_numbers_by_hand():
    """Hand-worked: a third of a right angle is 30 degrees, and lengths are interpolated along with the directions."""
    x, y = np.float32([2, 0]), np.float32([0, 4])
    got = merge.slerp(1 / 3, x, y)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [2 * np.cos(np.pi / 6), 4 * 0.5], rtol=1e-6)
    # 60 degrees apart, half way: both weigh sin(30) / sin(60) = 1 / sqrt(3).
    z = np.float32([0.5, np.sqrt(0.75)])
    np.testing.assert_allclose(merge.slerp(0.5, np.float32([1, 0]), z), [1.5 / 3**0.5, 0.5], rtol=1e-6)
    # A matrix is one vector.
    np.testing.assert_allclose(merge.slerp(0.5, x.reshape(2, 1), y.reshape(2, 1)), [[2**0.5], [8**0.5]], rtol=1e-6)
    # Both ends keep the sign of a zero, which a sum would lose.
    w = np.float32([-0.0, 1])
    assert merge.slerp(0, w, x).tobytes() == w.tobytes() == merge.slerp(1, x, w).tobytes()
    # No direction, no norm to divide by: at a right angle to everything.
    np.testing.assert_allclose(merge.slerp(1 / 3, np.float32([0, 0]), y), [0, 2], rtol=1e-6)


def test_colinear_vectors_are_on_a_line():
    """Hand-worked: parallel, opposite, and on both sides of the cosine 0.9995 (1.812 degrees)."""
    x = np.float32([1, 0])
    np.testing.assert_allclose(merge.slerp(0.25, x, 3 * x), [1.5, 0], rtol=1e-6)
    np.testing.assert_allclose(merge.slerp(0.25, x, -x), [0.5, 0], rtol=1e-6)

    def length(degrees: float) -> float:
        angle = np.radians(degrees)
        return float(np.linalg.norm(merge.slerp(0.5, x, np.float32([np.cos(angle), np.sin(angle)])).astype(np.float64)))

    assert length(1.83) == pytest.approx(1, abs=3e-7)  # on the arc
    assert length(1.79) == pytest.approx(np.cos(np.radians(1.79 / 2)), abs=3e-7)  # on the chord, 1.2e-4 below


@pytest.mark.parametrize("t", [0, 1])
def test_the_ends_are_the_parents_bitwise(pair, call, tmp_path, t):
    assert call(recipe(pair, t))[0] == 0
    assert_bitwise(read(tmp_path / "out"), read(pair[t]))


def test_the_base_is_at_0_wherever_it_stands(pair, call, tmp_path):
    assert call(recipe(pair[::-1]) | recipe(pair, [0, 0]) | {"slices": recipe(pair[::-1])["slices"]})[0] == 0
    assert_bitwise(read(tmp_path / "out"), read(pair[0]))


def expected(pair: tuple[Path, Path], t: dict[str, float]) -> dict[str, np.ndarray]:
    """Slow twin, in float64: t by the beginning of a tensor's name."""
    first, second = read(pair[0]), read(pair[1])
    found = {}
    for name, x in first.items():
        part = next(value for start, value in t.items() if name.startswith(start))
        x, y = np.float64(x), np.float64(second[name])
        cosine = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
        angle = np.arccos(cosine)
        on_line = (1 - part) * x + part * y
        on_arc = (np.sin((1 - part) * angle) * x + np.sin(part * angle) * y) / np.sin(angle)
        found[name] = on_line if abs(cosine) > 0.9995 else on_arc
    return found


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]):
    assert got.keys() == want.keys()
    for name, x in got.items():
        np.testing.assert_allclose(x, want[name], rtol=0, atol=2e-6, err_msg=name)


def test_t_by_filter_over_the_layers(pair, call, tmp_path):
    assert call(recipe(pair, BY_FILTER))[0] == 0
    t = {f"model.layers.{i}.self_attn": x for i, x in enumerate([0, 0.5, 0.3, 0.7, 1])}
    t |= {f"model.layers.{i}.mlp": x for i, x in enumerate([1, 0.5, 0.7, 0.3, 0])}
    assert_close(read(tmp_path / "out"), expected(pair, t | {"": 0.5}))


def test_a_list_is_stretched_over_the_layers_and_begins_with_those_of_none(pair, call, tmp_path):
    assert call(recipe(pair, [0.2, 0.6]))[0] == 0
    t = {f"model.layers.{i}": x for i, x in enumerate([0.2, 0.3, 0.4, 0.5, 0.6])}
    assert_close(read(tmp_path / "out"), expected(pair, t | {"": 0.2}))


def test_each_slice_begins_anew_and_a_layer_alone_is_at_the_end(pair, call, tmp_path):
    assert call(recipe(pair, [0.2, 0.6], slices=[(0, 3), (3, 4), (4, 5)]))[0] == 0
    t = {f"model.layers.{i}": x for i, x in enumerate([0.2, 0.4, 0.6, 0.6, 0.6])}
    assert_close(read(tmp_path / "out"), expected(pair, t | {"": 0.2}))


def test_the_first_filter_that_fits_counts(pair, call, tmp_path):
    t = [{"filter": "layers.1.", "value": 0.9}, {"filter": "*", "value": 0.1}, {"filter": "mlp", "value": 0.7}]
    assert call(recipe(pair, t))[0] == 0
    assert_close(read(tmp_path / "out"), expected(pair, {"model.layers.1.": 0.9, "": 0.1}))


@pytest.mark.parametrize("dtype, kind", [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_models_are_rounded_before_and_after(pair, call, tmp_path, dtype, kind):
    assert call(recipe(pair, 0.3, dtype=dtype))[0] == 0
    first, second = [{name: x.astype(kind).astype(np.float32) for name, x in read(path).items()} for path in pair]
    assert_bitwise(read(tmp_path / "out"), {n: merge.slerp(0.3, x, second[n]).astype(kind) for n, x in first.items()})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_the_folder_is_complete(pair, call, tmp_path):
    code, stdout, _ = call(recipe(pair, BY_FILTER))
    out = tmp_path / "out"
    assert code == 0 and str(out) in stdout and sorted(x.name for x in tmp_path.iterdir()) == ["merge.yml", "out"]
    assert read_config(out) == read_config(pair[0])
    before, after = (load_tokenizer(str(path)) for path in (pair[0], out))
    assert before("Tom has 37 apples")["input_ids"] == after("Tom has 37 apples")["input_ids"]
    card = (out / "README.md").read_text()
    assert "# base and other, merged" in card and str(pair[0]) not in card
    again = yaml.safe_load(card.split("```")[1].removeprefix("yaml"))
    assert again["base_model"] == "base" and again["parameters"]["t"][0] == BY_FILTER[0] and again["dtype"] == "float32"


def test_what_differs_but_for_the_shape_is_the_bases_and_said(pair, call, tmp_path):
    longer = make_model(tmp_path / "longer", seed=3, rope_theta=500.0, max_position_embeddings=128)
    code, _, stderr = call(recipe((longer, pair[1])))
    assert code == 0 and f"{pair[1]} has another rope, max_positions; that of {longer} is kept" in stderr
    assert read_config(tmp_path / "out") == read_config(longer)


def test_gguf_models_merge_into_a_folder(call, tmp_path):
    config = dataclasses.replace(LLAMA, width=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=19)
    parents = []
    for seed in (1, 2):
        parents.append(tmp_path / f"{seed}.gguf")
        tensors = weights.to_huggingface(random_params(config, seed=seed), config)
        tiny_gguf.write(parents[-1], config, tensors, tokenizer=tiny_gguf.TOKENIZER | {"chat_template": "{{ 1 }}"})
    assert call(recipe(tuple(parents), 1, slices=[(0, config.layers)]))[0] == 0
    assert_bitwise(read(tmp_path / "out"), tensors)


@pytest.mark.parametrize("with_base", [True, False])
def test_whole_models_are_one_slice_of_all_layers(pair, call, tmp_path, with_base):
    given = recipe(pair, BY_FILTER)
    assert call(given)[0] == 0
    names = [str(path) for path in (pair if with_base else pair[1:])]
    whole = changed(given, "slices", None) | {"models": [{"model": name} for name in names]}
    assert call(whole, f"--out={tmp_path / 'whole'}")[0] == 0
    assert_bitwise(read(tmp_path / "whole"), read(tmp_path / "out"))
    assert "layer_range" in (tmp_path / "whole" / "README.md").read_text()


def test_models_that_are_no_pair(pair, call, tmp_path):
    names = [{"model": str(path)} for path in pair]
    for models, message in [
        ("all", "should be a list of models, got 'all'"),
        (names[:1], "and one other model"),
        ([*names, {"model": "a/third"}], "and one other model"),
        ([names[0], {"model": "a/b", "parameters": {"weight": 1}}], "models[1]: parameters is not computed"),
    ]:
        assert_refused(call(changed(recipe(pair), "slices", None) | {"models": models}), message, tmp_path)


@pytest.mark.parametrize("said", [{"tokenizer_source": "base"}, {"tokenizer": {"source": "base"}}])
def test_the_tokenizer_of_the_base_is_taken_if_the_other_has_the_same_tokens(pair, call, tmp_path, said):
    assert call(recipe(pair))[0] == 0
    assert call(recipe(pair) | said, f"--out={tmp_path / 'said'}")[0] == 0
    assert_bitwise(read(tmp_path / "said"), read(tmp_path / "out"))
    assert "tokenizer_source: base" in (tmp_path / "said" / "README.md").read_text()
    swapped = shutil.copytree(pair[1], tmp_path / "swapped")
    made = json.loads((swapped / "tokenizer.json").read_text())
    ids = made["model"]["vocab"]
    ids["1"], ids["2"] = ids["2"], ids["1"]
    (swapped / "tokenizer.json").write_text(json.dumps(made))
    (tmp_path / "out").rename(tmp_path / "before")
    assert_refused(call(recipe((pair[0], swapped)) | said), "differ, such as in '1'", tmp_path)
    assert call(recipe((pair[0], swapped)))[0] == 0  # by the numbers of rows, as there without a word


def changed(given: dict, path: str, value: object) -> dict:
    """A copy with one value changed, or a key taken out (value None)."""
    made = copy.deepcopy(given)
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    where = made
    for key in way:
        where = where[key]
    if value is None:
        del where[last]
    else:
        where[last] = value
    return made


WRONG = [
    ("slices", None, "should have slices or models, and not both"),
    ("models", [{"model": "a/base"}, {"model": "a/other"}], "should have slices or models, and not both"),
    ("base_model", None, "base_model is missing"),
    ("dtype", None, "dtype is missing"),
    ("parameters/t", None, "parameters: t is missing"),
    ("dtype", "int8", "dtype is 'int8', expected one of float32, bfloat16, float16"),
    ("dtype", ["float32"], "dtype is ['float32']"),
    ("merge_method", "ties", "merge_method is 'ties', only slerp is computed"),
    ("tokenizer_source", "union", "the tokenizer's source is 'union'; only base is computed, make it that"),
    ("tokenizer", {"source": "a/third"}, "the tokenizer's source is 'a/third'; only base is computed"),
    ("tokenizer", {"source": "base", "tokens": {}}, "tokenizer: tokens is not computed"),
    ("chat_template", "auto", "chat_template is not computed"),
    ("out_dtype", "float16", "out_dtype is not computed"),
    ("slices/0/sources/1/layer_range", None, "layer_range is missing, add it"),
    ("slices/0/sources/1/model", "a/b@main", "a/b@main names a revision (@), which is not read"),
    ("parameters/density", 0.5, "parameters: density is not computed"),
    ("slices/0/parameters", {"t": 1}, "slices[0]: parameters is not computed"),
    ("slices/0/sources/1/parameters", {"weight": 1}, "slices[0].sources[1]: parameters is not computed"),
    ("slices", "all", "should be a list of slices"),
    ("slices/0/sources/1", None, "should be a list of two models"),
    ("base_model", "a/third", "should have base_model, 'a/third', and one other model"),
    ("base_model", 7, "should have base_model, 7"),
    ("slices/0/sources/1/layer_range", [0, 4], "layer_range [0, 5] and [0, 4]; only equal ones are computed"),
    ("slices/0/sources/1/layer_range", [0, 5.0], "layer_range should be [first layer, last layer + 1], got [0, 5.0]"),
    ("slices/0/sources/1/layer_range", [3, 3], "layer_range should be"),
    ("parameters/t", 1.5, "value should be a number from 0 to 1, or a list of such, got 1.5"),
    ("parameters/t", [], "got []"),
    ("parameters/t", True, "got True"),
    ("parameters/t", float("nan"), "got nan"),
    ("parameters/t", [{"value": 0.5, "filter": 3}], "filter should be part of a tensor's name, got 3"),
    ("parameters/t", [{"value": 0.5, "kind": "mlp"}], "parameters.t: kind is not computed"),
    ("parameters/t", [{"value": 0.5}, 0.5], "should be a mapping with value, got 0.5"),
    ("parameters/t", [{"filter": "mlp", "value": 0.5}], "has no value for model.layers.0.self_attn.k_proj.weight"),
]


@pytest.mark.parametrize("path, value, message", WRONG, ids=lambda x: str(x)[:30])
def test_recipes_that_are_not_computed(pair, call, tmp_path, path, value, message):
    assert_refused(call(changed(recipe(pair), path, value)), message, tmp_path)


def assert_refused(result: tuple[int, str, str], message: str, where: Path):
    code, _, stderr = result
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr, stderr
    assert not (where / "out").exists() and not [path for path in where.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_merged(pair, call, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    wide = make_model(tmp_path / "wide", seed=3, vocab_size=73, intermediate_size=32)
    broken = shutil.copytree(pair[1], tmp_path / "broken")
    tensors = read(broken)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors")
    three = recipe(pair, slices=[(0, 3), (3, 5)])
    for source, name in zip(three["slices"][1]["sources"], (str(pair[0]), str(wide)), strict=True):
        source["model"] = name
    for given, message in [
        ("slices: [", "is not valid YAML"),
        ("- 1", "should be a mapping with merge_method, base_model"),
        (recipe(pair, slices=[(0, 4)]), "the slices end with layer_range [0, 4] and the models have 5 layers"),
        (recipe(pair, slices=[(0, 7)]), "the models have 5 layers"),
        (recipe(pair, slices=[(1, 5)]), "layer_range [1, 5] should begin with 0"),
        (recipe(pair, slices=[(0, 3), (2, 5)]), "slices[1]: layer_range [2, 5] should begin with 3"),
        (three, "has 2 models besides base_model"),
        (recipe((pair[0], pair[0])), "and one other model"),
        (recipe((pair[0], tmp_path / "gone")), "set model to a folder"),
        (recipe((pair[0], wide)), "are not of one shape, they have vocab 72 and 73, ffn 384 and 32"),
        (recipe((pair[0], broken)), "missing model.layers.2.mlp.up_proj.weight"),
    ]:
        assert_refused(call(given), message, tmp_path)
    assert_refused(call(recipe(pair), f"--out={full}"), "is not an empty folder", tmp_path)
    assert_refused(call(recipe(pair), "--out="), "--out is missing", tmp_path)
    assert_refused(call(recipe(pair), "again"), "unexpected argument 'again'", tmp_path)
    assert (full / "file").read_text() == "mine"


@pytest.mark.parametrize("value, dtype", [(np.nan, "float32"), (70_000.0, "float16")])
def test_what_is_not_finite_is_named_and_nothing_is_written(pair, call, tmp_path, value, dtype):
    broken = shutil.copytree(pair[1], tmp_path / "broken")
    tensors = read(broken)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, broken / "model.safetensors")
    message = f"model.norm.weight of {broken} has numbers that are not finite in {dtype}"
    assert_refused(call(recipe((pair[0], broken), dtype=dtype)), message, tmp_path)


@pytest.mark.slow
def test_no_device_is_needed(pair, tmp_path):
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(recipe(pair)))
    command = [sys.executable, "-m", "ttrl_jax.merge", str(path), f"--out={tmp_path / 'out'}"]
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(command, cwd=MODEL.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(read(tmp_path / "out")) == set(read(pair[0]))


@pytest.mark.parity
def test_transformers_computes_the_same_logits(pair, call, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert call(recipe(pair, BY_FILTER))[0] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32
    merged = read(tmp_path / "out")
    held = {name: x.numpy() for name, x in theirs.state_dict().items() if name in merged}
    assert_bitwise(held, merged)
    ids = np.random.default_rng(0).integers(0, 72, (3, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    config = read_config(tmp_path / "out")
    with on_mesh((1, 1, 1)) as mesh:
        got = np.asarray(all_logits(weights.load(tmp_path / "out", config, mesh), config, jnp.asarray(ids)))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
