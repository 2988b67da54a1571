"""Semantics: what a user can get wrong is one sentence on stderr and exit code 2, and nothing is written."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from refusals import assert_one_sentence

from configs import default, quickstart_sums
from ttrl_jax import cli, commands, train
from ttrl_jax.errors import InputError

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "configs" / "quickstart_model"
SMALL = ["--config.train.micro_tokens=384", "--config.mesh.fsdp=8"]


pytestmark = pytest.mark.usefixtures("fresh_flags")


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Call train with the quickstart's config and some arguments -> (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, config: str | None = str(ROOT / "configs" / "quickstart_sums.py")) -> tuple[int, str]:
        chosen = [] if config is None else [f"--config={config}"]
        monkeypatch.setattr(sys, "argv", ["train", *chosen, *(SMALL if chosen else []), *arguments])
        code = cli.run(train.main, commands.TRAIN, doc=train.__doc__)
        return code, capfd.readouterr().err

    return run


def assert_refused(result: tuple[int, str], *words: str) -> None:
    assert_one_sentence(result, *words)
    assert not Path("runs").exists(), "something was written"


def questions(path: Path, rows: object) -> str:
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return f"--config.data.path={path}"


def test_no_config(call):
    assert_refused(call(config=None), "--config", "configs/quickstart.py")


def test_missing_config_file(call):
    assert_refused(call(config="configs/nothing.py"), "configs/nothing.py")


def test_broken_config_file(call, tmp_path: Path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    assert_refused(call(config="broken.py"), "broken.py", "line 1")


def test_config_file_without_get_config(call, tmp_path: Path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert_refused(call(config="empty.py"), "get_config")


def own_config(path: Path, change: str) -> str:
    path.write_text(
        f"from configs import default\ndef get_config():\n  c = default.get_config()\n  {change}\n  return c\n"
    )
    return str(path)


def test_a_config_file_that_misspells_a_key(call, tmp_path: Path):
    assert_refused(call(config=own_config(tmp_path / "own.py", "c.sed = 1")), "sed")


def test_a_config_file_with_a_wrong_type(call, tmp_path: Path):
    assert_refused(call(config=own_config(tmp_path / "own.py", "c.seed = 'x'")), "seed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("c.rollout.temperature = 'x'", ("temperature", "float")),
        ("c.rollout.max_tokens = 1.5", ("max_tokens", "int")),
        ("c.prompt.thinking = 1", ("thinking", "bool")),
        ("c.prompt.suffix = 3", ("suffix", "str")),
    ],
)
def test_a_config_file_with_a_wrong_type_in_an_unset_key(call, tmp_path: Path, change: str, words: tuple[str, ...]):
    assert_refused(call(config=own_config(tmp_path / "own.py", change)), *words)


def with_plain_value(section: str, key: str, value: object) -> ConfigDict:
    """The defaults without what ml_collections knows of their types, and one other value."""
    plain = default.get_config().to_dict()
    plain[section][key] = value
    return ConfigDict(plain)


def test_types_of_unset_keys():
    """Unset or of the type; a whole number for a float, as on the command line."""
    for name, value in [("temperature", None), ("temperature", 0.5), ("temperature", 1), ("max_tokens", 5)]:
        commands._require_keys(with_plain_value("rollout", name, value), default.get_config(), "")
    for section, name, value, kind in [
        ("rollout", "temperature", "1", "float or unset"),
        ("rollout", "temperature", True, "float or unset"),
        ("rollout", "max_tokens", 5.0, "int or unset"),
        ("prompt", "thinking", 0, "bool or unset"),
        ("prompt", "suffix", 1, "str or unset"),
        ("rollout", "votes", None, "int"),
    ]:
        with pytest.raises(InputError, match=rf"{section}\.{name} must be {kind}, got {value!r} "):
            commands._require_keys(with_plain_value(section, name, value), default.get_config(), "")


def test_a_whole_number_for_an_unset_float_in_a_config_file(call, tmp_path: Path):
    """It is taken: the refusal is about the next key."""
    assert_refused(call(config=own_config(tmp_path / "own.py", "c.rollout.temperature = 1")), "model.path is empty")


def test_a_whole_number_for_an_unset_float_on_the_command_line(call):
    assert_refused(call("--config.rollout.temperature=1", "--config.rollout.prompts=72"), "72")


def test_a_config_file_that_does_not_begin_with_the_defaults(call, tmp_path: Path):
    text = "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({{{}}})\n"
    (tmp_path / "bare.py").write_text(text.format("'train': {'micro_tokens': 1}, 'mesh': {'fsdp': 1}, 'sed': 1"))
    assert_refused(call(config="bare.py"), "unknown config key sed; did you mean seed?")


def test_a_config_file_that_lacks_keys(call, tmp_path: Path):
    text = (
        "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'train': {'micro_tokens': 1}, "
    )
    (tmp_path / "bare.py").write_text(text + "'mesh': {'fsdp': 1}})\n")
    assert_refused(call(config="bare.py"), "lacks the key")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.sed=1", ("sed",)),
        ("--config.train.lr=1", ("lr",)),
        ("--config.seed=abc", ("--config.seed=abc", "int")),
        ("--config.train.learning_rate=fast", ("--config.train.learning_rate=fast",)),
        ("--config.mesh.offload=maybe", ("--config.mesh.offload=maybe",)),
        ("--config.train.remat=maybe", ("train.remat", "none, dots, full", "'maybe'")),
        ("--config.eval=3", ("--config.eval=3",)),
        ("--nonsense=1", ("nonsense",)),
        ("nonsense", ("nonsense",)),
        ("--config.algorithm=reinforce", ("algorithm", "grpo", "reinforce")),
        ("--config.episodes=-1", ("episodes", "-1")),
        ("--config.rollout.prompts=72", ("64", "72")),
        ("--config.rollout.temperature=0", ("rollout.temperature",)),
        ("--config.rollout.temperature=1e-4", ("rollout.temperature", "at least 0.001", "0.0001")),
        ("--config.rollout.temperature=inf", ("rollout.temperature", "finite", "inf")),
        ("--config.rollout.temperature=nan", ("rollout.temperature", "nan")),
        ("--config.rollout.top_p=1e-46", ("top_p", "at least 1.18e-38", "rollout.top_p=1e-46")),
        ("--config.eval.top_p=1e-46", ("top_p", "eval.top_p=1e-46")),
        ("--config.rollout.stop=('a whole sentence',)", ("rollout.stop", "'a whole sentence'")),
        ("--config.rollout.stop=(1,)", ("rollout.stop", "texts", "(1,)")),
        ("--config.reward.label=gold", ("reward.label", "gold")),
        ("--config.reward.extract=('box',)", ("box", "boxed")),
        ("--config.reward.extract=('tag:a b',)", ("name of a tag", "'a b'")),
        ("--config.reward.extract=('tag_strict',)", ("tag_strict", "reward.format")),
        ("--config.reward.format=('think','<answer>')", ("name of a tag", "'<answer>'")),
        ("--config.reward.format=('answer','answer')", ("once", "answer, answer")),
        ("--config.reward.locale=fr", ("en, tr, de", "'fr'")),
        ("--config.data.order=easy", ("data.order", "shuffled, given, vote_share", "'easy'")),
        ("--config.reward.ties=last", ("reward.ties", "first or random", "'last'")),
        ("--config.reward.kind=entropy", ("reward.kind", "vote_share", "'entropy'")),
        ("--config.judge.rule=entropy", ("judge.rule", "majority, vote_share, answered, gate", "'entropy'")),
        ("--config.judge.gate_share=1.5", ("judge.gate_share is a share of the votes, 0 to 1, got 1.5",)),
        ("--config.judge.gate_margin=-0.1", ("judge.gate_margin", "0 to 1", "-0.1")),
        ("--config.judge.negative_share=nan", ("judge.negative_share", "0 to 1", "nan")),
        ("--config.judge.no_answer_reward=1", ("judge.no_answer_reward", "0 or a finite number below", "got 1")),
        ("--config.judge.no_answer_reward=-inf", ("judge.no_answer_reward", "-inf")),
        ("--config.judge.soft_slope=0", ("judge.soft_slope", "above 0", "got 0")),
        ("--config.judge.soft_offset=inf", ("judge.soft_offset", "finite", "inf")),
        ("--config.reward.format_weight=0.5", ("reward.format_weight=0.5", "set reward.format")),
        ("--config.reward.format_weight=-1", ("reward.format_weight", "at least 0", "-1")),
        ("--config.reward.format_weight=nan", ("reward.format_weight", "nan")),
        ("--config.reward.format_weight=inf", ("reward.format_weight", "inf")),
        ("--config.model.dtype=int8", ("model.dtype", "int8")),
        ("--config.model.attention=flash", ("model.attention", "auto, xla, cudnn or splash", "'flash'")),
        ("--config.model.attention=splash", ("model.attention='splash'", "runs on TPUs, and this is cpu", "'auto'")),
        ("--config.model.decode_attention=flash", ("model.decode_attention", "auto, xla or triton", "'flash'")),
        ("--config.model.decode_attention=triton", ("model.decode_attention='triton'", "NVIDIA GPUs, and this is cpu")),
        ("--config.model.path=/nowhere", ("/nowhere",)),
        ("--config.model.path=models/none.gguf", ("There is no model", "models/none.gguf")),
        (f"--config.model.path={MODEL / 'model.safetensors'}", ("model.path is the file", "expected a model folder")),
        ("--config.rollout.max_tokens=4000", ("4032", "64")),
        ("--config.rollout.max_tokens=0", ("rollout.max_tokens", "at least 1")),
        ("--config.rollout.max_tokens=1.5", ("--config.rollout.max_tokens=1.5",)),
        ("--config.rollout.temperature=warm", ("--config.rollout.temperature=warm",)),
        ("--config.prompt.thinking=maybe", ("--config.prompt.thinking=maybe",)),
        ("--config.prompt.thinking=True", ("prompt.thinking=True", "does not think")),
        ("--config.eval.temperature=-1", ("eval.temperature",)),
        ("--config.eval.temperature=1e-39", ("eval.temperature", "0, which is greedy", "at least 0.001", "1e-39")),
        ("--config.data.level=-1", ("data.level",)),
        ("--config.data.level=2", ("builtin:sums.train", "data.level")),
        ("--config.prompt.max_tokens=15", ("15", "id")),
        ("--config.train.micro_tokens=0", ("train.micro_tokens", "at least 1")),
        ("--config.mesh.tensor=3", ("mesh",)),
        ("--config.data.path=/nowhere.json", ("/nowhere.json",)),
        ("--config.data.path=builtin:nothing", ("nothing", "sums.train")),
        ("--config.eval.k=(4,17)", ("eval.k", "eval.samples=16", "17")),
        ("--config.eval.tasks=nothing", ("'nothing'", "configs/nothing.py")),
        ("--config.eval.tasks=other=/nowhere.json", ("/nowhere.json",)),
    ],
)
def test_bad_values(call, argument: str, words: tuple[str, ...]):
    assert_refused(call(argument), *words)


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("broken.json", '[{"prompt": "a"},', ("line 1",)),
        ("empty.json", "[]", ("no questions",)),
        ("other.json", [{"soru": "a", "answer": "1"}] * 8, ("'prompt'", "'soru'", "data.question_column")),
        ("two.json", [{"problem": "a", "query": "b"}] * 8, ("'problem' and 'query' may be meant",)),
        ("worked.json", [{"prompt": "a", "answer": "The answer is 85."}] * 8, ("data.truth_extract", "'The answer is")),
        ("half.json", r'[{"prompt": "\ud835x"}]', ("half a character", "row 0", r"'\ud835x'")),
    ],
)
def test_bad_data(call, tmp_path: Path, name: str, rows: object, words: tuple[str, ...]):
    """Before a model is looked for, which may be on the hub."""
    assert_refused(call(questions(tmp_path / name, rows), "--config.model.path=nobody/nothing"), name, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollout.votes=8", "train.samples=9"], ("rollout.votes=8 and train.samples=9 do not go together",)),
        (["rollout.prompts=8", "train.minibatch_prompts=3"], ("train.minibatch_prompts=3", "one size", "change one")),
        (["rollout.prompts=8", "data.limit=5"], ("rollout.prompts=8 is more than the 5", "data.limit", "lower it to")),
    ],
)
def test_coupled_keys_that_were_both_set(call, arguments: list[str], words: tuple[str, ...]):
    assert_refused(call(*[f"--config.{argument}" for argument in arguments]), *words)


def test_a_prompt_that_is_too_long_is_named(call, tmp_path: Path):
    rows = [{"prompt": "How many?", "id": f"q{i}"} for i in range(7)] + [{"prompt": "has " * 40, "id": "the-long-one"}]
    assert_refused(call(questions(tmp_path / "long.json", rows)), "the-long-one", "32")


@pytest.mark.parametrize(("rule", "label"), [("vote_share", "truth"), ("vote_share", "random"), ("gate", "truth")])
def test_a_rule_may_take_no_other_label(call, rule: str, label: str):
    assert_refused(call(f"--config.judge.rule={rule}", f"--config.reward.label={label}"), rule, "reward.label", label)


def test_the_oracle_needs_truths(call, tmp_path: Path):
    data = questions(tmp_path / "plain.json", [{"prompt": "How many?"}] * 8)
    assert_refused(call(data, "--config.reward.label=truth"), "truth", "'answer'")


def test_the_oracle_needs_a_truth_for_each_question(call, tmp_path: Path):
    some = questions(tmp_path / "some.json", [{"prompt": "How many?"}, {"prompt": "And now?", "answer": 1}] * 4)
    assert_refused(call(some, "--config.reward.label=truth"), "truth", "some.json has 4 without")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def test_a_vocabulary_that_does_not_match_the_tokenizer(call, model: Path):
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"vocab_size": 50}))
    assert_refused(call(f"--config.model.path={model}"), "tokenizer", "49")


def test_an_unsupported_model(call, model: Path):
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}))
    assert_refused(call(f"--config.model.path={model}"), "rope_scaling", "dynamic", "length of the row")


def test_weights_that_do_not_fit(call, model: Path):
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 4, "intermediate_size": 100}))
    assert_refused(
        call(f"--config.model.path={model}"), "missing model.layers.3.mlp.up_proj.weight", "expected [100, 128]"
    )


def test_a_run_folder_of_another_config(call, tmp_path: Path):
    (tmp_path / "run").mkdir()
    settings = quickstart_sums.get_config().to_dict() | {"seed": 5}
    settings["train"]["micro_tokens"] = 8
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": settings, "model": {}}))
    assert_refused(call("--workdir=run"), "another config", "seed (5 there, 0 now)")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json"]


def test_a_folder_that_is_no_run(call, tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert_refused(call("--workdir=thesis"), "not a run folder")


def test_no_room_for_checkpoints(call, monkeypatch: pytest.MonkeyPatch):
    full = shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert_refused(call(), "of disk for checkpoints", "keep fewer (checkpoint.keep)")


def test_a_disk_that_fills_up_is_a_sentence(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train"])

    def main() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert cli.run(main, doc="") == 2
    assert capfd.readouterr().err.startswith("error: the disk is full")


def test_what_the_output_cannot_show_is_spelled_out(monkeypatch: pytest.MonkeyPatch):
    """A question in Turkish where the output is ASCII, by PYTHONIOENCODING or the locale."""
    monkeypatch.setattr(sys, "argv", ["train"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    def main() -> int:
        print("Kaç elma?")
        raise InputError("Kaç?")

    assert cli.run(main, doc="") == 2
    for stream, said in ((sys.stdout, rb"Ka\xe7 elma?"), (sys.stderr, rb"error: Ka\xe7?")):
        stream.flush()
        assert stream.buffer.getvalue() == said + b"\n"


def test_ctrl_c_where_nothing_is_saved_is_a_word(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train"])

    def main() -> int:
        raise KeyboardInterrupt

    assert cli.run(main, doc="") == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_errors_that_no_user_made_propagate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train"])

    def main() -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        cli.run(main, doc="")


def test_help_names_the_flags(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.run(train.main, commands.TRAIN, doc=train.__doc__)
    out = capfd.readouterr().out
    assert "--config" in out and "--workdir" in out and "python -m ttrl_jax.train" in out
    assert "--coordinator" in out and "--num_processes" in out and "--process_id" in out


def test_the_command_itself_exits_with_2(tmp_path: Path):
    """The same through a real process, from another folder than the checkout."""
    command = [sys.executable, "-m", "ttrl_jax.train", "--config", str(ROOT / "configs" / "aime.py:")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "error: model.path is empty; give a model folder, a .gguf file or a hub name"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "command"),
    [
        ("cuda", ["train", f"--config={ROOT / 'configs' / 'quickstart_sums.py'}"]),
        pytest.param("nonsense", ["export", "run", "--out=hf"], marks=pytest.mark.slow),
        pytest.param(
            "nonsense", ["plan", f"--config={ROOT / 'configs' / 'quickstart_sums.py'}"], marks=pytest.mark.slow
        ),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else given,
)
def test_a_device_that_is_not_there(tmp_path: Path, platform: str, command: list[str]):
    if platform == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there may be such a device")
    command = [sys.executable, "-m", f"ttrl_jax.{command[0]}", *command[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: JAX finds no device by JAX_PLATFORMS={platform!r}: ")
    assert list(tmp_path.iterdir()) == []
