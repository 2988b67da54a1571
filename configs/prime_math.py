"""TTRL by PRIME on MATH-500, with the settings of the reference (arXiv 2504.16084, figure 5; its code,
verl/recipe/prime/ttrl_math_prime_1.5b.sh).

    python -m ttrl_jax.train --config configs/prime_math.py:Qwen/Qwen2.5-Math-1.5B

One step an episode, 40 in all, of 256 questions x 32 votes, of which 16 are trained on: 16 optimizer steps of the
policy, and 16 of the process reward model, which is a second model with its own optimizer in memory. No KL term. The
questions are a set of the hub; with the reference's own file, add --config.data.path=MATH-TTT.json
--config.data.question_column=prompt.
"""

from ml_collections import ConfigDict

from configs import math500


def get_config(model: str = "Qwen/Qwen2.5-Math-1.5B") -> ConfigDict:
    c = math500.get_config(model)
    c.algorithm = "prime"
    c.episodes = 40
    c.rollout.prompts = 256
    c.rollout.votes = 32
    c.rollout.temperature = 1.0
    c.train.samples = 16
    c.train.minibatch_prompts = 16
    c.train.kl_coef = 0.0
    c.eval.every = 1
    return c
