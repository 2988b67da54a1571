"""Make tests/golden/{llama,qwen2}/: tiny random models of `transformers` and their float32 logits, on torch.

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
# What the two families and their configs can differ in: a head_dim that is not D / N, tied tables, biases, theta, eps.
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "qwen2": transformers.Qwen2Config(
        **SHAPE, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}
    ),
}


def main() -> None:
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(seed)
        for path, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in path), std=0.15, generator=generator)
        rng = np.random.default_rng(seed)
        prompt_lengths = np.array([5, 12, 9], np.int32)
        ids = rng.integers(config.vocab_size, size=(3, 2, 20)).astype(np.int32)
        for prompt, length in zip(ids, prompt_lengths, strict=True):
            prompt[:, :length] = prompt[0, :length]
        with torch.no_grad():
            logits = model(torch.tensor(ids.reshape(6, 20))).logits.reshape(3, 2, 20, -1).numpy()
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink()  # the tests do not read it
        np.savez_compressed(FOLDER / name / "logits.npz", ids=ids, prompt_lengths=prompt_lengths, logits=logits)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits up to {abs(logits).max():.2f}")


if __name__ == "__main__":
    main()
