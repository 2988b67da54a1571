"""Test-time reinforcement learning: a model improves itself on questions nobody has labelled (arXiv 2504.16084).

    python -m ttrl_jax.train --config configs/quickstart.py [--config.a.b=value ...] [--workdir runs/quickstart]

Each step: sample many responses to each question, let the majority's answer be the label, reward agreement with it, and
update the model by GRPO, or by the algorithm that the config names. The same command again resumes after the last
checkpoint; on a finished run it prints its table.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.TRAIN, doc=__doc__)

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from absl import flags

from ttrl_jax import cli
from ttrl_jax.algorithms import credit
from ttrl_jax.check import measured_samples
from ttrl_jax.data.problems import truths
from ttrl_jax.inputs import Inputs, facts, identity, introduce, read_inputs
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.measure import canary
from ttrl_jax.measure.evaluation import measure, task_keys
from ttrl_jax.measure.evidence import evidence_of
from ttrl_jax.measure.first import example, require_answers
from ttrl_jax.measure.generations import generations, spelling, undecided
from ttrl_jax.measure.start_votes import easy_first, offline_labels, start_votes
from ttrl_jax.measure.step import Clock, Seen, line_of, step_metrics
from ttrl_jax.measure.summary import next_commands, report, summarise
from ttrl_jax.measure.tables import headline
from ttrl_jax.model.weights import sha256
from ttrl_jax.prepare import prepare
from ttrl_jax.programs import itemsizes, trained_bytes, trained_parameters
from ttrl_jax.resume import Evaluations, Past, as_begun, finished, go_on, nothing_left, resume, take
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw
from ttrl_jax.reward.score import select
from ttrl_jax.run import choice, distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints, check_disk, size
from ttrl_jax.run.diagnosis import diagnose
from ttrl_jax.run.files import METRICS, Files, require_files
from ttrl_jax.run.interrupt import Interrupt, Interrupted
from ttrl_jax.run.metrics import read_lines, write_json
from ttrl_jax.run.patience import weary
from ttrl_jax.run.progress import Progress
from ttrl_jax.run.visits import read_visits
from ttrl_jax.session import Session, encode, render, sample, save, step_key, update
from ttrl_jax.tasks.hearing import stop_of
from ttrl_jax.tasks.sets import OWN
from ttrl_jax.tasks.voting import cast_votes, judge_of

# What is sampled -> what sampling calls with the tokens so far and the share of the responses that have ended.
Watch = Callable[[str], Callable[[int, float], None]]


def main() -> int:
    began = time.monotonic()

    # ------------------------------------------------------------- inputs: all checked before anything is written
    cli.join_processes()  # all of which run these same lines
    inputs, workdir = distributed.together(find_inputs)
    config, total, run = inputs.config, inputs.total_steps, identity(inputs)
    shown = {"samples": measured_samples(config.eval.samples, config.eval.stop_votes), "extra_k": config.eval.k}
    distributed.require_same(facts(inputs, run) | {"--workdir": str(workdir)})
    same = {"defaults": commands.defaults(), "flag": "--workdir"}
    changes = distributed.together(lambda: folder.require_same(workdir, run, **same))
    summary, patience = distributed.gather(lambda: finished(workdir))[0], config.stop.patience
    if summary is not None and nothing_left(summary, total=total, patience=patience, changes=changes):
        print(f"{workdir} is finished:\n{report(summary, **shown)}")
        return 0

    # ------------------------------------------------------------- run folder, and where an earlier process stopped
    logs = {"tensorboard": config.log.tensorboard, "wandb_project": config.log.wandb_project or None}
    distributed.together(lambda: require_files(workdir, flag="--workdir", wandb_project=logs["wandb_project"]))
    distributed.together(lambda: check_disk(workdir / folder.CHECKPOINTS, needed_bytes=disk_bytes(inputs)))
    with (
        distributed.together(lambda: take(workdir, run)),
        Interrupt() as interrupt,
        Checkpoints(workdir / folder.CHECKPOINTS, keep=config.checkpoint.keep) as checkpoints,
        Progress(total, title=workdir.name, compiles=config.log.compiles) as progress,
    ):
        with interrupt.at_once():
            session, past = resume(inputs, checkpoints, say=progress.line, compiling=progress.compiling)
        progress.resumed(session.step)
        lines, longer = changes.lines(step=session.step, total=total), "episodes" in changes.keys
        longer_since = distributed.gather(lambda: go_on(workdir, run, lines, step=session.step, longer=longer))[0]
        with distributed.together(
            lambda: Files(workdir, start_step=session.step, config=commands.flat(run.config), **logs)
        ) as files:
            introduce(inputs, progress.line)
            for line in said_first(session, workdir, lines):
                progress.line(line)
            opened = Opened(workdir, files, checkpoints, interrupt, progress, began, longer_since)
            session, past = train(session, past, opened)

    # ------------------------------------------------------------- results
    seconds, ends = past.seconds + time.monotonic() - began, {"steps": session.step}
    ends["stopped"] = stopped(session, past.history, opened) if session.step < total else None
    ends["params_sha256"] = sha256(session.state.policy.params)
    distributed.alone(lambda: conclude(workdir, past.evaluations, seconds=seconds, **ends))
    summary = distributed.gather(lambda: folder.read_summary(workdir) if distributed.leader() else None)[0]
    print(report(summary, **shown))
    print(f"{session.step} steps in {summary['seconds']:.0f} s; everything is in {workdir}. Next:")
    for line in next_commands(workdir, summary, adapters=config.lora.rank > 0):
        print(f"  {line}")
    return 0


def find_inputs() -> tuple[Inputs, Path]:
    """What the flags ask for, checked, and the run folder. Raises InputError."""
    config, given = commands.config(), commands.given()
    workdir = places.run_folder(flags.FLAGS.workdir or f"runs/{commands.config_name()}", flag="--workdir")
    inputs = read_inputs(as_begun(config, workdir, given=given), given=given)
    canary.require_enough(inputs)
    return inputs, workdir


@dataclass(frozen=True)
class Opened:
    """What is open while a run goes on."""

    workdir: Path
    files: Files
    checkpoints: Checkpoints
    interrupt: Interrupt
    progress: Progress
    since: float  # when this process began, as time.monotonic() has it
    longer_since: int  # the step at which the run was last made longer, from which stop.patience counts


def train(session: Session, past: Past, opened: Opened) -> tuple[Session, Past]:
    """Test-time reinforcement learning up to the last step, or an early stop. Raises Interrupted once it has saved."""
    config, start, total = session.config, session.step, session.inputs.total_steps
    interrupt, files, progress = opened.interrupt, opened.files, opened.progress
    watch, clock = watching(interrupt, progress), Clock(progress.phase)
    drawn = {"votes": config.rollout.votes, "sampling": session.sampling}
    stops = {"error": config.rollout.stop_votes, "least": config.train.samples}
    history, evaluations, started = past.history, past.evaluations, (session, past)
    try:
        with interrupt.at_once(session.state):
            prepare(session, say=progress.line)
            voted = start_votes(session, opened.workdir, progress=watch)
            judge = judge_of(config, session.task, offline=offline_labels(voted, session.problems.items))
            batches = easy_first(session.problems, voted)
            canary.begin(session, opened.workdir, progress=watch("measuring the start on the canaries"))

        # ----------------------------------------------------- the loop
        for step in clock.each(range(start, total)):
            started = session, Past(history, evaluations, past.seconds)
            if stopped(session, history, opened):
                break
            with interrupt.at_once(session.state):
                evaluations = evaluate(session, evaluations, files, progress, watch) if due(session) else evaluations
                clock.lap("evaluate")
                batch = batches.take(step)
                ids, prompts = [problem.index for problem in batch], encode(session, batch)
                way = drawn | {"stop": stop_of(session.task, batch, **stops), "progress": watch("sampling")}
                rollouts = sample(session, prompts, step_key(session, step), **way)
                clock.lap("sample")
                ballots = cast_votes(session.task, rollouts.texts, questions=[problem.question for problem in batch])
                evidence = evidence_of(session, prompts, rollouts, judge)
                oracle = truth_classes(ballots, truths(batch), same=judge.same) if by_truth(session) else None
                verdict = judge(ballots, evidence, history, Draw(config.seed, step, ids), labels=oracle)
                verdict = distributed.first(verdict)  # comparing formulas has deadlines, which not every host keeps
                chosen = select(verdict.rewards, samples=config.train.samples)
                rows = train_batch(prompts, rollouts, chosen)
                clock.lap("vote", then="updating", next_lap="update")
                session, advantages, credited = credit(session, rows, verdict.take(chosen))
                session, learned = update(session, rows, {"advantages": advantages})
                clock.lap("update")
            visits = history.visits_of(step, ids, ballots, verdict.winners, rollouts.lengths, same=judge.same)
            history = history.add(visits := distributed.first(visits))
            seen = Seen(batch, prompts, rollouts, ballots, evidence, verdict, chosen, visits)
            metrics = step_metrics(session, seen, credited | {"update": learned}, clock.laps)
            write(session, files, step, seen, metrics | measured(evaluations, step))
            keep(session, opened, Past(history, evaluations, past.seconds))
            progress.step(step + 1, f"episode {batches.episode(step) + 1} | {line_of(metrics)}")
        started = session, Past(history, evaluations, past.seconds)
        with interrupt.at_once(session.state):
            evaluations = evaluate(session, evaluations, files, progress, watch, last=True)
            canary.end(session, opened.workdir, progress=watch("measuring the trained model on the canaries"))
        files.write(session.step, measured(evaluations, session.step))
        files.flush()
    except Interrupted:
        session, past = started
        if session.step > start:
            keep(session, opened, past, now=True)
        progress.line(f"interrupted after {session.step} of {total} steps; {what_now(session)}")
        raise
    return session, Past(history, evaluations, past.seconds)


# ---------------------------------------------------------------------- what the loop remembers


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


# ---------------------------------------------------------------------- what main does when it is due


def due(session: Session) -> bool:
    """Whether the model is evaluated before its next step."""
    every = session.config.eval.every
    return session.step == 0 or (every > 0 and session.step % every == 0)


def stopped(session: Session, history: History, opened: Opened) -> dict[str, int] | None:
    """Why the run stops before its next step: its patience, and the model that it has waited beside; None: it goes
    on."""
    patience, episode = session.config.stop.patience, session.problems.steps_per_episode
    if not patience or session.step % episode:
        return None
    best = weary(history.rows(), episode=episode, patience=patience, since=opened.longer_since)
    return None if best is None else {"patience": patience, "best": best}


def by_truth(session: Session) -> bool:
    """Whether true answers make the labels: the oracle, what they would have given."""
    return session.config.reward.label == "truth"


def evaluate(
    session: Session, evaluations: Evaluations, files: Files, progress: Progress, watch: Watch, *, last: bool = False
) -> Evaluations:
    """Measure the model on every set of questions -> the evaluations with this one. The generations of the first and
    the `last` are kept. Raises InputError where the first has hardly any answers."""
    step, config, found = session.step, session.config, {}
    for questions, key in zip(session.inputs.sets, task_keys(session), strict=True):
        result = measure(session, questions, key, progress=watch(f"evaluating {questions.name}"))
        found[questions.name] = result.numbers
        files.undecided({"step": step, "set": questions.name} | row for row in result.undecided)
        rows = result.rows() if (last or step == 0) and distributed.leader() else []
        if rows:
            files.generations(f"eval_{questions.name}", step, rows)
        shown = headline(result.numbers, samples=measured_samples(config.eval.samples, config.eval.stop_votes))
        progress.line(f"evaluation after {step} steps | {questions.name}: {shown}")
        if step == 0 and questions.name == OWN:
            for line in example(rows[0]) if rows else []:
                progress.line(line)
            if session.inputs.total_steps:
                require_answers(result.numbers, config)
    earlier = [each for each in evaluations if each["step"] != step]  # without one from before an interruption
    return (*earlier, {"step": step, **found})


def write(session: Session, files: Files, step: int, seen: Seen, metrics: Mapping[str, float]) -> None:
    """Write what a step has to say down, before the checkpoint: a run that is resumed misses no row."""
    files.undecided(undecided(seen.batch, seen.ballots, step=step))
    files.write(step, metrics, [vars(visit) for visit in seen.visits])
    every = session.config.log.generations_every
    if every and step % every == 0 and distributed.leader():
        verdict, rendered, known = seen.verdict, render(session, seen.batch), truths(seen.batch)
        made = {"labels": verdict.labels, "winners": verdict.winners, "rewards": verdict.rewards, "truths": known}
        made |= {"formed": seen.evidence.in_format, "spelled": spelling(session)}
        rows = generations(seen.batch, rendered, seen.rollouts, seen.ballots, **made, same=session.task.same)
        files.generations("train", step, rows)


def keep(session: Session, opened: Opened, past: Past, *, now: bool = False) -> None:
    """Save a checkpoint at the end of an episode, and where the last one is longer ago than checkpoint.every; `now`: in
    any case, and wait for it."""
    every, at_end = session.config.checkpoint.every, session.step % session.problems.steps_per_episode == 0
    if now or at_end or (every and distributed.first(opened.checkpoints.seconds_since() >= 60 * every)):
        opened.files.flush()
        seconds = past.seconds + time.monotonic() - opened.since
        meta, most = replace(past, seconds=seconds).meta(), session.config.checkpoint.keep_best
        ways = {"episode": session.problems.steps_per_episode, "most": most}
        best = choice.best(meta["history"], opened.checkpoints.steps(), **ways) if most else ()
        save(session, opened.checkpoints, meta, best=best)
    if now:  # the others leave as well: Orbax may meet them
        opened.checkpoints.wait()


def conclude(workdir: Path, evaluations: Evaluations, *, seconds: float, **ends: Any) -> None:
    """Write the summary, with a diagnosis of all steps, those before a resume too."""
    ends["diagnosis"] = diagnose(read_lines(workdir / METRICS)[0], read_visits(workdir))
    ends["certificate"] = canary.outcome(workdir, step=ends["steps"])
    write_json(workdir / folder.SUMMARY, summarise(evaluations, seconds=seconds, **ends))


def watching(interrupt: Interrupt, progress: Progress) -> Watch:
    """What sampling calls now and then: shows its speed, and leaves if a signal came."""

    def watch(what: str) -> Callable[[int, float], None]:
        show = progress.tokens(what)

        def tick(tokens: int, share: float) -> None:
            if (number := distributed.signalled(interrupt.signum)) is not None:
                raise Interrupted(number)
            show(tokens, share)

        return tick

    return watch


# ---------------------------------------------------------------------- what main says first


def checkpoint_bytes(inputs: Inputs) -> int:
    """Of one: parameters and Adam's two moments of each model that is trained, or the policy's parameters."""
    if inputs.config.checkpoint.weights_only:
        return itemsizes(inputs.config)[0] * trained_parameters(inputs.model)
    return trained_bytes(inputs.config, inputs.model)


def disk_bytes(inputs: Inputs) -> int:
    """Of the checkpoints that are there at once: those that are kept, and one that is being written."""
    kept = inputs.config.checkpoint
    return (kept.keep + kept.keep_best + 1) * checkpoint_bytes(inputs)


def said_first(session: Session, workdir: Path, changes: Sequence[str]) -> list[str]:
    """What is trained, where it is saved, and what is other than it was."""
    inputs, kept, per_episode = session.inputs, session.config.checkpoint, session.problems.steps_per_episode
    each = f"of {size(checkpoint_bytes(inputs))}, " + ("from which no run can go on, " if kept.weights_only else "")
    minutes = f" and {kept.every:g} minutes" if kept.every else ""
    best = f", and the best {kept.keep_best} by checkpoint.keep_best" if kept.keep_best else ""
    resumed = f", resumed after step {session.step}" if session.step else ""
    return [
        f"budget    {budget(inputs)}",
        f"saved     checkpoints {each}every {per_episode} steps{minutes}; the newest {kept.keep} are kept{best}",
        f"run       {workdir}{resumed}",
        *(f"changed   {line}" for line in changes),
    ]


def what_now(session: Session) -> str:
    """How a run that was interrupted goes on."""
    if session.config.checkpoint.weights_only:
        return "its weights are saved, from which it cannot go on (checkpoint.weights_only)"
    return "the same command goes on from there"


def budget(inputs: Inputs) -> str:
    """How much is trained, and what of the data or the devices is left out."""
    problems, rollout, train = inputs.problems, inputs.config.rollout, inputs.config.train
    most = "at most " if rollout.stop_votes else ""
    said = (
        f"{inputs.total_steps} steps ({inputs.config.episodes} episodes) of {rollout.prompts} questions x "
        f"{most}{rollout.votes} votes, {train.samples} of them trained on by {inputs.config.algorithm}; "
        f"label: {inputs.config.reward.label}, rule: {inputs.config.judge.rule}"
    )
    if (left := len(problems) % rollout.prompts) and inputs.config.data.drop_last:
        said += f"; another {left} questions are left out of each episode (data.drop_last)"
    elif left:
        said += f"; the last step of each episode has {left} questions"
    shards, rows = inputs.mesh.shape["data"] * inputs.mesh.shape["fsdp"], train.minibatch_prompts * train.samples
    if shards > rows:
        said += (
            f"\nmesh      {shards} parts (data x fsdp) share {rows} rows of an optimizer step: some devices idle in it"
        )
    return said


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.TRAIN, arguments=ARGUMENTS))
