"""Test-time reinforcement learning: a model improves itself on questions nobody has labelled (arXiv 2504.16084).

    python -m ttrl_jax.train --config configs/quickstart.py [--config.a.b=value ...] [--workdir runs/quickstart]

Each step: sample many responses to each question, let the majority's answer be the label, reward agreement with it, and
update the model by GRPO. The same command again resumes after the last checkpoint; on a finished run it prints its
table.
"""

import contextlib
import dataclasses
import json
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from ttrl_jax import build as builder
from ttrl_jax import cli, hosts
from ttrl_jax.data.problems import truths
from ttrl_jax.errors import InputError
from ttrl_jax.learn.advantage import group_normalised
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.measure import generations, headline, in_format, measure, table, task_keys
from ttrl_jax.measure import introduce as introduce_inputs
from ttrl_jax.model.weights import sha256
from ttrl_jax.records import Prompts, Rollouts
from ttrl_jax.reward.audit import audit, truth_classes
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.score import random_classes, score, select, vote_share, with_format
from ttrl_jax.reward.vote import Ballot, classes_of, label_keys, vote, vote_metrics
from ttrl_jax.run import distributed, folder
from ttrl_jax.run.checkpoint import Checkpoints, Interrupt, check_disk
from ttrl_jax.run.diagnosis import Diagnosis, diagnose
from ttrl_jax.run.metrics import MetricsLog, read_lines, write_json, write_jsonl
from ttrl_jax.run.progress import Progress
from ttrl_jax.tasks import OWN

cli.define_config_flag()
cli.define_process_flags()
flags.DEFINE_string("workdir", "", "Run folder; default: runs/<config name>.")


@dataclasses.dataclass
class History:
    """What a run remembers beside the arrays. Saved with each checkpoint."""

    labels: dict[int, str | None] = dataclasses.field(default_factory=dict)  # question -> label at its last visit
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0  # of all processes that worked on the run


class Interrupted(Exception):
    """A signal (its number) asked one of the processes to leave, and this is a safe point."""


def main() -> int:
    began = time.monotonic()

    # ------------------------------------------------------------- the other processes: all run these same lines
    cli.join_processes()
    leader = distributed.leader()  # the one that writes

    # ------------------------------------------------------------- inputs: all checked before anything is written
    inputs = distributed.together(lambda: builder.read_inputs(cli.config()))
    config = inputs.config
    workdir = Path(flags.FLAGS.workdir or f"runs/{cli.config_name()}")
    settings = config.as_configdict().to_dict()
    model = builder.identity(inputs)
    distributed.require_same(hosts.facts(inputs.tasks, settings, model) | {"--workdir": str(workdir)})
    distributed.together(lambda: folder.require_same(workdir, settings, model, flag="--workdir"))
    if (summary := distributed.first(folder.read_summary(workdir))) is not None:
        print(f"{workdir} is finished:\n{report(summary, config)}")
        return 0
    needed_bytes = (config.checkpoint.keep + 1) * builder.state_bytes(inputs.model)
    distributed.together(lambda: check_disk(workdir, needed_bytes=needed_bytes))

    # ------------------------------------------------------------- run folder, and where an earlier process stopped
    distributed.together(lambda: folder.claim(workdir, settings, model) if leader else folder.await_claim(workdir))
    checkpoints = Checkpoints(workdir / folder.CHECKPOINTS, keep=config.checkpoint.keep)
    start = checkpoints.latest() or 0
    distributed.require_same({"the last checkpoint in --workdir": start})
    total = inputs.total_steps
    with (
        Interrupt() as interrupt,
        checkpoints,
        distributed.together(lambda: open_log(config, workdir, start) if leader else contextlib.nullcontext()) as log,
        Progress(total, start=start, title=workdir.name) as progress,
    ):

        def watch(what: str) -> Callable[[int], None]:
            """What sampling calls now and then: shows its speed, and leaves if a signal came."""
            show = progress.tokens(what)

            def tick(tokens: int) -> None:
                if (number := distributed.signalled(interrupt.signum)) is not None:
                    raise Interrupted(number)
                show(tokens)

            return tick

        # --------------------------------------------------------- model, optimizer, random keys
        parts = builder.build(config, inputs, progress.line)
        train_key = jax.random.fold_in(jax.random.key(config.seed), 0)
        eval_keys = task_keys(config.seed, len(inputs.tasks))
        introduce(config, inputs, workdir, start, progress.line)
        state, history = parts.state, History()
        if start:
            jax.tree.map(lambda leaf: leaf.delete(), state)  # two states at once may be more than fits
            state = checkpoints.restore(start, parts.state_layout)
            history = restore_history(checkpoints.meta(start))
        earlier_seconds = history.seconds

        def evaluate(step: int) -> dict[str, float]:
            """Measure the model after `step` steps on every task; the generations of the first and last are kept."""
            found = {}
            for task, key in zip(inputs.tasks, eval_keys, strict=True):
                result = measure(
                    task,
                    parts,
                    state.params,
                    key,
                    extra_k=config.eval.k,
                    greedy=config.eval.greedy,
                    progress=watch(f"evaluating {task.name}"),
                )
                found[task.name] = result.numbers
                if leader and step in (0, total):
                    write_jsonl(workdir / "rollouts" / f"eval_{task.name}_{step:06}.jsonl", result.rows)
                shown = headline(result.numbers, samples=config.eval.samples)
                progress.line(f"evaluation after {step} steps | {task.name}: {shown}")
            earlier = [each for each in history.evaluations if each["step"] != step]  # from before an interruption
            history.evaluations = [*earlier, {"step": step, **found}]
            return {f"eval/{task}/{name}": x for task, numbers in found.items() for name, x in numbers.items()}

        # --------------------------------------------------------- the loop
        step, clock = start, Clock()
        try:
            offline = {}
            if config.reward.label == "offline":
                key = jax.random.fold_in(train_key, total)  # no step has this one
                show = watch("voting on all questions")
                offline = offline_labels(config, inputs, parts, workdir, key, show, resumed=start > 0)
            for step in range(start, total):
                clock.laps.clear()
                due = step == 0 or config.eval.every and step % config.eval.every == 0
                measured = evaluate(step) if due else {}
                clock.lap("evaluate")

                key = jax.random.fold_in(train_key, step)
                batch = inputs.problems.take(step)
                prompts = parts.encode(batch)
                rollouts, texts = parts.sample(state.params, prompts, key, progress=watch("sampling"))
                clock.lap("sample")

                ids = [problem.index for problem in batch]
                answers, ballots = cast_votes(texts, parts, config, step=step, ids=ids)
                labels = [ballot.label for ballot in ballots]
                if config.reward.label == "offline":  # the baseline: what the start model's votes give
                    labels = classes_of(ballots, [offline[i] for i in ids])
                if config.reward.label == "truth":  # the oracle: what true labels would have given
                    labels = truth_classes(ballots, truths(batch))
                if config.reward.label == "random":  # the control: what rewards without information give
                    labels = random_classes(ballots, seed=config.seed, step=step, ids=ids)
                labels = distributed.first(labels)  # comparing formulas has deadlines, which not every host keeps
                rewards = vote_share(ballots) if config.reward.kind == "vote_share" else score(ballots, labels)
                formed = in_format(texts, parts.in_format)
                if formed is not None:
                    rewards = with_format(rewards, formed, weight=config.reward.format_weight)
                chosen = select(rewards, samples=config.train.samples)
                advantages = group_normalised(np.take_along_axis(rewards, chosen, 1))
                clock.lap("vote")

                progress.phase("updating")
                rows = train_batch(prompts, rollouts, chosen, advantages)
                state, learned = parts.update(state, rows, parts.learning_rate(step))
                clock.lap("update")

                votes = vote_metrics(ballots, rewards, chosen, history.labels, ids=ids)
                votes |= {} if formed is None else {"format_rate": float(formed.mean())}
                audited = audit(ballots, labels, rewards, chosen, truths(batch)) if truths(batch) else {}
                history.labels |= dict(zip(ids, label_keys(ballots), strict=True))
                if leader and config.log.generations_every and step % config.log.generations_every == 0:
                    rendered = parts.render(batch)
                    rows = generations(batch, rendered, texts, answers, ballots, rollouts, rewards, truths(batch))
                    write_jsonl(workdir / "rollouts" / f"train_{step:06}.jsonl", rows)
                metrics = (
                    measured
                    | named("vote", votes)
                    | named("audit", audited)
                    | named("update", learned | {"learning_rate": parts.learning_rate(step)})
                    | named("advantage", spread(advantages))
                    | named("length", lengths(prompts, rollouts))
                    | named("time", clock.laps | {"compile": parts.compile_seconds()})
                    | named("speed", speed(rollouts, clock.laps["sample"]))
                    | named("memory", {"peak_gb": peak_memory_gb()})
                )
                if leader:
                    log.write(step, metrics)  # before the checkpoint, so that a resumed run misses no row
                if (step + 1) % inputs.problems.steps_per_episode == 0:
                    history.seconds = earlier_seconds + time.monotonic() - began
                    checkpoints.save(step + 1, state, dataclasses.asdict(history))
                    clock.lap("save")
                progress.step(step + 1, line_of(inputs.problems.episode(step), votes, audited, learned))
            step = total
            last = evaluate(total)
            if leader:
                log.write(total, last)
        except Interrupted as signalled:
            history.seconds = earlier_seconds + time.monotonic() - began
            if step > start:
                checkpoints.save(step, state, dataclasses.asdict(history))
            progress.line(f"interrupted after {step} of {total} steps; the same command goes on from there")
            return 128 + signalled.args[0]

    # ------------------------------------------------------------- results
    params_sha256 = sha256(state.params)
    if not leader:
        return 0
    diagnosis = diagnose(read_lines(workdir / "metrics.jsonl")[0])  # of all steps, those before a resume too
    seconds = earlier_seconds + time.monotonic() - began
    summary = summarise(history, total, params_sha256, seconds, diagnosis)
    write_json(workdir / folder.SUMMARY, summary)
    print(report(summary, config))
    print(f"{total} steps in {summary['seconds']:.0f} s; everything is in {workdir}")
    return 0


# ---------------------------------------------------------------------- what main asks once


def offline_labels(
    config: Any,
    inputs: builder.Inputs,
    parts: builder.Parts,
    workdir: Path,
    key: jax.Array,
    progress: Callable[[int], None],
    *,
    resumed: bool,
) -> dict[int, Answer | None]:
    """The label of each question, by its index, that the votes of the start model give, and keep giving.

    They are sampled once, as a training step samples, and kept in labels.jsonl with the generations. Raises InputError
    if a run that goes on has lost them: the start model is gone by then.
    """
    path, items = workdir / "labels.jsonl", inputs.problems.items
    if not distributed.first(path.is_file()):
        if resumed:
            raise InputError(f"{path} is missing, without which the run cannot go on; put it back or begin a new run")
        rollouts, texts = parts.sample(parts.state.params, parts.encode(items), key, progress=progress)
        ids = [problem.index for problem in items]
        answers, ballots = cast_votes(texts, parts, config, step=inputs.total_steps, ids=ids)
        rows = generations(items, parts.render(items), texts, answers, ballots, rollouts, None, truths(items))
        if distributed.leader():
            write_jsonl(path, rows)
    lines = distributed.first(path.read_text(encoding="utf-8") if distributed.leader() else "").splitlines()
    labels = [None if (label := json.loads(line)["label"]) is None else Answer(label) for line in lines]
    return {problem.index: label for problem, label in zip(items, labels, strict=True)}


def cast_votes(
    texts: Sequence[Sequence[str]], parts: builder.Parts, config: Any, *, step: int, ids: Sequence[int]
) -> tuple[list[list[Answer | None]], list[Ballot]]:
    """The answers in the responses to the questions `ids`, and the ballots on them, with ties as the config has them.
    With several processes each reads a share of the questions."""

    def read(question: int) -> tuple[list[Answer | None], Ballot]:
        answers = [parts.extract(text) for text in texts[question]]
        draw = (config.seed, step, ids[question]) if config.reward.ties == "random" else None
        return answers, vote(answers, draw=draw)

    found = distributed.each(read, range(len(ids)))
    return [answers for answers, _ in found], [ballot for _, ballot in found]


def open_log(config: Any, workdir: Path, start: int) -> MetricsLog:
    """The metrics of a run that goes on after step `start`."""
    project = config.log.wandb_project or None
    return MetricsLog(workdir, start_step=start, tensorboard=config.log.tensorboard, wandb_project=project)


# ---------------------------------------------------------------------- what main says


def introduce(config: Any, inputs: builder.Inputs, workdir: Path, start: int, say: Callable[[str], None]) -> None:
    """Print what was resolved: the inputs, the budget, and the run folder."""
    problems, rollout = inputs.problems, config.rollout
    introduce_inputs(inputs, say)
    left_out = len(problems) - problems.steps_per_episode * rollout.prompts
    say(
        f"budget    {inputs.total_steps} steps ({config.episodes} episodes) of {rollout.prompts} questions x "
        f"{rollout.votes} votes, {config.train.samples} of them trained on; label: {config.reward.label}"
        + (f"; another {left_out} questions are left out of each episode" if left_out else "")
    )
    sizes, rows = inputs.mesh.shape, config.train.minibatch_prompts * config.train.samples
    shards = sizes["data"] * sizes["fsdp"]
    if shards > rows:
        say(f"mesh      {shards} parts (data x fsdp) share {rows} rows of an optimizer step: some devices idle in it")
    say(f"run       {workdir}" + (f", resumed after step {start}" if start else ""))


def line_of(episode: int, votes: dict[str, float], audited: dict[str, float], learned: dict[str, float]) -> str:
    """One line on a training step."""
    shown = {"majority ratio": votes["majority_ratio"], "reward": votes["majority_voting_reward"]}
    if audited:
        shown |= {"label accuracy": audited["label_accuracy"], "reward accuracy": audited["reward_accuracy"]}
    if "entropy" in learned:  # unknown where no row was computed
        shown["entropy"] = learned["entropy"]
    shown["grad norm"] = learned["grad_norm"]
    return f"episode {episode + 1} | " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items())


def summarise(history: History, steps: int, params_sha256: str, seconds: float, diagnosis: Diagnosis) -> dict[str, Any]:
    """The content of summary.json: the first and last evaluation, the diagnosis, and what identifies the result."""
    first, last = history.evaluations[0], history.evaluations[-1]
    summary = {}
    for task in [name for name in first if name != "step"]:
        prefix = "" if task == OWN else f"{task}_"
        summary |= {f"{prefix}before": first[task], f"{prefix}after": last[task]}
    summary |= {"verdict": diagnosis.verdict, "diagnosis": diagnosis.text}
    return summary | {"seconds": round(seconds, 1), "steps": steps, "params_sha256": params_sha256}


def report(summary: dict[str, Any], config: Any) -> str:
    """What a run ends with: the table of every evaluation in its summary, and the diagnosis."""
    columns = {name.replace("_", " "): numbers for name, numbers in summary.items() if isinstance(numbers, dict)}
    shown = table(columns, samples=config.eval.samples, extra_k=config.eval.k)
    diagnosis = Diagnosis(summary["verdict"], summary["diagnosis"])
    return f"{shown}\n{textwrap.fill(f'diagnosis: {diagnosis}', 120)}"


# ---------------------------------------------------------------------- what main measures


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


def named(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "max": float(values.max()), "min": float(values.min())}


def speed(rollouts: Rollouts, seconds: float) -> dict[str, float]:
    """Of sampling: tokens a second, and the share of the slots' steps that drew one (none where all end at once)."""
    found = {"sample_tokens_per_s": float(rollouts.lengths.sum() / seconds)}
    if rollouts.slot_steps:
        found["slot_use"] = float((rollouts.lengths - 1).sum() / rollouts.slot_steps)
    return found


def lengths(prompts: Prompts, rollouts: Rollouts) -> dict[str, float]:
    """Token counts of prompts and of all responses."""
    found = {"truncation_rate": float(rollouts.truncated.mean()), "generated_tokens": int(rollouts.lengths.sum())}
    for name, values in (("response", rollouts.lengths), ("prompt", prompts.lengths)):
        found |= {f"{name}_{which}": value for which, value in spread(values).items()}
    return found


def peak_memory_gb() -> float:
    """The most memory held so far: of the first device where it says so, else of this process on the host."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * (1 if sys.platform == "darwin" else 1024) / 1e9


def restore_history(meta: dict[str, Any]) -> History:
    """From a checkpoint's JSON, where the keys of `labels` have become text."""
    return History(**(meta | {"labels": {int(index): label for index, label in meta["labels"].items()}}))


if __name__ == "__main__":
    sys.exit(cli.run(main, doc=__doc__))
