"""Semantics: what makes two runs the same, and what a run that goes on may be given anew."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs import default
from ttrl_jax.errors import InputError
from ttrl_jax.run import folder
from ttrl_jax.run.folder import Changes, Identity, as_begun, claim, made_with, renew, require_same

DEFAULTS = default.get_config().to_dict()
SETS = {"data": {"count": 8, "sha256": "a"}, "held_out": {"count": 4, "sha256": "b"}}
MODEL = {"width": 64, "fingerprint": "f", "tokenizer": "t"}


def run_of(*, questions: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **keys: Any) -> Identity:
    """A run of the default config with these keys, a__b for a.b."""
    config = json.loads(json.dumps(DEFAULTS))
    for name, value in keys.items():
        *sections, last = name.split("__")
        section = config
        for each in sections:
            section = section[each]
        assert last in section
        section[last] = value
    return Identity(config, model or MODEL, "/models/m", SETS if questions is None else questions)


def seen(where: Path, now: Identity) -> Changes:
    return require_same(where, now, defaults=DEFAULTS, flag="--workdir")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    claim(tmp_path / "run", run_of())
    return tmp_path / "run"


def test_the_same_run_however_its_files_are_called(made: Path):
    other = run_of(model__path="/elsewhere/m", data__path="../questions.json", eval__tasks=("held_out=x.json",))
    assert seen(made, replace(other, model_path=None)) == Changes({})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rollout__rows", 64), ("train__micro_tokens", 1024), ("train__chunk_tokens", 64), ("train__remat", "none"),
        ("model__attention", "xla"), ("mesh__tensor", 4), ("checkpoint__keep", 1), ("checkpoint__every", 5.0),
        ("checkpoint__weights_only", True), ("eval__every", 7), ("log__generations_every", 0), ("episodes", 100),
        ("checkpoint__keep_best", 2),
    ],
)  # fmt: skip
def test_what_may_change(made: Path, key: str, value: object):
    name = key.replace("__", ".")
    changes = seen(made, run_of(**{key: value}))
    assert list(changes.keys) == [name] and changes.keys[name][1] == value
    rounding = any("not bit by bit" in line for line in changes.lines(step=30, total=300))
    assert rounding == (name.split(".")[0] in ("mesh", "rollout", "train", "model"))


def test_what_a_change_means_is_said():
    changes = Changes({"episodes": (80, 100), "rollout.rows": (512, 64)}, ("amc",))
    assert changes.lines(step=30, total=300) == [
        "episodes: 100 from here on, 80 before",
        "rollout.rows: 64 from here on, 512 before",
        "eval.tasks: amc from here on",
        "from step 30 on numbers are rounded otherwise, by rollout.rows: the end is not bit by bit what it would have "
        "been",
        "from step 30 on the learning rate follows the schedule of 300 steps",
    ]
    assert Changes({"rollout.rows": (512, 64)}).lines(step=0, total=3) == ["rollout.rows: 64 from here on, 512 before"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 1, r"seed \(0 there, 1 now\)"),
        ("episodes", 79, r"episodes \(80 there, 79 now\), which may only grow"),
        ("rollout__votes", 32, "rollout.votes"),
        ("train__minibatch_prompts", 2, "train.minibatch_prompts"),
        ("reward__ties", "random", "reward.ties"),
        ("prompt__system", "Think.", "prompt.system"),
        ("algorithm", "ppo", "algorithm"),
    ],
)
def test_what_may_not(made: Path, key: str, value: object, words: str):
    with pytest.raises(InputError, match=f"another config, it differs in {words}"):
        seen(made, run_of(**{key: value}))


def test_questions_that_changed_are_refused(made: Path):
    for name, key in (("data", "data.path"), ("held_out", "held_out in eval.tasks")):
        changed = SETS | {name: {"count": 9, "sha256": "c"}}
        words = rf"the questions of {key} have changed .* \({SETS[name]['count']} then, 9 now"
        with pytest.raises(InputError, match=words):
            seen(made, run_of(questions=changed))


def test_sets_are_added_at_the_end_alone(made: Path):
    new = {"count": 2, "sha256": "n"}
    assert seen(made, run_of(questions=SETS | {"amc": new})).added == ("amc",)
    with pytest.raises(InputError, match="the sets data, held_out in this order"):
        seen(made, run_of(questions={"data": SETS["data"], "amc": new, "held_out": SETS["held_out"]}))
    with pytest.raises(InputError, match="held_out in eval.tasks, which is missing now"):
        seen(made, run_of(questions={"data": SETS["data"]}))


@pytest.mark.parametrize(("part", "words"), [("fingerprint", "weights or config"), ("tokenizer", "tokenizer or chat")])
def test_another_model_is_refused(made: Path, part: str, words: str):
    with pytest.raises(InputError, match=f"another model: the {words}"):
        seen(made, run_of(model=MODEL | {part: "other"}))
    assert seen(made, run_of(model=MODEL | {"width": 65, "new_field": None})) == Changes({})  # the files are the same


def test_an_absent_key_is_its_default(made: Path):
    """A run from before a key was there is one with the key's default, and of no other value."""
    path = made / folder.CONFIG
    content = json.loads(path.read_text())
    del content["config"]["reward"]["ties"], content["config"]["critic"], content["model"]["width"]
    del content["questions"], content["model_path"], content["model"]["tokenizer"]
    path.write_text(json.dumps(content))
    assert seen(made, run_of(questions={"data": {"count": 1, "sha256": "unknown then"}})) == Changes({})
    with pytest.raises(InputError, match=r"reward.ties \('first' there, 'random' now\)"):
        seen(made, run_of(reward__ties="random"))
    with pytest.raises(InputError, match="data.path"):  # without fingerprints of questions their paths count
        seen(made, run_of(data__path="other.json"))
    assert seen(made, run_of(eval__tasks=("amc",))).keys == {"eval.tasks": ([], ["amc"])}


def test_a_run_that_goes_on_keeps_what_was_changed(made: Path):
    now = run_of(rollout__rows=64)
    renew(made, now, ["rollout.rows: 64"], step=5)
    renew(made, now, [], step=6)
    assert made_with(made, flag="--workdir") == replace(now, config=json.loads(json.dumps(now.config)))
    assert json.loads((made / folder.CONFIG).read_text())["changes"] == [{"step": 5, "changes": ["rollout.rows: 64"]}]


def without_drop_last(where: Path) -> None:
    made = json.loads((where / "config.json").read_text())
    del made["config"]["data"]["drop_last"]
    (where / "config.json").write_text(json.dumps(made))


def test_a_run_from_before_drop_last_goes_on_as_it_began(made: Path):
    """It left out what was no whole step, whatever the default has become since, and however often it goes on."""
    assert as_begun(made, flag="--workdir") == {} == as_begun(made.parent / "none", flag="--workdir")
    without_drop_last(made)
    for _ in range(2):
        assert as_begun(made, flag="--workdir") == {"data.drop_last": True}
        then = run_of(data__drop_last=True)
        assert seen(made, then) == Changes({})
        renew(made, then, ("something",), step=3)
    with pytest.raises(InputError, match=r"data.drop_last \(True there, False now\)"):
        seen(made, run_of())


def test_a_run_from_before_the_kernel_that_reads_the_cache_goes_on_without_it(made: Path):
    """Or with it, where that is asked for, which rounds otherwise."""
    content = json.loads((made / folder.CONFIG).read_text())
    del content["config"]["model"]["decode_attention"]
    (made / folder.CONFIG).write_text(json.dumps(content))
    assert as_begun(made, flag="--workdir") == {"model.decode_attention": "xla"}
    assert seen(made, run_of(model__decode_attention="xla")) == Changes({})
    changes = seen(made, run_of())
    assert changes == Changes({"model.decode_attention": ("xla", "auto")})
    assert "rounded otherwise, by model.decode_attention" in changes.lines(step=3, total=9)[-1]


def test_the_last_step_is_a_part_of_what_a_run_is_and_not_of_an_evaluation(made: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"data.drop_last \(False there, True now\)"):
        seen(made, run_of(data__drop_last=True))
    evaluation = replace(run_of(), config=run_of().config | {"evaluated": "the model as it is"})
    claim(tmp_path / "eval", evaluation)
    without_drop_last(tmp_path / "eval")
    assert seen(tmp_path / "eval", evaluation) == Changes({})


def test_the_canaries_are_a_part_of_what_a_run_is_and_not_of_an_evaluation(made: Path, tmp_path: Path):
    """Their questions count, and not how their path is written."""
    assert seen(made, run_of(canary__path="canaries.jsonl")) == Changes({})
    with_canaries = replace(run_of(), config=run_of().config | {"canary_sha256": "5"})
    for other, words in ((run_of(canary__eps=0.1), r"canary.eps \(0.05 there"), (with_canaries, "canary_sha256")):
        with pytest.raises(InputError, match=words):
            seen(made, other)
    evaluations = [run_of(canary__eps=eps).config | {"evaluated": "the model as it is"} for eps in (0.05, 0.1)]
    claim(tmp_path / "eval", replace(run_of(), config=evaluations[0]))
    assert seen(tmp_path / "eval", replace(run_of(), config=evaluations[1])) == Changes({})
