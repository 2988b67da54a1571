"""Every key with its unit and its default. The task files beside this one only override some of them.

The defaults are the settings that the reference has for AIME (arXiv 2504.16084 and its code), if it has one. A key that
is `placeholder(type)` is unset: the model decides it (ttrl_jax/resolve.py), unless you give a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # fixes the order of questions and every sampled token
    c.episodes = 80  # passes over the questions; 0: no training, only the model as it is and its vote are evaluated
    c.algorithm = "grpo"  # grpo | dr_grpo | rloo | ppo (with a critic) | prime (with a process reward model)
    # A Python file whose get_task() says how to ask, read and compare (docs/library.md); empty: as the keys below say.
    c.task = ""

    c.model = ConfigDict()
    c.model.path = ""  # Hugging Face folder (safetensors), .gguf file or hub name; required
    c.model.adapter = ""  # PEFT folder or hub name of LoRA adapters that the model starts with; empty: none
    # bfloat16 | float32: the type in which sampling and both passes of training compute. Master weights are float32,
    # unless train.master_dtype says otherwise. In bfloat16 a change of a master weight has no effect until it rounds to
    # another value: a weight of 0.02 that comes from a bfloat16 checkpoint has to change by 6e-5.
    c.model.dtype = "bfloat16"
    # How attention is computed in training and prefill: xla | cudnn (NVIDIA) | splash (TPU) | auto: the best that runs
    # on the device.
    c.model.attention = "auto"
    # How attention over the cache is computed in decoding: xla | triton (a kernel for NVIDIA GPUs) | auto: triton where
    # it runs, but for model.attention="xla".
    c.model.decode_attention = "auto"

    # LoRA (arXiv 2106.09685): train adapters beside weights that stay as they are. Masters, moments, gradients and
    # checkpoints are then those of the adapters, and the weights are there once, in model.dtype (docs/lora.md).
    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: off, all weights are trained; 16 is a good one
    c.lora.alpha = 32.0  # the adapters' product counts alpha / rank times
    # Which projections have adapters: of these seven, any.
    c.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    # dtype | int8: how the weights are held, as model.dtype or in 8 bits, with one scale for each output channel.
    c.lora.base = "dtype"
    # Every learning rate of this config is multiplied by it when adapters are trained: they need more than weights do.
    c.lora.rate_factor = 10.0

    c.mesh = ConfigDict()  # the number of devices is data x fsdp x tensor; -1: all that are left
    c.mesh.data = 1  # prompts are split over this axis
    c.mesh.fsdp = -1  # weights and votes are split over this axis
    c.mesh.tensor = 1  # heads, ffn and vocabulary are split over this axis
    # While the model samples, keep master weights and Adam's moments in the memory of the hosts. This saves memory of
    # the devices and changes no number.
    c.mesh.offload = False

    c.data = ConfigDict()
    c.data.path = ""  # .json, .jsonl, .csv, .tsv, .txt, .parquet, builtin:NAME or a hub name; required
    c.data.subset = ""  # the subset of a hub data set that has several
    c.data.split = "train"  # the split of a hub data set
    # The columns of questions (text or messages) and of truths. A name with dots leads into a column of objects. If a
    # column is missing, the program looks for other names (data/problems.py), and says which one it takes.
    c.data.question_column = "prompt"
    c.data.truth_column = "answer"  # only for metrics; the column, or some of its rows, may be missing
    # How the answer is read from a truth: hash ("... #### 85"), or a way of reward.extract, in English. Empty: truths
    # are the answers themselves, or all of them end as for hash.
    c.data.truth_extract = ""
    c.data.drop_last = False  # True: leave out questions that do not fill a step; False: the last step is smaller
    # shuffled: anew in each episode | given: as in the data | vote_share: easy first, by the share of the start model's
    # votes that the winner has, in each episode. The start model votes once on all questions for it (labels.jsonl).
    c.data.order = "shuffled"
    c.data.level = 0  # take only questions whose column `level` has this value (MATH: 1 to 5); 0: all
    c.data.limit = 0  # take only so many questions, the first ones; 0: all

    c.prompt = ConfigDict()
    c.prompt.chat_template = True  # True: a user turn in the tokenizer's chat template; False: plain text
    c.prompt.system = ""  # text of a system turn; empty: no such turn
    c.prompt.prefix = ""  # text before the question
    c.prompt.suffix = placeholder(str)  # text after the question
    c.prompt.thinking = placeholder(bool)  # whether the model thinks first, and answers after </think>
    c.prompt.max_tokens = 512  # tokens; a longer prompt is an error

    c.rollout = ConfigDict()
    c.rollout.prompts = 8  # questions in a training step
    c.rollout.votes = 64  # responses to each question; all of them vote
    # The votes on a question end when they certify its most common answer, with a chance of at most so much that it is
    # not the most common one; there are never fewer than train.samples. 0: all votes are cast; 0.05 is a usual rate.
    c.rollout.stop_votes = 0.0
    c.rollout.max_tokens = placeholder(int)  # tokens of a response at most
    # Texts. A token that contains one of them ends a response, as the model's own stop tokens do.
    c.rollout.stop = ()
    # True: if the chat template makes the prompts, the token that ends a turn in it ends a response too. Base models
    # have another eos token. False: only the model's own stop tokens, as in the reference.
    c.rollout.end_of_turn = True
    c.rollout.temperature = placeholder(float)  # of training samples; at least 0.001
    c.rollout.top_k = 0  # 0: off
    c.rollout.top_p = 1.0  # 1: off
    c.rollout.rows = 512  # responses that are decoded at once; fewer take less memory, and no sample changes

    c.reward = ConfigDict()
    # Ways to find the answer, tried in this order: boxed | tag:NAME | number:NAME | tag_strict | answer_is | choice |
    # last_number (docs/answers.md).
    c.reward.extract = ("boxed",)
    # Names of tags. With ("think", "answer") the whole response must be <think>...</think><answer>...</answer>. Empty:
    # there is no format.
    c.reward.format = ()
    c.reward.locale = "en"  # en | tr | de: how responses write numbers, 1,234.5 or 1.234,5; truths are always as in en
    c.reward.format_weight = 0.0  # added to the reward of a response that is in reward.format
    # majority | offline (the start model votes once, labels are never renewed) | truth (the oracle) | random (control)
    c.reward.label = "majority"
    c.reward.ties = "first"  # first: the answer seen first is the label | random: drawn by (seed, step, question)
    c.reward.kind = placeholder(str)  # an older spelling of judge.rule, agreement for majority; leave it unset

    # Train where the first evaluation finds hardly any answers (9 in 10 without, or most without and cut at the limit),
    # with nothing to vote on. False: stop there, and say why.
    c.reward.allow_silence = False

    c.judge = ConfigDict()
    # What a vote earns (docs/algorithms.md). majority: 1 if the answer is the label, else 0 | vote_share: an answer's
    # share of the votes | answered: 1 for any answer, a control: what it gains is the form, not the substance | gate:
    # as majority where the vote is clear, elsewhere nothing is learned | negative: -1 for rare and uncertain answers |
    # scrl: gate and negative (arXiv 2603.19880) | guard: as majority, less where labels flip (arXiv 2605.19444) |
    # best_of: the likeliest response has the label | soft: as majority, the more the clearer the vote is
    c.judge.rule = "majority"
    c.judge.gate_share = 0.5  # with gate, negative, scrl: a label has at least this share of the votes
    c.judge.gate_margin = 0.15  # and is ahead of the runner-up by more than this share
    c.judge.negative_share = 0.15  # with negative, scrl: an answer that is pushed away has less than this share
    # Reward of a response without an answer, with any rule; as published, scrl has -1. It teaches the form, too.
    c.judge.no_answer_reward = 0.0
    # With soft: slope and offset of the logistic curve from how clear the vote is to how much the label counts. They
    # are calibrated on no data.
    c.judge.soft_slope = 1.0
    c.judge.soft_offset = 0.0

    c.train = ConfigDict()
    c.train.samples = 32  # responses to each question that are trained on: the first ones of its votes
    c.train.minibatch_prompts = 1  # questions in one optimizer step
    # Tokens that a device computes in one forward and backward pass, with prompts and padding. Fewer take less memory;
    # only rounding changes. Responses of similar length are computed together, and a longer one alone.
    c.train.micro_tokens = 8192
    # With grpo: std (divide by the standard deviation of the group) | entropic (arXiv 2601.16175)
    c.train.advantage = "std"
    c.train.learning_rate = 5e-7  # the highest rate, at the end of warm-up
    # Warm-up as a share of the training steps. After it the rate falls as a cosine to nearly 0: the last of 240 steps
    # has 4.5e-5 of the highest rate.
    c.train.warmup = 0.03
    c.train.b1 = 0.9
    c.train.b2 = 0.999
    # float32 | bfloat16: how the weights that are trained are held. In bfloat16 each optimizer step rounds them up or
    # down by chance, so that small steps are not lost in the mean (docs/scale.md). Not with lora.rank above 0.
    c.train.master_dtype = "float32"
    # float32 | bfloat16: how AdamW's two moments are held, which are rounded likewise. Not with lora.rank above 0.
    c.train.moments_dtype = "float32"
    c.train.weight_decay = 0.01
    c.train.grad_clip = 1.0  # the largest global norm of a gradient; 0: off
    c.train.clip_low = 0.2  # a probability ratio is clipped below 1 - clip_low
    c.train.clip_high = 0.2  # and above 1 + clip_high
    c.train.dual_clip = 3.0  # bounds the loss of a token with a negative advantage, in units of the advantage
    c.train.kl_coef = 0.001  # weight of KL(policy || start), k3 estimate; 0: off, and the start model is not kept
    c.train.entropy_coef = 0.0  # weight of the entropy bonus
    # What the backward pass computes again to save memory: full (layers) | dots (all of them but the products with
    # weights) | none. The plan says which of them fit.
    c.train.remat = "full"
    # Response tokens whose logits a device holds at once. Fewer take less memory.
    c.train.chunk_tokens = 1024

    # With ppo: the critic. It is trained before the policy, on the same minibatches, by Adam as in train.
    c.critic = ConfigDict()
    c.critic.trunk = "own"  # own: a decoder that begins as the policy | policy: a head on the policy's own states
    c.critic.learning_rate = 9e-6  # constant
    c.critic.clip = 0.5  # values are clipped so far from those before the step
    c.critic.grad_clip = 1.0  # the largest global norm of a gradient; 0: off
    c.critic.gamma = 1.0  # discount for each token
    c.critic.gae_lambda = 1.0  # lambda of generalised advantages; 1: the advantage is the reward less the value

    # With prime: the process reward model. It begins as the policy, and is trained by Adam as in train, without decay.
    c.prime = ConfigDict()
    c.prime.learning_rate = 1e-6  # constant
    c.prime.beta = 0.05  # factor of its log-ratios to the start model
    c.prime.grad_clip = 10.0  # the largest global norm of a gradient; 0: off
    c.prime.outcome_coef = 5.0  # weight of the agreement with the label
    c.prime.process_coef = 5.0  # weight of the token rewards
    c.prime.minibatch_rows = 256  # rows in one of its optimizer steps

    c.solve = ConfigDict()
    c.solve.steps = 4  # with --mode=adapt, training steps on each question
    # With --mode=learn. Of the rollout.prompts questions of a step, how many are earlier ones, which are asked and
    # learned from again.
    c.solve.replay = 0
    c.solve.window = 256  # earlier questions that are kept for it: the newest ones

    c.eval = ConfigDict()
    c.eval.every = 2  # training steps between evaluations; 0: evaluate only before and after training
    c.eval.samples = 16  # responses to each question
    # As rollout.stop_votes, with at least half of eval.samples; all estimates are then of this half (docs/metrics.md).
    c.eval.stop_votes = 0.0
    c.eval.temperature = 0.6  # at least 0.001; 0: greedy
    c.eval.top_k = 0
    c.eval.top_p = 0.95
    c.eval.k = ()  # more values of j for pass@j, maj@j and best_of@j, besides 2, 4, 8 ... and eval.samples
    c.eval.greedy = False  # True: also evaluate one response to each question at temperature 0
    # A Python file with score(prompt, response) -> float: also evaluate best-of-n by it (docs/metrics.md); empty: none.
    c.eval.scorer = ""
    # More sets of questions to evaluate on; they are never trained on. NAME=PATH is the file PATH. If there is a
    # configs/NAME.py, its data.* and its reward.extract, format and locale are used, else those of this config. NAME
    # alone also takes the path of configs/NAME.py. With @level=3 behind it, only the questions of that level are taken,
    # by their column `level`.
    c.eval.tasks = ()

    # A certificate (docs/runs.md): labelled questions that are never trained on, on which the start model and the
    # trained one are measured, with the same random numbers. It says which of them the run returns.
    c.canary = ConfigDict()
    c.canary.path = ""  # their file, 16 to 64 of them, read as data.path is; each has a truth. Empty: no certificate
    c.canary.samples = 16  # responses to each of them, as in eval.*, before and after training
    c.canary.eps = 0.05  # how much worse on new questions, in accuracy, the returned model may be
    c.canary.delta = 0.05  # the chance that a model which is worse than that is returned

    c.checkpoint = ConfigDict()
    c.checkpoint.keep = 2  # how many checkpoints are kept: the newest ones
    c.checkpoint.keep_best = 0  # besides them so many of the best, by their votes, without any truth (docs/runs.md)
    c.checkpoint.every = 30.0  # minutes between checkpoints, besides those at the end of each episode; 0: only those
    # True: save weights alone, a third of the size. They can be evaluated and exported; the run cannot continue.
    c.checkpoint.weights_only = False

    c.stop = ConfigDict()
    # Episodes without a better model, by its votes, as checkpoint.keep_best ranks them, after which a run stops early
    # (docs/runs.md). 0: it never does. 4 and more let a run learn that begins with hardly a clear vote.
    c.stop.patience = 0

    c.log = ConfigDict()
    c.log.generations_every = 10  # training steps between written generations; 0: never
    c.log.token_logps = False  # keep each token's text and log-prob with these; about ten times the size
    c.log.compiles = False  # say of each program that is compiled what its arguments are, also where it takes no time
    c.log.tensorboard = True  # event files beside metrics.jsonl
    c.log.wandb_project = ""  # empty: off (extra: wandb)
    return c.lock()
