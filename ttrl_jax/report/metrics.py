"""Which metrics of training the page shows, in which order, and how they are called."""

from collections.abc import Iterable

# group -> metric -> (title, axis); an axis named share is drawn from 0 to 1
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Correctness": {
        "audit/votes_ground_truth_reward": ("Correct responses, of all votes", "share"),
        "audit/label_accuracy": ("Labels that are the truth", "share"),
        "audit/reward_accuracy": ("Rewards as the truth would give", "share"),
        "audit/hit_ratio": ("Hit ratio: right rewards under a wrong label", "share"),
    },
    "Votes": {
        "vote/majority_ratio": ("Majority ratio: votes for the winner", "share"),
        "vote/flip_rate": ("Labels that flipped since the last visit", "share"),
        "vote/no_answer_rate": ("Responses without an answer", "share"),
        "vote/vote_entropy": ("Vote entropy", "nats"),
        "vote/runner_up_margin": ("Winner less runner-up", "share"),
        "vote/distinct_answers": ("Different answers to a question", "answers"),
        "vote/tie_rate": ("Ties for the label", "share"),
        "vote/unanimous": ("Unanimous questions", "share"),
        "vote/distinct_labels": ("Different labels of a step's questions", "share"),
        "vote/no_label_rate": ("Questions without any answer", "share"),
        "judge/unlabelled_rate": ("Questions that the judge gave no label", "share"),
        "vote/zero_advantage_groups": ("Questions without a gradient", "share"),
        "vote/drawn_share": ("Votes that were needed, of those allowed", "share"),
    },
    "Reward and format": {
        "vote/rewards/mean": ("Reward, of the trained samples", "reward"),
        "vote/accuracy_reward": ("Accuracy reward alone: agreement with the label", "share"),
        "vote/format_rate": ("Responses in the format", "share"),
        "audit/ground_truth_reward": ("Correct responses, of the trained samples", "share"),
        "audit/point_biserial_correlation": ("Correlation of reward and correctness", "correlation"),
    },
    "Update": {
        "update/loss": ("Loss, with KL term and entropy bonus", "loss"),
        "update/policy_loss": ("Policy loss", "loss"),
        "update/learning_rate": ("Learning rate", "learning rate"),
        "update/kl": ("KL from the start, k3", "nats a token"),
        "update/entropy": ("Entropy of the next token", "nats"),
        "update/grad_norm": ("Gradient norm, before clipping", "norm"),
        "update/clip_fraction": ("Tokens where a clip decided", "share"),
        "update/approx_kl": ("Old less new log-prob", "nats a token"),
        "update/ratio_max": ("Largest probability ratio", "ratio"),
        "update/logp_gap": ("Sampler's log-probs against training's", "nats"),
    },
    "Responses": {
        "length/response_mean": ("Response length, mean", "tokens"),
        "length/truncation_rate": ("Responses that met the limit", "share"),
        "length/response_max": ("Response length, longest", "tokens"),
        "length/generated_tokens": ("Tokens of the step's responses", "tokens"),
    },
    "Time and memory": {
        "time/sample": ("Sampling", "seconds"),
        "time/update": ("Update", "seconds"),
        "time/vote": ("Voting", "seconds"),
        "time/evaluate": ("Evaluation", "seconds"),
        "speed/sample_tokens_per_s": ("Speed of sampling", "tokens a second"),
        "memory/peak_gb": ("Most memory so far", "GB"),
    },
}
OPEN = ("Correctness", "Votes")  # the others are folded
MAIN = 3  # charts of a group that stand first; its others are folded
OTHER = "Everything else"
_KNOWN = {name for group in GROUPS.values() for name in group}


def groups_of(names: Iterable[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """Those of GROUPS that have one of these metrics, with these alone; the rest as a group of its own."""
    names = dict.fromkeys(names)
    found = {title: {name: shown for name, shown in group.items() if name in names} for title, group in GROUPS.items()}
    rest = sorted(name for name in names if name not in _KNOWN and not name.startswith("eval/") and name != "step")
    found[OTHER] = {name: (name, _axis(name)) for name in rest}
    return {title: group for title, group in found.items() if group}


def _axis(name: str) -> str:
    if name.startswith("time/"):
        return "seconds"
    return "share" if name.endswith("_rate") or "/pass@" in name or name.endswith("accuracy") else "value"
