"""TRL's side of the benchmarks, run by the Python of an environment with trl and torch (TRL 1.16 is what was timed).

    PYTHON scripts/peers/trl_worker.py HF_FOLDER

Its GRPOTrainer owns the loop; each step waits until it is asked for. bfloat16 means weights in bfloat16, which is what
is fastest here, and not float32 masters as on our side.
"""

import functools
import sys
import tempfile

import torch
import transformers
import trl
import worker
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class InTurn(TrainerCallback):
    """Makes a step when the driver asks for one."""

    def __init__(self, turns: worker.Turns):
        self.turns = turns

    def on_step_begin(self, *_, **__) -> None:
        self.turns.begin()

    def on_step_end(self, *_, **__) -> None:
        self.turns.end()


class GivenRows(trl.GRPOTrainer):
    """Trains on rows that are given instead of sampled."""

    rows: dict[str, torch.Tensor]

    def _generate_and_score_completions(self, inputs) -> dict[str, torch.Tensor]:
        return dict(self.rows)


def trainer(folder: str, shape: dict, kind: type[trl.GRPOTrainer], scratch: str) -> trl.GRPOTrainer:
    rows, new = shape["prompts"] * shape["samples"], shape["new_tokens"]
    config = trl.GRPOConfig(
        output_dir=scratch,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=shape["micro_rows"],
        gradient_accumulation_steps=rows // shape["micro_rows"],
        num_generations=shape["samples"],
        max_completion_length=new,
        generation_kwargs={"min_new_tokens": new},
        max_steps=1_000_000,
        temperature=1.0,
        top_p=0.95,
        beta=0.0,
        loss_type="bnpo",  # the mean over tokens
        learning_rate=1e-6,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    return kind(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, shape["dtype"])),
        reward_funcs=worker.majority_rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in worker.questions(64)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def update(folder: str, shape: dict) -> worker.Run:
    def train(turns: worker.Turns) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            learner = trainer(folder, shape, GivenRows, scratch)
            learner.add_callback(InTurn(turns))
            learner.rows = given_rows(shape, vocab=learner.model.config.vocab_size)
            learner.train()

    length = shape["prompt_tokens"] + shape["new_tokens"]
    return stepping(worker.Turns(train), {"tokens": shape["prompts"] * shape["samples"] * length})


def step(folder: str, shape: dict) -> worker.Run:
    def train(turns: worker.Turns) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            learner = trainer(folder, shape, trl.GRPOTrainer, scratch)
            learner.add_callback(InTurn(turns))
            learner.train()

    return stepping(worker.Turns(train), {"tokens": shape["prompts"] * shape["samples"] * shape["new_tokens"]})


def stepping(turns: worker.Turns, counts: dict) -> worker.Run:
    def run() -> dict:
        turns()
        return counts

    run()
    return run


def given_rows(shape: dict, *, vocab: int) -> dict[str, torch.Tensor]:
    prompts = torch.tensor(worker.prompt_ids(shape, vocab=vocab)).repeat_interleave(shape["samples"], 0)
    responses = torch.tensor(worker.response_ids(shape, vocab=vocab)).flatten(0, 1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": responses,
        "completion_mask": torch.ones_like(responses),
        "advantages": torch.tensor(worker.advantages(shape)),
        "num_items_in_batch": torch.tensor(responses.numel()),
    }


if __name__ == "__main__":
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    makers = {"update": functools.partial(update, sys.argv[1]), "step": functools.partial(step, sys.argv[1])}
    worker.serve(makers, versions=versions, compiling=lambda: 0.0)
