"""TTRL on GPQA-Diamond: multiple choice, the answer is a letter.

    python -m ttrl_jax.train --config configs/gpqa.py:Qwen/Qwen2.5-Math-7B --config.data.path=GPQA-TTT.json

The part after the colon is the model: a folder or a hub name. You bring the questions, because their authors ask not to
publish them again. A file has objects with `prompt`, in which the options are lines that begin with A. to D., and
`answer`, the letter. The authors' own file works too, --config.data.path=gpqa_diamond.csv, or from the hub, with a
token (docs/data.md), --config.data.path=Idavidrein/gpqa --config.data.subset=gpqa_diamond. It has the columns
`Question`, `Correct Answer` and `Incorrect Answer 1` to `3`. The seed and the `Record ID` of a question decide the
order of its options.

The reference (arXiv 2504.16084) gives results but no settings for GPQA; these are its settings for AMC. With 198
questions an episode has 24 steps of 8 questions x 64 votes, and the run has 720 steps.
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
