"""transformers' `generate` on torch, on the shape of bench_gpu.py, run by the Python of an environment that has both.

    PYTHON scripts/peers/gpu_peer.py OUT [--limit SECONDS] [--tiny]

A line in OUT/results.jsonl says after how many seconds each row had 64, 128, 192 ... response tokens, until all have as
many as ours or no time is left.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

EVERY = 64  # tokens of a row between two looks at the clock, for which the device is waited for
# rows, tokens of a prompt, of a response; then of the model: width, ffn, layers, heads, kv heads, vocabulary
SHAPE, TINY = (512, 512, 3072, 1536, 8960, 28, 12, 2, 151_936), (8, 32, 160, 64, 128, 2, 4, 2, 512)


class Laps(StoppingCriteria):
    """Notes the time, and ends all rows when it is up."""

    def __init__(self, prompt_tokens: int, ends: float):
        self.prompt_tokens, self.ends, self.begun, self.laps = prompt_tokens, ends, now(), []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        made, over = input_ids.shape[1] - self.prompt_tokens, False
        if made % EVERY == 1:  # as our sampler counts, whose first token is prefill's
            self.laps.append((made, round(now() - self.begun, 3)))
            over = now() > self.ends
        return torch.full((len(input_ids),), over, dtype=torch.bool, device=input_ids.device)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


@torch.inference_mode()
def generate(model: Qwen2ForCausalLM, ids: torch.Tensor, *, tokens: int, ends: float) -> list[tuple[int, float]]:
    laps = Laps(ids.shape[1], ends)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([laps]),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return laps.laps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--tiny", action="store_true")
    flags = parser.parse_args()
    ends = time.monotonic() + 0.8 * flags.limit
    rows, prompt, tokens, width, ffn, layers, heads, kv, vocab = TINY if flags.tiny else SHAPE
    config = Qwen2Config(
        hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    device = "cpu" if flags.tiny else "cuda"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    ids = torch.randint(1, vocab, (rows, prompt), device=device)
    generate(model, ids, tokens=8, ends=ends)
    laps = generate(model, ids, tokens=tokens, ends=ends)
    made, seconds = laps[-1]
    record = {"stage": "peer", "what": "generate", "rows": rows, "prompt": prompt, "tokens_of_each": made, "s": seconds}
    record |= {"tokens_s": round(rows * made / seconds), "torch": torch.__version__}
    if device == "cuda":
        record |= {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
    record |= {"transformers": transformers.__version__, "laps": laps}
    with (flags.out / "results.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
