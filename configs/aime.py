"""TTRL on AIME 2024, with the settings of the reference (arXiv 2504.16084, verl/examples/ttrl/Qwen2.5-Math/aime.sh).

    python -m ttrl_jax.train --config configs/aime.py:Qwen/Qwen2.5-Math-7B --config.data.path=AIME-TTT.json

The part after the colon is the model: a folder or a hub name. The questions are the reference's AIME-TTT/train.json
(a list of objects with `prompt` and `answer`), or any file like it; --config.data.path=HuggingFaceH4/aime_2024 takes
them from the hub. An episode has 3 steps of 8 questions x 64 votes, and the run has 240 steps. The reference used 8 x
A100 80 GB and reports avg@16 12.9 -> 40.2 for this model.

The model decides how the question is put, and how it samples (ttrl_jax/resolve.py).
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "Qwen/Qwen2.5-Math-1.5B") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.data.path = "AIME-TTT.json"
    c.data.drop_last = True  # as the reference does
    return c
