"""Semantics: an exported folder holds the run's weights bit by bit, and what cannot be exported is one sentence."""

import ast
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import tiny_gguf
import yaml
from absl import flags
from safetensors.numpy import load_file
from tiny_model import LLAMA, all_logits, on_mesh, placed, random_params

from configs import quickstart_sums
from ttrl_jax import cli, commands, export
from ttrl_jax.card import card
from ttrl_jax.check import check
from ttrl_jax.data.prompts import load_tokenizer
from ttrl_jax.data.stops import of_files
from ttrl_jax.errors import InputError
from ttrl_jax.measure import canary
from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config
from ttrl_jax.records import Model, TrainState
from ttrl_jax.reward.judge import RULES
from ttrl_jax.run import folder
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.metrics import write_json
from ttrl_jax.source import text_fingerprint

MODEL = Path(__file__).parent.parent / "configs" / "quickstart_model"


def make_run(where: Path, source: Path, steps: tuple[int, ...] = (2, 4)) -> dict[int, dict]:
    """A run folder as train leaves it, with checkpoints of random weights; returns these by step."""
    config = quickstart_sums.get_config().to_dict()
    config["model"]["path"] = str(source)
    model = read_config(source)
    fingerprints = {"fingerprint": weights.fingerprint(source), "tokenizer": text_fingerprint(source)}
    folder.claim(where, folder.Identity(config, dataclasses.asdict(model) | fingerprints, str(source), {}))
    saved = {}
    with on_mesh((1, 8, 1)) as mesh, Checkpoints(where / "checkpoints", keep=2) as checkpoints:
        for step in steps:
            saved[step] = random_params(model, seed=step)
            params = placed(saved[step], model, mesh)
            state = TrainState(jnp.int32(step), {"policy": Model(params, optax.adam(1e-3).init(params))})
            evaluations = [{"step": i, "data": {"avg@16": 0.1 + i / 100}} for i in range(step)]
            checkpoints.save(step, state, {"labels": {}, "evaluations": evaluations, "seconds": 1.0})
    return saved


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict]]:
    where = tmp_path_factory.mktemp("export") / "run"
    where.mkdir()
    return where, make_run(where, MODEL)


@pytest.fixture
def call(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Call the command -> (exit code, stdout, stderr)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        forget()
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        code = cli.run(export.main, commands.EXPORT)
        return code, *capfd.readouterr()

    def forget() -> None:
        """Flags are global: take back what the last call set."""
        flags.FLAGS.unparse_flags()
        flags.FLAGS["out"].value, flags.FLAGS["step"].value, flags.FLAGS["dtype"].value = "", None, "float32"

    commands.EXPORT.define()
    yield command
    forget()


def loaded(source: Path):
    with on_mesh((1, 1, 1)) as mesh:
        return jax.device_get(weights.load(source, read_config(source), mesh))


def assert_bitwise(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_folder_is_the_checkpoint_bit_by_bit(run, call, tmp_path):
    where, saved = run
    (tmp_path / "newest").mkdir()  # an empty folder is as good as none
    assert call(where, "--out", tmp_path / "newest")[0] == 0
    assert call("--step=2", where, f"--out={tmp_path / 'a' / 'second'}")[0] == 0
    assert_bitwise(loaded(tmp_path / "newest"), saved[4])
    assert_bitwise(loaded(tmp_path / "a" / "second"), saved[2])
    assert read_config(tmp_path / "newest") == read_config(MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "newest"]
    before, after = (load_tokenizer(str(path)) for path in (MODEL, tmp_path / "newest"))
    assert before("Tom has 37 apples")["input_ids"] == after("Tom has 37 apples")["input_ids"]
    assert before.chat_template == after.chat_template and before.eos_token_id == after.eos_token_id
    assert of_files(after, str(tmp_path / "newest")) == of_files(before, str(MODEL))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "newest" / name).read_bytes() == (MODEL / name).read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "newest").iterdir()} == {0o644}


def test_bfloat16_is_the_rounded_weights(run, call, tmp_path):
    where, saved = run
    assert call(where, f"--out={tmp_path / 'half'}", "--dtype=bfloat16")[0] == 0
    assert_bitwise(
        loaded(tmp_path / "half"), jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), saved[4])
    )
    tensors = load_file(tmp_path / "half" / "model.safetensors").values()
    assert {x.dtype for x in tensors} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_large_models_come_in_several_files(run, tmp_path):
    where, saved = run
    trained = export.restore(where, None, moved="", out=tmp_path / "model", itemsize=4)
    export.write(trained, tmp_path / "model", dtype="float32", shard_bytes=300_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 5 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(x.nbytes for x in load_file(file).values()) <= 300_000 for file in files)
    assert_bitwise(loaded(tmp_path / "model"), saved[4])


def test_what_began_as_gguf_leaves_as_a_folder(call, tmp_path):
    config = dataclasses.replace(LLAMA, width=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=19)
    source = tmp_path / "tiny.gguf"
    tensors = weights.to_huggingface(random_params(config), config)
    tiny_gguf.write(source, config, tensors, tokenizer=tiny_gguf.TOKENIZER | {"chat_template": "{{ bos_token }}"})
    (tmp_path / "run").mkdir()
    saved = make_run(tmp_path / "run", source)
    assert call(tmp_path / "run", f"--out={tmp_path / 'out'}")[0] == 0
    assert read_config(tmp_path / "out") == read_config(source)
    assert_bitwise(loaded(tmp_path / "out"), saved[4])
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert tokenizer("ab a 12")["input_ids"] == [16, 17, 15, 4, 5] and tokenizer.chat_template == "{{ bos_token }}"
    assert tuple(of_files(tokenizer, str(tmp_path / "out"))) == (2,)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == config.rope.theta
    assert fields["rope_scaling"] is None


def test_the_card_has_the_numbers_of_the_run(run, call, tmp_path):
    where, _ = run
    assert call(where, f"--out={tmp_path / 'unfinished'}")[0] == 0
    text = (tmp_path / "unfinished" / "README.md").read_text()
    assert "Certificate: none, as there are no canaries" in text
    assert "| questions | | after 0 steps | after 3 steps |" in text
    assert "| trained on | avg@16 | 0.100 | 0.130 |" in text and "held out" not in text
    assert "# quickstart_model, after 4 steps" in text and str(MODEL) not in text and "base_model" not in text
    finished = tmp_path / "run"
    shutil.copytree(where, finished)
    write_json(finished / "summary.json", {"steps": 4, "before": {"avg@16": 0.1}, "after": {"avg@16": 0.875}})
    assert call(finished, f"--out={tmp_path / 'finished'}")[0] == 0
    text = (tmp_path / "finished" / "README.md").read_text()
    assert "after 0 steps | after 4 steps |" in text and "| trained on | avg@16 | 0.100 | 0.875 |" in text


def test_the_card_says_what_the_canaries_do(run, call, tmp_path):
    """Of the checkpoint that they were asked after, and of no other."""
    where, _ = run
    looked = tmp_path / "run"
    shutil.copytree(where, looked)
    found = {
        "look": 1, "canaries": 16, "samples": 8, "before": 0.25, "after": 0.75, "returned": "trained", "eps": 0.05,
        "delta": 0.05, "capital": 31.0, "threshold": 20.0, "needed": 9,
    }  # fmt: skip
    write_json(looked / canary.FILE, {"looks": [{"step": 4, "outcome": found}]})
    texts = []
    for name, step in (("of", "4"), ("before", "2")):
        assert call(looked, f"--out={tmp_path / name}", f"--step={step}")[0] == 0
        texts.append(" ".join((tmp_path / name / "README.md").read_text().split()))
    assert (
        "Certificate: the trained model is returned; accuracy on 16 canaries, 8 responses each: 0.250 -> " in texts[0]
    )
    assert "a chance of at most 0.05. ## The run" in texts[0]
    assert "Certificate: none of this checkpoint" in texts[1] and "is returned" not in texts[1]


def test_the_card_names_base_model_and_licence(run, call, tmp_path):
    """Of a model from the hub its name; else where the folder says it is from."""
    config = quickstart_sums.get_config().to_dict()
    text = card(
        config, [], certificate="none", hub="org/base", origin={"license": "mit", "tags": "x"}, step=4, dtype="float32"
    )
    assert text.startswith("---\n") and 'base_model: org/base\nlicense: "mit"\n---\n\n# org/base, after 4' in text
    source = tmp_path / "model"
    shutil.copytree(MODEL, source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    fields = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", fields | {"_name_or_path": "org/origin"})
    make_run(tmp_path / "run", source, steps=(2,))
    assert call(tmp_path / "run", f"--out={tmp_path / 'out'}")[0] == 0
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert head["base_model"] == "org/origin" and head["license"] == "apache-2.0"


def test_the_use_that_the_card_shows(run, call, tmp_path):
    """Its four lines are Python, and make the run's prompt."""
    where, _ = run
    assert call(where, f"--out={tmp_path / 'out'}")[0] == 0
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 4
    ast.parse(code)
    assert '"content": "QUESTION"' in code and "max_new_tokens=13" in code


def rewarded(label: str, rule: str) -> str:
    """The sentences on rewards of a run's card."""
    config = quickstart_sums.get_config().to_dict()
    config["reward"]["label"], config["judge"]["rule"] = label, rule
    text = card(config, [], certificate="none", hub=None, origin={}, step=4, dtype="float32")
    assert ("| label |" in text) == (rule == "majority") and f"| what a vote earns | {rule} |" in text
    assert "{" not in text.split("## Results")[1]
    return " ".join(text.split("updated\nthe model. ")[1].split("\n\n")[0].split())


def test_the_card_says_what_was_rewarded():
    """Of every label and rule that a config may have: all others are refused."""
    labels = ("majority", "offline", "truth", "random")
    said = {(label, rule): rewarded(label, rule) for rule in RULES for label in labels if allowed(label, rule)}
    assert len(said) == 12
    assert said["majority", "answered"].endswith("this is a control, not the method.")
    assert said["majority", "vote_share"] == (
        "Every answer was rewarded by its share of the votes; true answers, where known, were only used to measure."
    )
    for words, label in (
        ("that most of them gave;", "majority"), ("the start model gave, never renewed: this is a baseline", "offline"),
        ("the true answer: this is an oracle", "truth"), ("at random: this is a control", "random"),
    ):  # fmt: skip
        assert said[label, "majority"].startswith("Responses whose answer was the label were rewarded. The label was ")
        assert words in said[label, "majority"]


def allowed(label: str, rule: str) -> bool:
    config = quickstart_sums.get_config()
    config.reward.label, config.judge.rule = label, rule
    try:
        check(config)
    except InputError:
        return False
    return True


def test_a_run_with_offline_labels_is_exported(run, call, tmp_path):
    where = tmp_path / "offline"
    shutil.copytree(run[0], where)
    made = json.loads((where / "config.json").read_text())
    made["config"]["reward"]["label"] = "offline"
    write_json(where / "config.json", made)
    assert call(where, f"--out={tmp_path / 'out'}")[0] == 0
    assert "never renewed: this is a baseline" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_exported(run, call, tmp_path):
    where, _ = run
    out = f"--out={tmp_path / 'out'}"
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    untrained, lost, other = tmp_path / "untrained", tmp_path / "lost", tmp_path / "other"
    for copy in (untrained, lost, other):
        shutil.copytree(where, copy)
    for checkpoint in ("2", "4"):
        shutil.rmtree(untrained / "checkpoints" / checkpoint)
    made = json.loads((where / "config.json").read_text())
    write_json(other / "config.json", made | {"model": made["model"] | {"fingerprint": "0" * 64}})
    made["config"]["model"]["path"] = made["model_path"] = str(tmp_path / "gone")
    write_json(lost / "config.json", made)
    for arguments, message in [
        ((out,), "RUN is missing"),
        ((where,), "--out is missing"),
        ((where, "again", out), "unexpected argument 'again'"),
        ((tmp_path / "nowhere", out), "is not a run folder"),
        ((where, f"--out={full}"), "is not an empty folder"),
        ((where, f"--out={full / 'file'}"), "is not an empty folder"),
        ((where, out, "--step=3"), "there is no checkpoint"),
        ((where, out, "--dtype=int8"), "--dtype must be one of float32, bfloat16"),
        ((where, out, "--steps=3"), "steps"),
        ((untrained, out), "has no checkpoint yet"),
        ((lost, out), "is not in " + str(tmp_path / "gone") + " any more; add --model"),
        ((lost, out, f"--model={tmp_path}"), "config.json"),
        ((lost, out, f"--model={full / 'file'}"), "--model is the file"),
        ((other, out), "was made with another model"),
    ]:
        code, _, stderr = call(*arguments)
        assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr, stderr
    assert not (tmp_path / "out").exists() and (full / "file").read_text() == "mine"


@pytest.mark.parity
def test_transformers_computes_the_same_logits(run, call, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    where, saved = run
    assert call(where, f"--out={tmp_path / 'out'}")[0] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32
    ids = np.random.default_rng(0).integers(0, 72, (3, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    got = np.asarray(all_logits(jax.tree.map(jnp.asarray, saved[4]), read_config(MODEL), ids))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
