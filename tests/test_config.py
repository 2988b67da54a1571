"""Hand-worked, semantics and parity: which config.json files are read, as what, and which fields are refused."""

import json

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.model.config import ModelConfig, parse_config, passed_over, read_config
from ttrl_jax.model.rope import Rope

# As transformers 5 writes it.
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "dtype": "bfloat16",
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "layer_types": ["full_attention"] * 24,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "sliding_window": None,
    "tie_word_embeddings": True,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As transformers 4 wrote it: rope_theta and rope_scaling instead of rope_parameters. No head_dim, untied.
LLAMA = {
    "_name_or_path": "somewhere",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 30,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.0",
    "use_cache": True,
    "vocab_size": 32000,
}
# The fields of SmolLM2-135M-Instruct.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
# The fields of Mistral-7B-v0.1: a window in all layers.
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
# The fields of Qwen3-8B.
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def test_qwen2_as_transformers_5_writes_it():
    want = ModelConfig(
        family="qwen2",
        vocab=151936,
        width=896,
        ffn=4864,
        layers=24,
        heads=14,
        kv_heads=2,
        head_dim=64,  # 896 / 14
        norm_eps=1e-6,
        rope=Rope(theta=1e6),
        tied=True,
        max_positions=32768,
    )
    assert parse_config(QWEN2) == want
    assert want.qkv_bias


def test_llama_as_transformers_4_wrote_it():
    want = ModelConfig(
        family="llama",
        vocab=32000,
        width=4096,
        ffn=11008,
        layers=30,
        heads=32,
        kv_heads=32,
        head_dim=128,
        norm_eps=1e-6,
        rope=Rope(),
        tied=False,
        max_positions=2048,
    )
    assert parse_config(LLAMA) == want
    assert not want.qkv_bias


def test_smollm2():
    config = parse_config(SMOLLM2)
    assert (config.vocab, config.width, config.ffn, config.layers) == (49152, 576, 1536, 30)
    assert (config.heads, config.kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.norm_eps, config.rope, config.tied, config.max_positions) == (1e-5, Rope(theta=1e5), True, 8192)


@pytest.mark.parametrize("fields", [QWEN2, LLAMA, SMOLLM2], ids=["qwen2", "llama", "smollm2"])
def test_both_ways_to_write_the_rotary_base_mean_the_same(fields):
    theta = parse_config(fields).rope.theta
    bare = without(fields, "rope_parameters", "rope_theta", "rope_scaling")
    new = {**bare, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    old = {**bare, "rope_theta": theta, "rope_scaling": None}
    assert parse_config(new) == parse_config(old) == parse_config(fields)
    assert parse_config({**old, "rope_theta": 123.0}).rope.theta == 123.0
    assert parse_config({**new, "rope_parameters": {"rope_theta": 321.0, "rope_type": "default"}}).rope.theta == 321.0
    assert parse_config(bare).rope.theta == 10_000.0  # the default of all families


def test_qwen3_has_norms_of_queries_and_keys_and_no_biases():
    config = parse_config(QWEN3)
    assert (config.family, config.head_dim, config.kv_heads, config.windows) == ("qwen3", 128, 8, None)
    assert config.qk_norm and not config.qkv_bias
    assert not any(parse_config(fields).qk_norm for fields in (LLAMA, QWEN2, MISTRAL))


def test_the_window_of_mistral_is_in_all_layers():
    assert parse_config(MISTRAL).windows == (4096,) * 32
    assert parse_config({**MISTRAL, "sliding_window": None}).windows is None
    assert parse_config({**MISTRAL, "sliding_window": 7}).windows == (7,) * 32
    assert parse_config({**MISTRAL, "model_type": "ministral"}).windows == (4096,) * 32


def test_layer_types_make_a_mistral_a_ministral():
    kinds = [FULL, SLIDING, SLIDING, SLIDING] * 8
    config = parse_config({**MISTRAL, "layer_types": kinds})
    assert (config.family, config.windows) == ("ministral", (None, 4096, 4096, 4096) * 8)
    assert config == parse_config({**MISTRAL, "model_type": "ministral", "layer_types": kinds})
    assert parse_config({**MISTRAL, "layer_types": [FULL] * 32}).windows is None


@pytest.mark.parametrize("fields", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_the_window_of_qwen_is_in_the_upper_layers_if_used(fields):
    layers, bare = fields["num_hidden_layers"], without(fields, "layer_types")
    used = {**bare, "use_sliding_window": True, "sliding_window": 512}
    assert parse_config({**bare, "sliding_window": 512}).windows is None
    assert parse_config({**used, "max_window_layers": 21}).windows == (None,) * 21 + (512,) * (layers - 21)
    assert parse_config({**used, "max_window_layers": 0}).windows == (512,) * layers
    assert parse_config({**used, "max_window_layers": layers}).windows is None
    assert parse_config({**used, "sliding_window": None}).windows is None
    kinds = [SLIDING] + [FULL] * (layers - 1)  # goes before max_window_layers
    assert parse_config({**used, "layer_types": kinds}).windows == (512,) + (None,) * (layers - 1)


def test_absent_fields_get_the_defaults_of_transformers():
    config = parse_config(without(LLAMA, "num_key_value_heads", "tie_word_embeddings"))
    assert config.kv_heads == 32 and config.tied is False
    assert parse_config({**LLAMA, "head_dim": None}).head_dim == 128
    assert parse_config({**LLAMA, "head_dim": 80}).head_dim == 80
    assert parse_config(without(MISTRAL, "sliding_window")).windows == (4096,) * 32
    assert parse_config(without({**MISTRAL, "num_attention_heads": 16}, "num_key_value_heads")).kv_heads == 8
    assert parse_config({**MISTRAL, "num_key_value_heads": None}).kv_heads == 32
    assert parse_config(without({**QWEN3, "hidden_size": 2048}, "head_dim")).head_dim == 128
    assert parse_config(without(QWEN3, "num_key_value_heads")).kv_heads == 32
    used = {**without(QWEN3, "sliding_window", "max_window_layers"), "use_sliding_window": True}
    assert parse_config(used).windows == (None,) * 28 + (4096,) * 8
    assert parse_config(without(QWEN2, "use_sliding_window", "sliding_window")).windows is None


@pytest.mark.parity
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "ministral"])
def test_what_is_absent_means_what_transformers_means_by_it(family, used, tmp_path):
    transformers = pytest.importorskip("transformers")
    fields = {"vocab_size": 50, "hidden_size": 256, "intermediate_size": 64, "num_attention_heads": 32}
    fields |= {"num_hidden_layers": 30, "rms_norm_eps": 1e-6, "max_position_embeddings": 128}
    fields |= {"use_sliding_window": used} if "qwen" in family else {}
    theirs = transformers.AutoConfig.for_model(family, **fields)
    theirs.save_pretrained(tmp_path)  # with what it filled in
    ours = parse_config({**fields, "model_type": family})
    assert ours == read_config(tmp_path)
    assert (ours.windows is not None) == (used if "qwen" in family else family != "llama")
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.tied == theirs.tie_word_embeddings and ours.rope.theta == theirs.rope_parameters["rope_theta"]


UNSUPPORTED = [
    (LLAMA, "rope_scaling", {"type": "dynamic", "factor": 2.0}),
    (LLAMA, "rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
    (QWEN2, "rope_scaling", {"type": "mrope", "mrope_section": [16, 24, 24]}),
    (LLAMA, "rope_parameters", {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}),
    (QWEN2, "use_sliding_window", None),
    (QWEN2, "sliding_window", 0),
    (QWEN2, "max_window_layers", 2.5),
    (QWEN2, "layer_types", [FULL] * 12 + [SLIDING] * 12),  # without use_sliding_window
    (QWEN2, "layer_types", [FULL] * 23),
    (QWEN2, "layer_types", [FULL] * 23 + ["chunked_attention"]),
    (LLAMA, "layer_types", [FULL] * 29 + [SLIDING]),
    (LLAMA, "sliding_window", 4096),
    (MISTRAL, "use_sliding_window", False),  # transformers would slide all the same
    (MISTRAL, "attention_bias", True),
    (QWEN3, "attention_bias", True),
    (LLAMA, "head_dim", 5),
    (LLAMA, "tie_word_embeddings", "yes"),
    (LLAMA, "original_max_position_embeddings", 2048),
    (QWEN2, "hidden_act", "gelu"),
    (LLAMA, "attention_bias", True),
    (LLAMA, "mlp_bias", True),
    (LLAMA, "attention_dropout", 0.1),
    (LLAMA, "rope_interleaved", True),
    (QWEN2, "quantization_config", {"quant_method": "gptq", "bits": 4}),
    (QWEN2, "logit_softcapping", 30.0),
    (LLAMA, "partial_rotary_factor", 0.5),
    (LLAMA, "num_local_experts", 8),
    (LLAMA, "use_qk_norm", True),
    (LLAMA, "rope_parameters", {"rope_theta": 1e4, "rope_type": "default", "factor": 2.0}),
    (LLAMA, "model_type", "mamba"),
]


@pytest.mark.parametrize(("fields", "name", "value"), UNSUPPORTED, ids=[f"{n}={v}"[:40] for _, n, v in UNSUPPORTED])
def test_what_would_change_the_numbers_is_refused_by_name(fields, name, value):
    parse_config(fields)
    with pytest.raises(InputError, match=name):
        parse_config({**fields, name: value})


IDLE = [
    ("partial_rotary_factor", 1.0), ("pretraining_tp", 2), ("attention_bias", None), ("use_sliding_window", False),
    ("max_length", 20), ("id2label", {"0": "LABEL_0"}), ("tokenizer_class", "LlamaTokenizer"), ("temperature", 0.6),
    ("name_or_path", "x/y"), ("tie_encoder_decoder", False), ("rope_scaling", {"rope_type": "default", "factor": 1.0}),
    ("rope_scaling", {"type": "default", "partial_rotary_factor": 1.0}), ("a_field_of_tomorrow", 7),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IDLE, ids=[f"{name}={value}"[:40] for name, value in IDLE])
def test_what_changes_nothing_passes(name, value):
    assert parse_config({**LLAMA, name: value}) == parse_config(LLAMA)


def test_one_rotation_written_for_both_releases():
    yarn = {"factor": 4.0, "original_max_position_embeddings": 2048}
    one = without(LLAMA, "rope_theta") | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **yarn}}
    both = {**one, "rope_theta": 5e5, "rope_scaling": {"type": "yarn", "finetuned": True, **yarn}}
    assert parse_config(both) == parse_config(one)
    with pytest.raises(InputError, match="rope_scaling and rope_parameters are both set, and differ"):
        parse_config(both | {"rope_scaling": {"type": "yarn", **yarn, "factor": 2.0}})


def test_fields_that_nobody_has_heard_of_are_told(tmp_path):
    said = {**LLAMA, "a_field_of_tomorrow": 7, "another": None, "pad_token_id": 3, "_note": "x", "max_length": 20}
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps(said), encoding="utf-8")  # with a byte order mark
    assert passed_over(tmp_path) == ["a_field_of_tomorrow", "another"]
    assert read_config(tmp_path) == parse_config(LLAMA)


@pytest.mark.parametrize(("name", "words"), [("adapter_config.json", "is an adapter"), ("params.json", "own format")])
def test_a_folder_that_is_no_model_is_told_by_its_kind(tmp_path, name, words):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=words):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    ],
)
def test_a_missing_field_is_named(name):
    with pytest.raises(InputError, match=name):
        parse_config(without(LLAMA, name))


def test_all_faults_come_in_one_error():
    fields = without({**LLAMA, "mlp_bias": True, "logit_scale": 2, "rope_scaling": {"type": "dynamic"}}, "vocab_size")
    with pytest.raises(InputError) as error:
        parse_config(fields)
    for name in ("mlp_bias", "logit_scale", "rope_scaling", "vocab_size"):
        assert name in str(error.value)
    assert "hidden_size" not in str(error.value)


def test_heads_that_do_not_divide_among_kv_heads():
    with pytest.raises(InputError, match="32 attention heads .* 5 kv heads"):
        parse_config({**LLAMA, "num_key_value_heads": 5})


def test_reading_a_folder(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        read_config(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN2))
    assert read_config(tmp_path) == parse_config(QWEN2)
    file.write_text(json.dumps(QWEN2)[:-5])
    with pytest.raises(InputError, match="config.json is not valid JSON"):
        read_config(tmp_path)
    file.write_text("[1, 2]")
    with pytest.raises(InputError, match="list"):
        read_config(tmp_path)
    file.write_text(json.dumps({**QWEN2, "use_mrope": True}))
    with pytest.raises(InputError, match=f"{file}.*use_mrope"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rms_norm_eps": "x"},
        {"num_hidden_layers": "3"},
        {"rope_parameters": [1]},
        {"rope_scaling": "linear"},
        {"rope_theta": "big", "rope_parameters": None},
    ],
)
def test_a_wrong_type_is_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        parse_config(LLAMA | wrong)
