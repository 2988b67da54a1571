"""From rewards of samples to advantages of tokens: the algorithms of figure 5 of the paper, and the models that PPO and
PRIME train beside the policy."""

from collections.abc import Callable
from functools import partial

import numpy as np

from ttrl_jax.learn import credit as rules
from ttrl_jax.records import CRITIC, PROCESS, TrainBatch
from ttrl_jax.reward.judge import Verdict
from ttrl_jax.session import Session, learn, score

Found = dict[str, dict[str, float]]  # what is worth logging, by group: "advantage", "critic", "process"
Credited = tuple[Session, np.ndarray, Found]


def credit(session: Session, rows: TrainBatch, verdict: Verdict) -> Credited:
    """Compute advantages, float32 [R, T'], with the algorithm of the config.

    rows: the samples that are trained on. verdict: the verdict on them. PPO's critic and PRIME's process model are
    trained here, before the policy, as in the reference: the session that is returned has them. The arrays of `session`
    are used up then.
    """
    return ALGORITHMS[session.config.algorithm](session, rows, verdict)


def _of_groups(session: Session, rows: TrainBatch, verdict: Verdict, *, rule: Callable | None = None) -> Credited:
    """No model beside the policy: each reward against its own group."""
    rule = rule or GRPO[session.config.train.advantage]
    advantages, spread = rules.of_groups(verdict, rows.mask, rule)
    return session, advantages, {"advantage": spread}


def _ppo(session: Session, rows: TrainBatch, verdict: Verdict) -> Credited:
    """Values before the critic's update make both the advantages and its targets."""
    critic = session.config.critic
    values = np.asarray(score(session, rows, model=CRITIC))
    advantages, returns, found = rules.ppo(verdict, rows.mask, values, gamma=critic.gamma, lam=critic.gae_lambda)
    session, learned, _ = learn(session, CRITIC, rows, {"returns": returns, "old": values})
    return session, advantages, found | {"critic": found["critic"] | learned}


def _prime(session: Session, rows: TrainBatch, verdict: Verdict) -> Credited:
    """The process model learns the outcomes; what it says of each token while it does is the token's reward."""
    config, prime = session.config, session.config.prime
    if len(rows.mask) > (made_for := config.rollout.prompts * config.train.samples):
        raise ValueError(f"PRIME learns on rollout.prompts x train.samples = {made_for} rows, got {len(rows.mask)}")
    outcome = verdict.rewards.reshape(-1, 1) * rows.mask
    row = np.arange(len(rows.mask), dtype=np.float32)[:, None] * rows.mask
    session, learned, log_ratios = learn(session, PROCESS, rows, {"outcome": outcome, "row": row})
    advantages, found = rules.prime(
        verdict,
        rows.mask,
        np.asarray(log_ratios),
        beta=prime.beta,
        outcome_coef=prime.outcome_coef,
        process_coef=prime.process_coef,
    )
    return session, advantages, found | {"process": found["process"] | learned}


GRPO = {"std": rules.group_normalised, "entropic": rules.entropic}
ALGORITHMS: dict[str, Callable[[Session, TrainBatch, Verdict], Credited]] = {
    "grpo": _of_groups,
    "dr_grpo": partial(_of_groups, rule=rules.centred),
    "rloo": partial(_of_groups, rule=rules.leave_one_out),
    "ppo": _ppo,
    "prime": _prime,
}
