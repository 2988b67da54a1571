"""The values of a config: which are in range, and fit each other. What needs a file is checked where it is read."""

import math

from ml_collections import ConfigDict

from ttrl_jax.errors import InputError
from ttrl_jax.model.config import PROJECTIONS
from ttrl_jax.reward.extract import extract
from ttrl_jax.reward.judge import RULES
from ttrl_jax.run import places

ORDERS = ("shuffled", "given", "vote_share")
ALGORITHMS = ("grpo", "dr_grpo", "rloo", "ppo", "prime")
# Logits are divided by the temperature in float32: at this one those of 1,000 are still known to a tenth, at 1e-10 none
# is known at all, and what is drawn is not the highest. Already here a token 0.1 below that has a chance of e^-100.
LEAST_TEMPERATURE = 1e-3
LEAST_TOP_P = 2.0**-126  # the smallest normal number of float32
LEAST_DELTA = 1e-9  # of canary.delta; who asks for less certainty than that has mistyped it
OLD_REMAT = {"True": "full", "False": "none", "true": "full", "false": "none"}  # of train.remat, when it was no name
REMAT = ("none", "dots", "full")
OLD_RULES = {"agreement": "majority", "vote_share": "vote_share"}  # reward.kind -> judge.rule


def check(config: ConfigDict) -> None:
    """Raise InputError for the first value that is out of range or does not fit the others. None is for the model."""
    rollout, train = config.rollout, config.train
    measured = measured_samples(config.eval.samples, config.eval.stop_votes)
    rules = [
        (
            config.algorithm in ALGORITHMS,
            f"algorithm must be one of {', '.join(ALGORITHMS)}, got {config.algorithm!r}",
        ),
        (config.model.path, "model.path is empty; give a model folder, a .gguf file or a hub name"),
        (config.data.path, "data.path is empty; give a data file, builtin:NAME or a hub name"),
        (
            config.data.order in ORDERS,
            f"data.order must be one of {', '.join(ORDERS)}, got {config.data.order!r}",
        ),
        (
            config.model.dtype in ("bfloat16", "float32"),
            f"model.dtype must be bfloat16 or float32, got {config.model.dtype!r}",
        ),
        (all(isinstance(t, str) for t in rollout.stop), f"rollout.stop must be a tuple of texts, got {rollout.stop}"),
        (0 <= train.warmup <= 1, f"train.warmup is a share of the steps, 0 to 1, got {train.warmup}"),
        (0 < train.clip_low <= 1 and train.clip_high > 0, "train.clip_low must be in (0, 1], train.clip_high above 0"),
        (
            train.remat in (*REMAT, *OLD_REMAT),
            f"train.remat must be one of {', '.join(REMAT)}, got {train.remat!r}",
        ),
        (train.dual_clip > 1, f"train.dual_clip must be above 1, got {train.dual_clip}"),
        (
            all(type(k) is int and 1 <= k <= measured for k in config.eval.k),
            "eval.k must hold whole numbers from 1 to "
            + (f"half of eval.samples, {measured}" if config.eval.stop_votes else f"eval.samples={measured}")
            + f", got {config.eval.k}",
        ),
        (0 <= config.seed < 2**31, f"seed must be in 0 .. 2^31 - 1, got {config.seed}"),
    ]
    rules += (
        _kernel_rules(config)
        + _dtype_rules(config)
        + _lora_rules(config)
        + _sampling_rules(config)
        + _reward_rules(config)
        + _algorithm_rules(config)
        + _canary_rules(config)
        + _solve_rules(config)
        + _number_rules(config)
    )
    for holds, sentence in rules:
        if not holds:
            raise InputError(sentence)
    paths = {"data.path": config.data.path, "canary.path": config.canary.path}
    paths |= {"task": config.task, "eval.scorer": config.eval.scorer}
    paths |= {f"eval.tasks entry {entry!r}": str(entry).partition("=")[2] for entry in config.eval.tasks}
    for key, path in paths.items():
        places.local(path, flag=key)
    reward = config.reward
    extract("", strategies=reward.extract, thinking=False, locale=reward.locale, tags=reward.format)


def _kernel_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """What attention is computed with."""
    return [
        (
            config.model.attention in ("auto", "xla", "cudnn", "splash"),
            f"model.attention must be auto, xla, cudnn or splash, got {config.model.attention!r}",
        ),
        (
            config.model.decode_attention in ("auto", "xla", "triton"),
            f"model.decode_attention must be auto, xla or triton, got {config.model.decode_attention!r}",
        ),
    ]


def _solve_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """Which questions of a stream are asked again."""
    return [
        (
            config.solve.replay <= config.solve.window,
            f"solve.replay={config.solve.replay} questions cannot be drawn from solve.window={config.solve.window}; "
            "raise that",
        ),
        (
            config.solve.replay < config.rollout.prompts,
            f"solve.replay={config.solve.replay} leaves no new question of rollout.prompts={config.rollout.prompts}; "
            "lower it",
        ),
    ]


def _dtype_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """How what is trained is held."""
    given = {f"train.{name}": config.train[name] for name in ("master_dtype", "moments_dtype")}
    adapters = config.lora.rank > 0 or config.model.adapter != ""
    return [
        (value in ("float32", "bfloat16"), f"{key} must be float32 or bfloat16, got {value!r}")
        for key, value in given.items()
    ] + [
        (
            value == "float32" or not adapters,
            f"{key}={value!r} saves next to nothing where adapters are trained, which are few numbers; leave it at "
            "float32, or train all weights (lora.rank=0, and no model.adapter)",
        )
        for key, value in given.items()
    ]


def _lora_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """Which adapters there are."""
    lora = config.lora
    return [
        (lora.rank >= 0, f"lora.rank must not be negative, got {lora.rank}; 0 switches it off, 16 is a good one"),
        (0 < lora.alpha < math.inf, f"lora.alpha must be above 0 and finite, got {lora.alpha}"),
        (
            len(lora.targets) > 0 and set(lora.targets) <= set(PROJECTIONS),
            f"lora.targets must hold some of {', '.join(PROJECTIONS)}, as in "
            f"\"--config.lora.targets=('q_proj','v_proj')\"; got {lora.targets}",
        ),
        (
            lora.base != "int8" or lora.rank > 0 or config.model.adapter != "",
            f"lora.base={lora.base!r} is for weights that stay as they are; set lora.rank, or leave it out",
        ),
        (len(set(lora.targets)) == len(lora.targets), f"lora.targets has a name twice: {lora.targets}"),
        (lora.base in ("dtype", "int8"), f"lora.base must be dtype or int8, got {lora.base!r}"),
        (0 < lora.rate_factor < math.inf, f"lora.rate_factor must be above 0 and finite, got {lora.rate_factor}"),
    ]


def _sampling_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """How tokens are drawn."""
    rollout, sampling = config.rollout, (config.rollout, config.eval)
    return [
        (
            rollout.temperature is None or _divides(rollout.temperature),
            f"rollout.temperature must be finite and at least {LEAST_TEMPERATURE} to learn from, got "
            f"{rollout.temperature}",
        ),
        (
            config.eval.temperature == 0 or _divides(config.eval.temperature),
            f"eval.temperature must be 0, which is greedy, or finite and at least {LEAST_TEMPERATURE}, got "
            f"{config.eval.temperature}",
        ),
        *_stop_rules(config),
        (all(s.top_k >= 0 for s in sampling), "top_k must not be negative; 0 switches it off"),
        (
            all(LEAST_TOP_P <= s.top_p <= 1 for s in sampling),
            f"top_p must be at least {LEAST_TOP_P:.3g} and at most 1, which switches it off, got "
            f"rollout.top_p={rollout.top_p} and eval.top_p={config.eval.top_p}",
        ),
    ]


def _stop_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """When votes stop."""
    rollout, samples, ev = config.rollout, config.train.samples, config.eval
    rules = [
        (0 <= error < 1, f"{key} is an error rate, at least 0 (off) and below 1, such as 0.05; got {error}")
        for key, error in (("rollout.stop_votes", rollout.stop_votes), ("eval.stop_votes", ev.stop_votes))
    ]
    return rules + [
        (
            rollout.stop_votes == 0 or samples < rollout.votes,
            f"rollout.stop_votes={rollout.stop_votes} can stop no vote: train.samples={samples} of rollout.votes="
            f"{rollout.votes} are cast in any case; allow more votes, or set it to 0",
        ),
        (
            ev.stop_votes == 0 or ev.samples > 1,
            f"eval.stop_votes={ev.stop_votes} can stop no vote of eval.samples=1; take more, or set it to 0",
        ),
    ]


def measured_samples(samples: int, stop_votes: float) -> int:
    """How many of eval.samples are measured: all, or with eval.stop_votes the half that is drawn in any case."""
    return -(-samples // 2) if stop_votes else samples


def _divides(temperature: float) -> bool:
    """Whether logits can be divided by a temperature."""
    return LEAST_TEMPERATURE <= temperature < math.inf


def _reward_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """What rewards are made of."""
    reward, rule, judge = config.reward, config.judge.rule, config.judge
    return [
        (
            reward.label in ("majority", "offline", "truth", "random"),
            f"reward.label must be majority, offline, truth or random, got {reward.label!r}",
        ),
        (reward.ties in ("first", "random"), f"reward.ties must be first or random, got {reward.ties!r}"),
        (rule in RULES, f"judge.rule must be one of {', '.join(RULES)}, got {rule!r}"),
        (
            reward.kind is None or reward.kind in OLD_RULES,
            f"reward.kind must be agreement or vote_share, or better unset for judge.rule, got {reward.kind!r}",
        ),
        (
            reward.kind is None or OLD_RULES.get(reward.kind) == rule or rule == "majority",
            f"reward.kind={reward.kind!r}, an older spelling, contradicts judge.rule={rule!r}; leave reward.kind unset",
        ),
        (
            (rule == "majority" and reward.kind != "vote_share") or reward.label == "majority",
            f'judge.rule="{rule if reward.kind is None else reward.kind}" goes by the votes and takes no other labels; '
            f'leave reward.label at "majority", got {reward.label!r}',
        ),
        *(
            (0 <= judge[name] <= 1, f"judge.{name} is a share of the votes, 0 to 1, got {judge[name]}")
            for name in ("gate_share", "gate_margin", "negative_share")
        ),
        (
            -math.inf < judge.no_answer_reward <= 0,
            f"judge.no_answer_reward must be 0 or a finite number below, got {judge.no_answer_reward}",
        ),
        (0 < judge.soft_slope < math.inf, f"judge.soft_slope must be above 0 and finite, got {judge.soft_slope}"),
        (math.isfinite(judge.soft_offset), f"judge.soft_offset must be finite, got {judge.soft_offset}"),
        (
            0 <= reward.format_weight < math.inf,
            f"reward.format_weight must be at least 0 and finite, got {reward.format_weight}",
        ),
        (
            reward.format_weight == 0 or len(reward.format) > 0 or config.task != "",
            f"reward.format_weight={reward.format_weight} has no format to reward; set reward.format, such as "
            "('think', 'answer')",
        ),
    ]


def _algorithm_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """What the algorithms are told, and what does not go with them."""
    algorithm, advantage, critic = config.algorithm, config.train.advantage, config.critic
    outcomes = [name for name, rule in RULES.items() if rule.outcomes]
    added = {
        "reward.format_weight": config.reward.format_weight,
        "judge.no_answer_reward": config.judge.no_answer_reward,
    }
    return [
        (advantage in ("std", "entropic"), f"train.advantage must be std or entropic, got {advantage!r}"),
        (
            advantage == "std" or algorithm == "grpo",
            f'train.advantage={advantage!r} is one of algorithm="grpo"; {algorithm} has its own: leave it at "std"',
        ),
        (critic.trunk in ("own", "policy"), f"critic.trunk must be own or policy, got {critic.trunk!r}"),
        (critic.clip > 0, f"critic.clip must be above 0, got {critic.clip}"),
        (0 <= critic.gamma <= 1, f"critic.gamma must be from 0 to 1, got {critic.gamma}"),
        (0 <= critic.gae_lambda <= 1, f"critic.gae_lambda must be from 0 to 1, got {critic.gae_lambda}"),
        (config.prime.beta > 0, f"prime.beta must be above 0, got {config.prime.beta}"),
        (
            algorithm != "prime" or (config.judge.rule in outcomes and config.reward.kind != "vote_share"),
            f'algorithm="prime" learns from a label for each question; set judge.rule to one of {", ".join(outcomes)}, '
            f"got {config.judge.rule!r}",
        ),
        *(
            (
                algorithm != "prime" or value == 0,
                f'algorithm="prime" learns from outcomes that are 0 or 1; leave {name} at 0, got {value}',
            )
            for name, value in added.items()
        ),
    ]


def _canary_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """What a certificate promises."""
    eps, delta = config.canary.eps, config.canary.delta
    return [
        (0 <= eps < 1, f"canary.eps is a difference of accuracies, at least 0 and below 1, got {eps}"),
        (
            LEAST_DELTA <= delta < 1,
            f"canary.delta is a chance, at least {LEAST_DELTA:g} and below 1, got {delta}",
        ),
    ]


def _number_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """What must be at least 1, or at least 0."""
    rollout, train = config.rollout, config.train
    at_least_one = {
        "prompt.max_tokens": config.prompt.max_tokens,
        "rollout.prompts": rollout.prompts,
        "rollout.votes": rollout.votes,
        "rollout.rows": rollout.rows,
        "solve.steps": config.solve.steps,
        "train.samples": train.samples,
        "train.minibatch_prompts": train.minibatch_prompts,
        "train.micro_tokens": train.micro_tokens,
        "train.chunk_tokens": train.chunk_tokens,
        "prime.minibatch_rows": config.prime.minibatch_rows,
        "eval.samples": config.eval.samples,
        "checkpoint.keep": config.checkpoint.keep,
        "canary.samples": config.canary.samples,
    }
    if rollout.max_tokens is not None:
        at_least_one["rollout.max_tokens"] = rollout.max_tokens
    not_negative = {
        "episodes": config.episodes,
        "data.limit": config.data.limit,
        "data.level": config.data.level,
        "train.learning_rate": train.learning_rate,
        "train.kl_coef": train.kl_coef,
        "train.weight_decay": train.weight_decay,
        "train.grad_clip": train.grad_clip,
        "critic.learning_rate": config.critic.learning_rate,
        "critic.grad_clip": config.critic.grad_clip,
        "prime.learning_rate": config.prime.learning_rate,
        "prime.grad_clip": config.prime.grad_clip,
        "prime.outcome_coef": config.prime.outcome_coef,
        "prime.process_coef": config.prime.process_coef,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "checkpoint.every": config.checkpoint.every,
        "stop.patience": config.stop.patience,
        "solve.replay": config.solve.replay,
        "solve.window": config.solve.window,
        "eval.every": config.eval.every,
        "log.generations_every": config.log.generations_every,
    }
    rules = [(value >= 1, f"{name} must be at least 1, got {value}") for name, value in at_least_one.items()]
    rules += [(value >= 0, f"{name} must not be negative, got {value}") for name, value in not_negative.items()]
    return rules
