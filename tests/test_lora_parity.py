"""Parity: adapters that PEFT wrote and adapters that PEFT reads compute and learn the same here as on torch."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_lora import base_of, random_adapters, with_adapters
from tiny_model import LLAMA, QWEN2, QWEN3, random_params

from ttrl_jax.model import decoder, lora, peft, weights
from ttrl_jax.model.config import PROJECTIONS

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = pytest.mark.parity
IDS = np.random.default_rng(1).integers(60, size=(3, 12))
ALL = list(PROJECTIONS)


def reference(name: str):
    """(our config, our parameters, the same model of transformers)."""
    import transformers

    config = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": dataclasses.replace(QWEN3, windows=None)}[name]
    rope = {"rope_type": "default", "rope_theta": config.rope.theta}
    if name == "qwen3":  # the stretched rotation is told apart elsewhere (test_decoder.py)
        config = dataclasses.replace(config, rope=LLAMA.rope)
        rope["rope_theta"] = config.rope.theta
    kind = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[name]
    fields = dict(
        vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.ffn,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim, rms_norm_eps=config.norm_eps, rope_parameters=rope,
        tie_word_embeddings=config.tied, max_position_embeddings=config.max_positions,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**fields)).eval()
    params = random_params(config)
    state = {key: torch.from_numpy(x) for key, x in weights.to_huggingface(params, config).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return config, params, model


def ours(config, params, adapters):
    base = base_of(params, config)
    hidden = jax.jit(partial(decoder.forward, config=config, dtype=jnp.float32, remat="none"))(
        {**base, **adapters}, ids=IDS
    )
    return np.asarray(decoder.logits(base, config, hidden))


def theirs(model):
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


def close(got, want, bound):
    assert np.linalg.norm(got - want) <= bound * np.linalg.norm(want)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_that_peft_wrote(name, stabilised, tmp_path: Path):
    config, params, model = reference(name)
    from peft import LoraConfig, get_peft_model

    plain = theirs(model)
    close(ours(dataclasses.replace(config, lora=None), params, {}), plain, 1e-4)
    wanted = LoraConfig(r=3, lora_alpha=7, target_modules=ALL, use_rslora=stabilised, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, wanted)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path)
    found, adapters = peft.read(tmp_path, config)
    want = theirs(adapted)
    assert np.linalg.norm(want - plain) > 0.1 * np.linalg.norm(plain)
    close(ours(dataclasses.replace(config, lora=found), params, adapters), want, 1e-4)


def ours_read_by_peft(name: str, folder: Path, **way: bool):
    """(our config, our parameters, our random adapters, transformers' model with them, which PEFT read)."""
    from peft import PeftModel

    config, params, model = reference(name)
    config = with_adapters(config, rank=4, alpha=6.0)
    adapters = random_adapters(config)
    peft.write(folder, adapters, config, base="none")
    return config, params, adapters, PeftModel.from_pretrained(model, folder, **way)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_an_adapter_that_peft_reads(name, tmp_path: Path):
    config, params, adapters, read = ours_read_by_peft(name, tmp_path)
    assert sorted(read.peft_config["default"].target_modules) == sorted(ALL)
    close(ours(config, params, adapters), theirs(read), 1e-4)
    merged = read.merge_and_unload().state_dict()
    for key, delta in peft.deltas(adapters, config).items():
        plain = weights.to_huggingface(params, config)[key]
        np.testing.assert_allclose(plain + delta(), merged[key].numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gradients_are_those_of_peft(name, tmp_path: Path):
    """Of a sum of log-probs with random factors."""
    config, params, adapters, read = ours_read_by_peft(name, tmp_path, is_trainable=True)
    factor = np.float32(np.random.default_rng(2).normal(size=(*IDS.shape, config.vocab)))
    (torch.log_softmax(read(torch.from_numpy(IDS)).logits, -1) * torch.from_numpy(factor)).sum().backward()
    want = {key: x.grad.numpy() for key, x in read.named_parameters() if x.requires_grad}

    base = base_of(params, config)

    def loss(own):
        hidden = decoder.forward({**base, **own}, config, IDS, dtype=jnp.float32, remat="full")
        return (jax.nn.log_softmax(decoder.logits(base, config, hidden)) * factor).sum()

    got = dict(peft.named(jax.jit(jax.grad(loss))(adapters), config))
    assert len(got) == len(want) == 14 * config.layers
    for key, gradient in got.items():
        close(gradient, want[key.replace(".weight", ".default.weight")], 1e-4)


def test_new_adapters_are_spread_as_those_of_peft():
    """A golden comparison: both are uniform within 1 / sqrt(d_in); 30,000 numbers of each have like quantiles."""
    from peft import LoraConfig, get_peft_model

    _, _, model = reference("qwen2")
    wide = torch.nn.Sequential(torch.nn.Linear(32, 8, bias=False))
    torch.manual_seed(0)
    made = get_peft_model(wide, LoraConfig(r=1000, target_modules=["0"]))
    theirs = next(x for key, x in made.named_parameters() if "lora_A" in key).detach().numpy()
    config = dataclasses.replace(with_adapters(LLAMA, targets=("up_proj",), rank=1000), width=32, layers=1)
    own = lora.init(config, seed=0)["lora"]["ffn"]["up"]["a"]
    assert theirs.size == own.size == 32_000
    quantiles = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    np.testing.assert_allclose(np.quantile(own, quantiles), np.quantile(theirs, quantiles), atol=0.01 / np.sqrt(32) * 4)
    assert np.abs(theirs).max() <= 1 / np.sqrt(32)
