"""tunix's side of the benchmarks, run by the Python of an environment with google-tunix (0.1.7 is what was timed).

    PYTHON scripts/peers/tunix_worker.py HF_FOLDER

Its vanilla sampler and its GRPO learner, as a user of its library calls them. Finished rows decode until the longest
one ends. Its Llama rotates with a base of its own whatever the config says, which changes tokens but no speed.
"""

import functools
import json
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import worker
from flax import nnx
from transformers import AutoTokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig


class Ids:
    """A tokenizer whose texts are ids: "17 4 9"."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids) -> str:
        return " ".join(str(i) for i in ids)

    def bos_id(self) -> int:
        return 0  # adds none

    def eos_id(self) -> int:
        return -1  # never drawn

    def pad_id(self) -> int:
        return 0


def load(folder: str, dtype: str, mesh: jax.sharding.Mesh | None = None) -> tuple[llama.Llama3, llama.ModelConfig]:
    fields = json.loads((Path(folder) / "config.json").read_text())
    config = llama.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["head_dim"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=1_000_000,  # what it computes with, whatever stands here
        norm_eps=fields["rms_norm_eps"],
        weight_tying=fields["tie_word_embeddings"],
    )
    return create_model_from_safe_tensors(folder, config, mesh, jnp.dtype(dtype)), config


def rollout(folder: str, shape: dict) -> worker.Run:
    model, config = load(folder, shape["dtype"])
    lengths = np.array(shape["asked"])  # [prompts, votes]
    size = shape["prompt_tokens"] + shape["new_tokens"]
    sampler = Sampler(model, Ids(), CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim))
    texts = [" ".join(map(str, ids)) for ids in worker.prompt_ids(shape, vocab=config.vocab_size)]
    rows = [(text, n) for text, row in zip(texts, lengths.tolist(), strict=True) for n in row]
    at_once = min(shape["rows"], len(rows))

    def run() -> dict:
        steps = 0
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            new = max(n for _, n in part)
            out = sampler(
                [text for text, _ in part],
                max_generation_steps=new,
                max_prompt_length=shape["prompt_tokens"],
                temperature=1.0,
                top_p=None if shape["draw"] == "greedy" else shape["top_p"],
                eos_tokens=[-1],
                seed=start,
            )
            if {len(row) for row in out.tokens} != {new}:
                raise RuntimeError(f"expected {new} tokens in each row, got {sorted(map(len, out.tokens))}")
            steps += new * len(part)
        return {"tokens": int(lengths.sum()), "slot_steps": steps}

    run()
    return run


def step(folder: str, shape: dict) -> worker.Run:
    def train(turns: worker.Turns) -> None:
        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1), ("fsdp", "tp"))
        model, _ = load(folder, shape["dtype"], mesh)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        cluster = rl_cluster.RLCluster(
            actor=model, tokenizer=tokenizer, cluster_config=cluster_config(shape, mesh, tokenizer)
        )
        algorithm = GRPOConfig(num_generations=shape["samples"], beta=0.0, loss_agg_mode="token-mean")

        def batches():
            texts, start = worker.questions(64), 0
            while True:
                turns.begin()
                yield {"prompts": np.array([texts[(start + i) % len(texts)] for i in range(shape["prompts"])])}
                # Asked for the next one, it has finished the step, but for what JAX still computes.
                jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
                turns.end()
                start += shape["prompts"]

        GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=worker.majority_rewards).train(batches())

    turns = worker.Turns(train)

    def run() -> dict:
        turns()
        return {"tokens": shape["prompts"] * shape["samples"] * shape["new_tokens"]}

    run()
    return run


def cluster_config(shape: dict, mesh: jax.sharding.Mesh, tokenizer) -> rl_cluster.ClusterConfig:
    longest = 1 + max(len(tokenizer.encode(text)) for text in worker.questions(64))  # 1: it puts a token in front
    return rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT), mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.01)),
            eval_every_n_steps=1_000_000,
            max_steps=1_000_000,
            mini_batch_size=shape["prompts"],
            # Of questions: all samples of one are the least that it takes in a pass, here twice the rows of the others.
            train_micro_batch_size=max(1, shape["micro_rows"] // shape["samples"]),
            rollout_micro_batch_size=shape["prompts"],
            compute_logps_micro_batch_size=shape["prompts"],
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=shape["new_tokens"],
            max_prompt_length=longest,
            kv_cache_size=longest + shape["new_tokens"],
            temperature=1.0,
            top_p=0.95,
            eos_tokens=[-1],
        ),
    )


if __name__ == "__main__":
    worker.serve(
        {"rollout": functools.partial(rollout, sys.argv[1]), "step": functools.partial(step, sys.argv[1])},
        versions={"tunix": version("google-tunix"), "jax": jax.__version__},
        compiling=worker.JaxCompiles(jax),
    )
