"""Hugging Face's side of the benchmarks, run by the Python of an environment with transformers and torch.

    PYTHON scripts/peers/hf_worker.py HF_FOLDER

`generate`, one batch of rows after the other. Rows that have ended are decoded, as padding, until all have.
"""

import functools
import sys

import torch
import transformers
import worker
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class Ends(StoppingCriteria):
    """Ends each row at a length of its own."""

    def __init__(self, lengths: list[int], prompt_tokens: int):
        self.lengths, self.prompt_tokens = torch.tensor(lengths), prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt_tokens >= self.lengths


def rollout(folder: str, shape: dict) -> worker.Run:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, shape["dtype"])).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.tensor(worker.prompt_ids(shape, vocab=model.config.vocab_size))
    lengths = torch.tensor(shape["asked"])  # [prompts, votes]
    rows, ends = prompts.repeat_interleave(lengths.shape[1], 0), lengths.flatten()
    draw = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": shape["top_p"]}
    if shape["draw"] == "greedy":
        draw = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}

    @torch.inference_mode()
    def generate(most: int) -> dict:
        steps = 0
        for start in range(0, len(rows), shape["rows"]):
            ids, its_ends = rows[start : start + shape["rows"]], ends[start : start + shape["rows"]].clamp(max=most)
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Ends(its_ends.tolist(), ids.shape[1])]),
                **draw,
            )
            new = out.shape[1] - ids.shape[1]
            if new != int(its_ends.max()):
                raise RuntimeError(f"expected {int(its_ends.max())} new tokens, got {new}")
            steps += new * len(ids)
        return {"tokens": int(ends.sum()), "slot_steps": steps}

    generate(4)
    return functools.partial(generate, shape["new_tokens"])


if __name__ == "__main__":
    worker.serve(
        {"rollout": functools.partial(rollout, sys.argv[1])},
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        compiling=lambda: 0.0,
    )
