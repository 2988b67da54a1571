"""TTRL on AMC, with the settings of the reference (arXiv 2504.16084, verl/examples/ttrl/*/amc.sh).

    python -m ttrl_jax.train --config configs/amc.py:Qwen/Qwen2.5-Math-7B --config.data.path=AMC-TTT.json

The part after the colon is the model: a folder or a hub name. The questions are the reference's AMC-TTT/train.json
(83 objects with `prompt` and `answer`), or any file like it; --config.data.path=AI-MO/aimo-validation-amc takes them
from the hub. An episode has 10 steps of 8 questions x 64 votes, and the run has 300 steps. The reference reports avg@16
35.6 -> 68.1 for this model.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "Qwen/Qwen2.5-Math-1.5B") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.data.path = "AMC-TTT.json"
    c.data.drop_last = True  # as the reference does
    c.episodes = 30
    c.prompt.max_tokens = 1024
    return c
