"""Test-time reinforcement learning: a model improves itself on questions nobody has labelled (arXiv 2504.16084).

    python -m ttrl_jax.train --config configs/quickstart.py [--config.a.b=value ...] [--workdir runs/quickstart]

Each step: sample many responses to each question, let the majority's answer be the label, reward agreement with it, and
update the model by GRPO, or by the algorithm that the config names. The same command again resumes after the last
checkpoint; on a finished run it prints its table.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ttrl_jax import cli
from ttrl_jax.algorithms import credit
from ttrl_jax.data.problems import truths
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs, facts, identity, introduce, read_inputs, settings_of
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.measure.evaluation import measure, task_keys
from ttrl_jax.measure.evidence import evidence_of
from ttrl_jax.measure.generations import generations
from ttrl_jax.measure.step import Clock, Seen, line_of, step_metrics
from ttrl_jax.measure.summary import report, summarise
from ttrl_jax.measure.tables import headline
from ttrl_jax.model.shapes import parameter_count
from ttrl_jax.model.weights import sha256
from ttrl_jax.programs import trained_models
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw, winners
from ttrl_jax.reward.score import select
from ttrl_jax.run import distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints, Interrupt, check_disk
from ttrl_jax.run.diagnosis import diagnose
from ttrl_jax.run.files import METRICS, Files, require_files
from ttrl_jax.run.metrics import read_lines, write_json, write_jsonl
from ttrl_jax.run.progress import Progress
from ttrl_jax.session import Session, encode, open_session, render, restore, sample, save, step_key, update
from ttrl_jax.tasks.voting import cast_votes, judge_of

Watch = Callable[[str], Callable[[int], None]]  # what is sampled -> what sampling calls with the tokens so far
Evaluations = Sequence[Mapping[str, Any]]  # each {"step": ..., set of questions: numbers, ...}


class Interrupted(Exception):
    """A signal (its number) asked one of the processes to leave, and this is a safe point."""


def define_flags() -> None:
    """The flags of this command."""
    cli.define_config_flag()
    cli.define_process_flags()
    cli.define(flags.DEFINE_string, "workdir", "", "Run folder; default: runs/<config name>.")


def main() -> int:
    began = time.monotonic()

    # ------------------------------------------------------------- inputs: all checked before anything is written
    cli.join_processes()  # all of which run these same lines
    inputs = distributed.together(lambda: read_inputs(cli.config()))
    config, where = inputs.config, flags.FLAGS.workdir or f"runs/{cli.config_name()}"
    workdir = distributed.together(lambda: places.run_folder(where, flag="--workdir"))
    settings, model = settings_of(inputs), identity(inputs)
    distributed.require_same(facts(inputs, settings, model) | {"--workdir": str(workdir)})
    distributed.together(lambda: folder.require_same(workdir, settings, model, flag="--workdir"))
    if (summary := distributed.first(folder.read_summary(workdir))) is not None:
        print(f"{workdir} is finished:\n{report(summary, samples=config.eval.samples, extra_k=config.eval.k)}")
        return 0

    # ------------------------------------------------------------- run folder, and where an earlier process stopped
    logs = {"tensorboard": config.log.tensorboard, "wandb_project": config.log.wandb_project or None}
    distributed.together(lambda: require_files(workdir, flag="--workdir", wandb_project=logs["wandb_project"]))
    distributed.together(lambda: check_disk(workdir, needed_bytes=disk_bytes(inputs)))
    distributed.together(lambda: folder.claim(workdir, settings, model, leader=distributed.leader()))
    checkpoints = Checkpoints(workdir / folder.CHECKPOINTS, keep=config.checkpoint.keep)
    start, total = checkpoints.latest() or 0, inputs.total_steps
    distributed.require_same({"the last checkpoint in --workdir": start})
    with (
        Interrupt() as interrupt,
        checkpoints,
        distributed.together(lambda: Files(workdir, start_step=start, **logs)) as files,
        Progress(total, start=start, title=workdir.name) as progress,
    ):
        watch, clock = watching(interrupt, progress), Clock(progress.phase)
        session = open_session(inputs, say=progress.line, begin=start == 0)
        introduce(inputs, progress.line)
        progress.line(f"budget    {budget(inputs)}")
        progress.line(f"run       {workdir}" + (f", resumed after step {start}" if start else ""))
        history, evaluations, earlier = recall(checkpoints.meta(start)) if start else (History(), (), 0.0)
        session = restore(session, checkpoints, start) if start else session
        drawn = {"votes": config.rollout.votes, "sampling": session.sampling}
        try:
            judge = judge_of(config, session.task, offline=offline_labels(session, workdir, watch))

            # ----------------------------------------------------- the loop
            for step in clock.each(range(start, total)):
                evaluations = evaluate(session, evaluations, files, progress, watch) if due(session) else evaluations
                clock.lap("evaluate")
                batch = inputs.problems.take(step)
                ids, prompts = [problem.index for problem in batch], encode(session, batch)
                rollouts = sample(session, prompts, step_key(session, step), **drawn, progress=watch("sampling"))
                clock.lap("sample")
                ballots = cast_votes(session.task, rollouts.texts)
                evidence = evidence_of(session, prompts, rollouts, judge)
                oracle = truth_classes(ballots, truths(batch), same=judge.same) if by_truth(session) else None
                verdict = judge(ballots, evidence, history, Draw(config.seed, step, ids), labels=oracle)
                verdict = distributed.first(verdict)  # comparing formulas has deadlines, which not every host keeps
                chosen = select(verdict.rewards, samples=config.train.samples)
                rows = train_batch(prompts, rollouts, chosen)
                clock.lap("vote", then="updating")
                session, advantages, credited = credit(session, rows, verdict.take(chosen))
                session, learned = update(session, rows, {"advantages": advantages})
                clock.lap("update")
                visits = history.visits_of(step, ids, ballots, verdict.winners, rollouts.lengths, same=judge.same)
                history = history.add(visits := distributed.first(visits))
                seen = Seen(batch, prompts, rollouts, ballots, verdict, chosen, visits)
                metrics = step_metrics(session, seen, credited | {"update": learned}, clock.laps)
                write(session, files, step, seen, metrics | measured(evaluations, step))
                keep(session, files, checkpoints, history, evaluations, earlier + time.monotonic() - began)
                progress.step(step + 1, f"episode {inputs.problems.episode(step) + 1} | {line_of(metrics)}")
            evaluations = evaluate(session, evaluations, files, progress, watch)
            files.write(total, measured(evaluations, total))
            files.flush()
        except Interrupted as signalled:
            if session.step > start:
                files.flush()
                save(session, checkpoints, meta(history, evaluations, earlier + time.monotonic() - began))
            progress.line(f"interrupted after {session.step} of {total} steps; the same command goes on from there")
            return 128 + signalled.args[0]

    # ------------------------------------------------------------- results
    params_sha256 = sha256(session.state.policy.params)
    ends, seconds = {"steps": total, "params_sha256": params_sha256}, earlier + time.monotonic() - began
    distributed.alone(lambda: conclude(workdir, evaluations, seconds=seconds, **ends))
    summary = distributed.gather(lambda: folder.read_summary(workdir) if distributed.leader() else None)[0]
    print(report(summary, samples=config.eval.samples, extra_k=config.eval.k))
    print(f"{total} steps in {summary['seconds']:.0f} s; everything is in {workdir}")
    return 0


# ---------------------------------------------------------------------- what main remembers beside the arrays


def meta(history: History, evaluations: Evaluations, seconds: float) -> dict[str, Any]:
    """What is saved with each checkpoint; seconds: of all processes that worked on the run."""
    return {"history": history.rows(), "evaluations": list(evaluations), "seconds": seconds}


def recall(saved: Mapping[str, Any]) -> tuple[History, Evaluations, float]:
    """The inverse of `meta`. What was saved before there was a history has none: flips are then unknown until each
    question's second visit from there."""
    visits = saved["history"] if "history" in saved else []
    return History.of(visits), saved["evaluations"], saved["seconds"]


def measured(evaluations: Evaluations, step: int) -> dict[str, float]:
    """The numbers of the evaluation after `step` steps, if there was one, as metrics."""
    return {
        f"eval/{name}/{metric}": x
        for found in evaluations
        if found["step"] == step
        for name, numbers in found.items()
        if name != "step"
        for metric, x in numbers.items()
    }


def offline_labels(session: Session, workdir: Path, watch: Watch) -> dict[int, Answer | None]:
    """For reward.label="offline" the label of each question, by its number, that the votes of the start model give, and
    keep giving; else nothing.

    They are sampled once, as a training step samples, and kept in labels.jsonl with the generations. Raises InputError
    if a run that goes on has lost them: the start model is gone by then.
    """
    config, items, path = session.config, session.problems.items, workdir / "labels.jsonl"
    if config.reward.label != "offline":
        return {}
    if not distributed.first(path.is_file()):
        if session.step:
            raise InputError(f"{path} is missing, without which the run cannot go on; put it back or begin a new run")
        prompts, no_step = encode(session, items), session.inputs.total_steps  # whose key no step has
        drawn = {"votes": config.rollout.votes, "sampling": session.sampling}
        show = watch("voting on all questions")
        rollouts = sample(session, prompts, step_key(session, no_step), **drawn, progress=show)
        ballots = cast_votes(session.task, rollouts.texts)
        won = winners(ballots, Draw(config.seed, no_step, [p.index for p in items]), ties=config.reward.ties)
        made = {"winners": won, "rewards": None, "truths": truths(items), "same": session.task.same}
        rows = generations(items, render(session, items), rollouts, ballots, **made)
        distributed.alone(lambda: write_jsonl(path, rows))
    read = distributed.gather(lambda: path.read_text(encoding="utf-8") if distributed.leader() else "")
    lines = read[0].splitlines()
    labels = [None if (label := json.loads(line)["label"]) is None else Answer(label) for line in lines]
    return {problem.index: label for problem, label in zip(items, labels, strict=True)}


# ---------------------------------------------------------------------- what main does when it is due


def due(session: Session) -> bool:
    """Whether the model is evaluated before its next step."""
    every = session.config.eval.every
    return session.step == 0 or (every > 0 and session.step % every == 0)


def by_truth(session: Session) -> bool:
    """Whether true answers make the labels: the oracle, what they would have given."""
    return session.config.reward.label == "truth"


def evaluate(session: Session, evaluations: Evaluations, files: Files, progress: Progress, watch: Watch) -> Evaluations:
    """Measure the model on every set of questions -> the evaluations with this one. The generations of the first and
    the last are kept."""
    step, found = session.step, {}
    for questions, key in zip(session.inputs.sets, task_keys(session), strict=True):
        result = measure(session, questions, key, progress=watch(f"evaluating {questions.name}"))
        found[questions.name] = result.numbers
        if step in (0, session.inputs.total_steps):
            files.generations(f"eval_{questions.name}_{step:06}", result.rows)
        shown = headline(result.numbers, samples=session.config.eval.samples)
        progress.line(f"evaluation after {step} steps | {questions.name}: {shown}")
    earlier = [each for each in evaluations if each["step"] != step]  # without one from before an interruption
    return (*earlier, {"step": step, **found})


def write(session: Session, files: Files, step: int, seen: Seen, metrics: Mapping[str, float]) -> None:
    """Write what a step has to say down, before the checkpoint: a run that is resumed misses no row."""
    files.write(step, metrics, [vars(visit) for visit in seen.visits])
    every = session.config.log.generations_every
    if every and step % every == 0:
        made = {"winners": seen.verdict.winners, "rewards": seen.verdict.rewards, "same": session.task.same}
        rendered, known = render(session, seen.batch), truths(seen.batch)
        rows = generations(seen.batch, rendered, seen.rollouts, seen.ballots, **made, truths=known)
        files.generations(f"train_{step:06}", rows)


def keep(
    session: Session,
    files: Files,
    checkpoints: Checkpoints,
    history: History,
    evaluations: Evaluations,
    seconds: float,
) -> None:
    """Save a checkpoint at the end of an episode."""
    if session.step % session.problems.steps_per_episode == 0:
        files.flush()
        save(session, checkpoints, meta(history, evaluations, seconds))


def watching(interrupt: Interrupt, progress: Progress) -> Watch:
    """What sampling calls now and then: shows its speed, and leaves if a signal came."""

    def watch(what: str) -> Callable[[int], None]:
        show = progress.tokens(what)

        def tick(tokens: int) -> None:
            if (number := distributed.signalled(interrupt.signum)) is not None:
                raise Interrupted(number)
            show(tokens)

        return tick

    return watch


# ---------------------------------------------------------------------- what main says first


def conclude(workdir: Path, evaluations: Evaluations, *, seconds: float, **ends: Any) -> None:
    """Write the summary, with a diagnosis of all steps, those before a resume too."""
    diagnosis = diagnose(read_lines(workdir / METRICS)[0])
    write_json(workdir / folder.SUMMARY, summarise(evaluations, seconds=seconds, diagnosis=diagnosis, **ends))


def disk_bytes(inputs: Inputs) -> int:
    """Of the checkpoints that are there at once: float32 parameters and Adam's two moments of each model."""
    models = trained_models(inputs.config)
    return (inputs.config.checkpoint.keep + 1) * models * 3 * 4 * parameter_count(inputs.model)


def budget(inputs: Inputs) -> str:
    """How much is trained, and what of the data or the devices is left out."""
    problems, rollout, train = inputs.problems, inputs.config.rollout, inputs.config.train
    said = (
        f"{inputs.total_steps} steps ({inputs.config.episodes} episodes) of {rollout.prompts} questions x "
        f"{rollout.votes} votes, {train.samples} of them trained on by {inputs.config.algorithm}; "
        f"label: {inputs.config.reward.label}"
    )
    if left_out := len(problems) - problems.steps_per_episode * rollout.prompts:
        said += f"; another {left_out} questions are left out of each episode"
    shards, rows = inputs.mesh.shape["data"] * inputs.mesh.shape["fsdp"], train.minibatch_prompts * train.samples
    if shards > rows:
        said += (
            f"\nmesh      {shards} parts (data x fsdp) share {rows} rows of an optimizer step: some devices idle in it"
        )
    return said


if __name__ == "__main__":
    cli.leave(cli.run(main, doc=__doc__, define=define_flags))
