"""TTRL on MATH-500, with the settings of the reference (arXiv 2504.16084, verl/examples/ttrl/*/math.sh).

    python -m ttrl_jax.train --config configs/math500.py:Qwen/Qwen2.5-Math-7B [--config.data.level=3]

The part after the colon is the model: a folder or a hub name. The questions are a set of the hub, all of them or those
of one level, 1 to 5. An episode of all levels has 15 steps of 32 questions x 64 votes, and the run has 150 steps. The
reference reports avg@16 46.7 -> 83.4 for this model.

The reference's own files have other columns, and one file for each level: add --config.data.path=MATH-TTT.json (or
MATH-L3-TTT.json) --config.data.question_column=prompt.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "Qwen/Qwen2.5-Math-1.5B") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.data.path = "HuggingFaceH4/MATH-500"
    c.data.drop_last = True  # as the reference does
    c.data.split = "test"
    c.data.question_column = "problem"
    c.episodes = 10
    c.rollout.prompts = 32
    c.prompt.max_tokens = 1024
    return c
