"""TTRL on GPQA-Diamond: multiple choice, the answer is a letter.

    python -m ttrl_jax.train --config configs/gpqa.py:Qwen/Qwen2.5-Math-7B --config.data.path=GPQA-TTT.json

The part after the colon is the model: a folder or a hub name. The questions are yours to bring, as their authors ask
not to publish them again: objects with `prompt`, which has the options in lines that begin with A. to D., and `answer`,
the letter; or the authors' own file, --config.data.path=gpqa_diamond.csv, with the columns `Question`, `Correct Answer`
and `Incorrect Answer 1` to `3`, whose options come in an order that the seed and the question's `Record ID` decide. The
reference (arXiv 2504.16084) gives results but no settings for it; these are its settings for AMC. With
198 questions that is 24 steps an episode, 720 in all, of 8 questions x 64 votes.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "Qwen/Qwen2.5-Math-1.5B") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.data.path = "GPQA-TTT.json"
    c.data.drop_last = True  # as the reference does
    c.episodes = 30
    c.prompt.max_tokens = 1024
    c.reward.extract = ("choice",)
    return c
