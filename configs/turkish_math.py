"""TTRL on Turkish word problems: the replication that sets the majority's labels against true ones, in tags.

    python -m ttrl_jax.train --config configs/turkish_math.py:Qwen/Qwen2.5-1.5B-Instruct

The part after the colon is the model: a folder or a hub name. Without more, the questions are the built-in ones, 96 to
train on and 192 held out: 3 steps an episode, 30 in all, of 32 questions x 64 votes. The replication has 2,000
translated questions to train on and 598 held out, such as scripts/prepare_word_problems.py makes; with these it is 62
steps an episode, 620 in all:

    --config.data.path=turkish/train.jsonl --config.eval.tasks="('held_out=turkish/test.jsonl',)"

The control with true labels is --config.reward.label=truth --workdir=runs/turkish_math-truth. With the same seed it has
the same questions in the same order, and samples the same responses as long as the weights are the same.

A response should be <mantık>...</mantık> <cevap>...</cevap>, with a number in the second tag, as Turkish writes it. The
number is rewarded wherever the tag stands, and the format with a tenth of that. Three more readings are only measured
(docs/metrics.md): strict counts numbers of responses in the format alone, flexible is what stands between the answer
tags, and the last takes the last number where there is no tag. Settings that the replication does not ask for are those
of math500.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "Qwen/Qwen2.5-1.5B-Instruct") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.data.path = "builtin:turkish.train"
    c.data.drop_last = True  # as the reference does
    c.eval.tasks = ("held_out=builtin:turkish.held_out",)
    c.episodes = 10
    c.prompt.suffix = (
        "\nÖnce <mantık> ve </mantık> etiketleri arasında adım adım düşün. Sonra yalnızca sonucu, 1.250 veya 12,5 gibi "
        "bir sayı olarak, <cevap> ve </cevap> etiketleri arasına yaz. Bu etiketlerin dışına hiçbir şey yazma."
    )
    c.rollout.prompts = 32
    c.rollout.max_tokens = 512
    c.reward.extract = ("number:cevap",)
    c.reward.format = ("mantık", "cevap")
    c.reward.format_weight = 0.1
    c.reward.locale = "tr"
    c.reward.ties = "random"
    c.eval.every = 62  # an episode of 2,000 questions
    c.eval.samples = 8
    c.eval.k = (1, 2, 4)
    return c
