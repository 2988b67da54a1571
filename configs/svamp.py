"""TTRL with LoRA on a real instruct model with 2 CPU cores: word problems of one step, answered in one short line.

    python -m ttrl_jax.train --config configs/svamp.py:MODEL --config.data.path=train.json \
        --config.eval.tasks="('held_out=held_out.json',)"

The two files have questions of SVAMP (arXiv 2103.07191, github.com/arkilpatel/SVAMP), body and question as one text
under `prompt`, the number under `answer`. Three worked lines before the question keep responses at some 14 tokens.
docs/lora.md has the scores of 32 questions and 32 others, and of the control that rewards any answer.
"""

from ml_collections import ConfigDict

from configs import default

EXAMPLES = (
    "Problem: Tom has 15 pens. He gives 6 pens to Ann. How many pens does Tom have left?\nAnswer: 15 - 6 = 9\n\n"
    "Problem: A box holds 4 cups. How many cups do 7 boxes hold?\nAnswer: 4 * 7 = 28\n\n"
    "Problem: Ann shares 24 nuts among 3 friends. How many nuts does each get?\nAnswer: 24 / 3 = 8\n\n"
    "Problem: "
)


def get_config(model: str = "Qwen/Qwen2.5-Coder-0.5B-Instruct") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.data.path = "SVAMP-train.json"
    c.episodes = 4
    c.lora.rank = 16
    c.prompt.chat_template = False
    c.prompt.prefix = EXAMPLES
    c.prompt.suffix = "\nAnswer:"
    c.prompt.max_tokens = 256
    c.rollout.stop = ("\n",)
    c.rollout.prompts = 4
    c.rollout.votes = 16
    c.rollout.max_tokens = 48
    c.rollout.temperature = 1.0
    c.rollout.rows = 128
    c.reward.extract = ("last_number",)
    c.train.samples = 16
    c.train.minibatch_prompts = 4
    c.train.micro_tokens = 2048
    c.train.learning_rate = 1e-5
    c.train.kl_coef = 0.0
    c.train.remat = "none"
    c.eval.every = 0
    c.eval.temperature = 1.0  # as in training
    c.eval.top_p = 1.0
    c.eval.greedy = True
    c.checkpoint.keep = 1
    c.checkpoint.every = 10.0
    return c
