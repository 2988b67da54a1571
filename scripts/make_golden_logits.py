"""Make the folders in tests/golden/: tiny random models of `transformers` and their float32 logits, on torch.

Needs torch besides the package (`pip install torch`); takes seconds. Run from the repository root:

    python scripts/make_golden_logits.py

Each folder holds config.json and model.safetensors as `save_pretrained` writes them, and logits.npz: ids int32
[P, V, T] (the V rows of a prompt begin with the same prompt), prompt_lengths int32 [P], logits float32 [P, V, T, W].
"""

from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent.parent / "tests" / "golden"

SHAPE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    attn_implementation="eager",
)
# Rows go past the window, and past the context that a rotation stretches.
SMALL = dict(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=32,
    attn_implementation="eager",
)
FULL, SLIDING = "full_attention", "sliding_attention"


def stretched(kind: str, **others: float) -> transformers.LlamaConfig:
    shape = {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return transformers.LlamaConfig(**shape, rope_parameters={"rope_type": kind, "rope_theta": 100.0, **others})


# What the families and their configs can differ in: a head_dim that is not D / N, tied tables, biases, theta, eps,
# norms of queries and keys, windows in all layers or in some, rotations.
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "qwen2": transformers.Qwen2Config(
        **SHAPE, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}
    ),
    "qwen3": transformers.Qwen3Config(**SMALL, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=8),
    "ministral": transformers.MinistralConfig(
        **{**SMALL, "num_hidden_layers": 3}, sliding_window=6, layer_types=[SLIDING, FULL, SLIDING]
    ),
    "qwen2_windows": transformers.Qwen2Config(
        **{**SMALL, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "linear": stretched("linear", factor=4.0),
    "llama3": stretched("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "yarn": stretched("yarn", factor=4.0, original_max_position_embeddings=16),
}


def main() -> None:
    for seed, (name, config) in enumerate(CONFIGS.items()):
        length, std = (20, 0.15) if config.vocab_size == SHAPE["vocab_size"] else (40, 0.4)  # for sharp logits
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(seed)
        for path, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in path), std=std, generator=generator)
        rng = np.random.default_rng(seed)
        prompt_lengths = np.array([5, 12, 9], np.int32)
        ids = rng.integers(config.vocab_size, size=(3, 2, length)).astype(np.int32)
        for prompt, shared in zip(ids, prompt_lengths, strict=True):
            prompt[:, :shared] = prompt[0, :shared]
        with torch.no_grad():
            logits = model(torch.tensor(ids.reshape(6, length))).logits.reshape(3, 2, length, -1).numpy()
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink()  # the tests do not read it
        np.savez_compressed(FOLDER / name / "logits.npz", ids=ids, prompt_lengths=prompt_lengths, logits=logits)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits up to {abs(logits).max():.2f}")


if __name__ == "__main__":
    main()
