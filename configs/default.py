"""Every key, its unit and its default. The task files beside this one only override.

The defaults are the reference's settings for AIME (arXiv 2504.16084 and its code) where it has one. A key that is
`placeholder(type)` is unset: the model decides it (ttrl_jax/resolve.py), unless a value is given.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # fixes the order of questions and every sampled token
    c.episodes = 80  # passes over the questions; 0: no training, the model as it is and its vote
    c.algorithm = "grpo"  # grpo | dr_grpo | rloo | ppo (with a critic) | prime (with a process reward model)
    c.task = ""  # Python file whose get_task() says what is asked, read and compared (docs/library.md); empty: as below

    c.model = ConfigDict()
    c.model.path = ""  # Hugging Face folder (safetensors), .gguf file or hub name; required
    # bfloat16 | float32, of sampling, forward and backward; masters are float32. What is computed in bfloat16 sees a
    # master's change once that rounds to another value: from a bfloat16 checkpoint, a weight of 0.02 has to go 6e-5.
    c.model.dtype = "bfloat16"
    # Of whole rows, in training and prefill: xla | cudnn (NVIDIA) | splash (TPU) | auto: the best that runs there.
    c.model.attention = "auto"

    c.mesh = ConfigDict()  # devices = data x fsdp x tensor; -1: what is left
    c.mesh.data = 1  # prompts are split over it
    c.mesh.fsdp = -1  # weights and votes are split over it
    c.mesh.tensor = 1  # heads, ffn and vocabulary are split over it
    # Masters and Adam's moments rest in the hosts' memory while the model samples (memory; changes no number).
    c.mesh.offload = False

    c.data = ConfigDict()
    c.data.path = ""  # .json, .jsonl, .csv, .tsv, .txt, .parquet, builtin:NAME or a hub name; required
    c.data.subset = ""  # of a hub data set that has several
    c.data.split = "train"  # of a hub data set
    # Text, or messages. Names with dots go into columns of objects. What is not found under these two names is looked
    # for under others (data/problems.py), and said.
    c.data.question_column = "prompt"
    c.data.truth_column = "answer"  # for metrics only; the column, or some rows of it, may be missing
    # How an answer is read out of a truth: hash ("... #### 85") or as in reward.extract, in English; empty: truths are
    # answers as they stand, or all end as with hash.
    c.data.truth_extract = ""
    c.data.drop_last = False  # leave out what is no whole step at the end of an episode; False: a smaller last step
    c.data.level = 0  # only questions whose column `level` is this (MATH: 1 to 5); 0: all
    c.data.limit = 0  # questions, the first so many; 0: all

    c.prompt = ConfigDict()
    c.prompt.chat_template = True  # one user turn of the tokenizer's chat template; False: plain text
    c.prompt.system = ""  # system turn; empty: none
    c.prompt.prefix = ""  # before the question
    c.prompt.suffix = placeholder(str)  # after the question
    c.prompt.thinking = placeholder(bool)  # think first, and answer after </think>
    c.prompt.max_tokens = 512  # a longer prompt is an error

    c.rollout = ConfigDict()
    c.rollout.prompts = 8  # questions of one training step
    c.rollout.votes = 64  # responses to each, all of which vote
    c.rollout.max_tokens = placeholder(int)  # of a response
    c.rollout.stop = ()  # texts: besides the model's own stop tokens, a token that has one of them ends a response
    # The token that ends a turn in the chat template ends a response too, where that template makes the prompts: base
    # models have another eos. False: as in the reference.
    c.rollout.end_of_turn = True
    c.rollout.temperature = placeholder(float)  # at least 0.001
    c.rollout.top_k = 0  # 0: off
    c.rollout.top_p = 1.0  # 1: off
    c.rollout.rows = 512  # responses decoded at once (memory; changes no sample)

    c.reward = ConfigDict()
    # boxed | tag:NAME | number:NAME | tag_strict | answer_is | choice | last_number, tried in this order
    c.reward.extract = ("boxed",)
    # Names of tags, or none. ("think", "answer"): the whole response must be <think>...</think><answer>...</answer>.
    c.reward.format = ()
    c.reward.locale = "en"  # en | tr | de: how responses write numbers, 1,234.5 or 1.234,5; truths are always as in en
    c.reward.format_weight = 0.0  # added to the reward of a response that is in reward.format
    # majority | offline (of the start model's votes, never renewed) | truth (the oracle) | random (control)
    c.reward.label = "majority"
    c.reward.ties = "first"  # first: the answer seen first is the label | random: drawn by (seed, step, question)
    c.reward.kind = placeholder(str)  # an older spelling of judge.rule, agreement for majority; leave it unset

    # Train where the first evaluation finds hardly any answers (9 in 10 without, or most without and cut at the limit),
    # with nothing to vote on. False: stop there, and say why.
    c.reward.allow_silence = False

    c.judge = ConfigDict()
    c.judge.rule = "majority"  # majority: 1 with the label, else 0 | vote_share: share of the votes with that answer

    c.train = ConfigDict()
    c.train.samples = 32  # responses to each question that are trained on, the first of the votes
    c.train.minibatch_prompts = 1  # questions of one optimizer step
    # Tokens of each device in one forward and backward pass, prompts and padding included (memory; changes only
    # rounding). Responses of like length go together; one that is longer goes alone.
    c.train.micro_tokens = 8192
    c.train.advantage = "std"  # of grpo: std: rewards over their group's spread | entropic (arXiv 2601.16175)
    c.train.learning_rate = 5e-7  # peak
    # Share of the training steps; then cosine to nearly 0: the last of 240 steps has 4.5e-5 of the peak.
    c.train.warmup = 0.03
    c.train.b1 = 0.9
    c.train.b2 = 0.999
    c.train.weight_decay = 0.01
    c.train.grad_clip = 1.0  # global norm; 0: off
    c.train.clip_low = 0.2  # the ratio counts between 1 - clip_low and
    c.train.clip_high = 0.2  # 1 + clip_high
    c.train.dual_clip = 3.0  # bound for negative advantages, in units of the advantage
    c.train.kl_coef = 0.001  # weight of KL(policy || start), k3; 0: off, and no copy of the start is kept
    c.train.entropy_coef = 0.0  # weight of the entropy bonus
    c.train.remat = True  # recompute layers in the backward pass (memory)
    c.train.chunk_tokens = 1024  # response tokens of each device whose logits exist at once (memory)

    c.critic = ConfigDict()  # of ppo, trained before the policy on the same minibatches; Adam as in train
    c.critic.trunk = "own"  # own: a decoder that begins as the policy | policy: a head on the policy's own states
    c.critic.learning_rate = 9e-6  # constant
    c.critic.clip = 0.5  # how far a value counts as moved in one training step
    c.critic.grad_clip = 1.0  # global norm; 0: off
    c.critic.gamma = 1.0  # discount of a token
    c.critic.gae_lambda = 1.0  # of generalised advantages; 1: the reward less the value

    c.prime = ConfigDict()  # of prime: the process reward model, which begins as the policy; Adam as in train, no decay
    c.prime.learning_rate = 1e-6  # constant
    c.prime.beta = 0.05  # of its log-ratios to the start
    c.prime.grad_clip = 10.0  # global norm; 0: off
    c.prime.outcome_coef = 5.0  # weight of the agreement with the label
    c.prime.process_coef = 5.0  # weight of the token rewards
    c.prime.minibatch_rows = 256  # rows of one of its optimizer steps

    c.eval = ConfigDict()
    c.eval.every = 2  # training steps between evaluations; 0: only before and after
    c.eval.samples = 16  # responses to each question
    c.eval.temperature = 0.6  # at least 0.001; 0: greedy
    c.eval.top_k = 0
    c.eval.top_p = 0.95
    c.eval.k = ()  # more j of pass@j, maj@j and best_of@j, besides 2, 4, 8 ... and eval.samples
    c.eval.greedy = False  # also one response to each question at temperature 0
    # More questions to evaluate on, never trained on. NAME=PATH: the file PATH, with the settings data.* and
    # reward.extract, format and locale of configs/NAME.py if there is one, else with those above. NAME: as
    # configs/NAME.py has it.
    c.eval.tasks = ()

    c.checkpoint = ConfigDict()
    c.checkpoint.keep = 2  # the newest so many
    c.checkpoint.every = 30.0  # minutes after which one is saved, besides those at the end of each episode; 0: never
    c.checkpoint.weights_only = False  # to evaluate and export, a third of the size; the run cannot go on from them

    c.log = ConfigDict()
    c.log.generations_every = 10  # training steps between written generations; 0: never
    c.log.compiles = False  # say of each program that is compiled what its arguments are, also where it takes no time
    c.log.tensorboard = True  # event files beside metrics.jsonl
    c.log.wandb_project = ""  # empty: off (extra: wandb)
    return c.lock()
