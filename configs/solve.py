"""What solve takes where no --config is given: any model, the answer in a box, or else the last number.

    python -m ttrl_jax.solve --model OWNER/MODEL questions.txt

16 votes, a quarter of the paper's. The model decides temperature, prompt and lengths, as in training.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "") -> ConfigDict:
    c = default.get_config()
    c.model.path = model
    c.reward.extract = ("boxed", "last_number")
    c.rollout.votes = 16
    c.train.samples = 16
    return c
