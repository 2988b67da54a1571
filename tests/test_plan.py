"""Hand-worked: what a step computes and moves. Semantics: what is planned for is what training compiles, what does not
fit is made to, and what a user can get wrong is one sentence."""

import dataclasses
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict, FrozenConfigDict

from configs import quickstart_sums
from tests.tiny_model import QWEN3, on_mesh
from ttrl_jax import cli, commands, train
from ttrl_jax import programs as programs_of_config
from ttrl_jax.plan import __main__ as plan
from ttrl_jax.plan import arithmetic, gpus
from ttrl_jax.plan.arithmetic import Work, chip_bytes
from ttrl_jax.plan.chips import FRACTION, Chip, Memory
from ttrl_jax.plan.programs import Compiler, Setting
from ttrl_jax.plan.search import changed, estimates, found, nearest
from ttrl_jax.rollout.shapes import Shapes

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("fresh_flags")


# ---------------------------------------------------------------------- hand-worked


def test_numbers_of_a_model():
    """A layer has 512 + 256 + 256 + 512 weights of attention, 3 x 16 x 24 of ffn and 48 of norms."""
    assert arithmetic.pair_flops(QWEN3) == 4 * 2 * 4 * 8
    assert arithmetic.cache_bytes(QWEN3, 10, itemsize=2) == 2 * 2 * 2 * 2 * 8 * 10
    blocks = 2 * (512 + 256 + 256 + 512 + 1152 + 48)
    by_hand = 3 * (2 * blocks * 5 + 10 * 256) + 6 * 2 * 64 * 16
    assert arithmetic.forward_flops(QWEN3, 3, 5, logits=6) == by_hand == 184_128


def test_work_of_a_step():
    """Hand-worked: 6 questions x 8 votes on 16 slots, data 2 x fsdp 2 x tensor 2; 7,536 weights in float32."""
    with on_mesh((2, 2, 2)) as mesh:
        shapes = Shapes(rows=16, max_tokens=3, prefill_tokens=1000, prompt_multiple=2, vote_multiple=2)
        drawn = arithmetic.draw(questions=6, votes=8, shapes=shapes, length=16)
    assert (drawn.at_once, drawn.batches, drawn.slots.groups, drawn.slots.slots) == (4, 2, 4, 4)
    sizes = dict(length=16, itemsize=4)
    # 2 batches of 4 questions, each on both chips of fsdp: 16 rows of 16 tokens.
    expected = Work(16 * (175_104 + 30_720) + 32_768, 2 * 4 * 7_536 * 4 + 65_536)
    assert arithmetic.prefill_work(QWEN3, drawn, mesh, **sizes) == expected
    # 2 batches of 32 responses on 16 slots: 4 rounds of 2 steps, which read 3 places of the cache.
    flops = 4 * (2 * 16 * 12_992 + 16 * (6 + 32) * 256)
    moved = 4 * (2 * (4 * 7_536 * 4 + 32_768) + 24_576)
    assert arithmetic.decode_work(QWEN3, drawn, mesh, tokens=3, **sizes) == Work(flops, moved)
    assert arithmetic.copy_work(QWEN3, mesh, master=4, itemsize=2).moved == 6 * 7_536 * 4
    assert arithmetic.copy_work(QWEN3, mesh, master=2, itemsize=2).moved == 4 * 7_536 * 4
    # The gradient is read; masters and two moments are read and written.
    assert arithmetic.step_work(7_536, 3, master=4, moment=4).moved == 28 * 7_536 * 3
    assert arithmetic.step_work(7_536, 3, master=2, moment=2).moved == 16 * 7_536 * 3


def test_the_roofline_is_the_longer_of_the_two():
    chip = Chip(flops=10.0, bandwidth=5.0, memory=0.0)
    assert Work(100.0, 20.0).seconds(chip, 2) == 5.0
    assert Work(100.0, 80.0).seconds(chip, 2) == 8.0


# ---------------------------------------------------------------------- the command


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, fresh_flags):
    """Call a command with the quickstart's config and some arguments -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, command=plan) -> tuple[int, str, str]:
        fresh_flags()
        monkeypatch.setattr(sys, "argv", ["plan", f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", *arguments])
        code = cli.run(command.main, commands.COMMANDS[command.__name__.split(".")[1]], doc=command.__doc__)
        return code, *capfd.readouterr()

    return run


LABELS = "sample copy, sample prefill, sample decode, evaluate prefill, evaluate decode, update gradient, update step"


def test_the_plan_of_the_quickstart_here(call):
    """Hand-worked: 599,936 weights over 8 devices; 64 questions in steps of 8, 36 times."""
    code, out, err = call("--json")
    assert code == 0 and "compiled update gradient" in err
    told = json.loads(out)
    assert told["questions"] == [64, 256] and told["devices"] == 8 and told["fits"]
    (only,) = told["plans"]
    assert only["run"] == {"steps": 288, "evaluations": 2, "hours": None, "chip_hours": None}
    assert only["seconds"] is None  # nobody publishes the speed of this machine
    programs = {program["label"]: program for program in only["programs"]}
    assert ", ".join(programs) == LABELS
    masters = 599_936 * 4 // 8
    assert programs["update gradient"]["weights"] == 2 * masters  # and the start's, for the KL term
    assert programs["sample decode"]["weights"] == 2 * masters + 599_936 * 4  # whole, where sampled
    assert 2 * masters <= programs["sample decode"]["optimizer"] < 2 * masters + 1_000  # and Adam's counters
    assert 3 * masters <= programs["update gradient"]["optimizer"] < 3 * masters + 1_000
    # 512 responses of 13 tokens on 64 slots a device, and prompts of 32 for each of 8 questions, on all devices: as
    # they were computed, and for 8 groups of slots.
    cache = (64 * 13 + 2 * 8 * 32) * 3 * 2 * 2 * 32 * 4
    drawn = 64 * 512 * 3 * 4  # tokens, log-probs and whose they are, of 64 steps: whole on each device
    assert cache + drawn <= programs["sample decode"]["cache"] < 1.1 * cache + drawn
    for program in only["programs"]:
        parts = [program[part] for part in ("weights", "optimizer", "cache", "activations")]
        assert program["together"] == sum(parts) and min(parts) >= 0, program


def test_the_table_and_the_json_have_the_same_numbers(call):
    code, out, _ = call("--config.episodes=1", "--questions=16,8")
    assert code == 0
    told = json.loads(call("--config.episodes=1", "--questions=16,8", "--json")[1])
    rows = {line[2:22].strip(): line[22:].split() for line in out.splitlines() if line.startswith("  ")}
    for program in told["plans"][0]["programs"]:
        assert rows[program["label"]][4] == f"{program['together'] / 1e9:.2f}"
        assert rows[program["label"]][6] == f"{program['work']['flops']:.3g}"
    assert told["plans"][0]["run"]["steps"] == 2


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Path]:
    """JAX's folder of compiled programs, for one test alone."""
    before = jax.config.jax_compilation_cache_dir
    for folder in (str(tmp_path / "programs"), before):
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        if folder != before:
            yield Path(folder)


@pytest.mark.slow
def test_training_compiles_the_programs_that_were_planned_for(call, programs: Path):
    """JAX's folder of compiled programs gets none more of a name when a run follows its plan. (Of the update, rows of
    one prompt are packed on CPUs, so that its passes are smaller.)"""
    settings = ["--config.episodes=1", "--config.data.limit=8", "--config.mesh.tensor=2", "--config.train.kl_coef=0.0"]
    settings += ["--config.rollout.max_tokens=11", "--config.rollout.votes=20", "--config.train.samples=20"]
    settings += ["--config.prompt.max_tokens=24"]  # the prompts have 22 to 24
    settings += ["--config.reward.allow_silence=True"]  # 11 tokens cut most of the sums
    settings += ["--config.train.minibatch_prompts=4", "--config.eval.samples=10", "--config.eval.tasks=()"]

    def kept() -> Counter:
        return Counter(file.name.rpartition("-")[0].rpartition("-")[0] for file in programs.glob("*-cache"))

    assert not kept()
    assert call("--json", *settings)[0] == 0
    planned = kept()
    assert call(*settings, "--workdir=run", command=train)[0] == 0
    trained = kept()
    for name in ("jit_sampling_weights", "jit_prefill", "jit_segment", "jit__step"):
        assert planned[name], name
        assert trained[name] == planned[name], name


# ---------------------------------------------------------------------- what does not fit


def small_setting() -> Setting:
    """The quickstart on 8 devices, with 4 questions a step."""
    config = quickstart_sums.get_config()
    config.rollout.prompts, config.train.minibatch_prompts, config.rollout.votes = 4, 4, 32
    config, model, stop_ids = plan.resolved(FrozenConfigDict(config))
    return plan.setting_of(config, model, jax.devices(), (64, 256), stop_ids)


@pytest.mark.slow
def test_what_does_not_fit_is_made_to(capsys: pytest.CaptureFixture):
    """With a byte less than the first setting needs, another is found that XLA says fits."""
    setting = small_setting()
    largest = max(program.together for program in compiled(setting))
    (plain,) = plan.search(setting, None, Memory(largest, largest), print)
    assert plain["fits"] and plain["change"] == {}
    (more,) = plan.search(setting, None, Memory(2 * largest, 0.9 * largest), print)
    assert more["fits"] and more["environment"] == {FRACTION: 0.51} and f"{FRACTION}=0.51" in more["verdict"]
    first, *_, last = plan.search(setting, None, Memory(0.8 * largest, 0.8 * largest), print)
    assert not first["fits"] and "needs" in first["reason"]
    assert last["fits"] and last["change"]
    assert max(program["together"] for program in last["programs"]) <= 0.8 * largest
    section, key = next(iter(last["change"])).split(".")
    assert setting.config[section][key] == quickstart_sums.get_config()[section][key], "the first setting was changed"


def compiled(setting: Setting) -> list:
    compiler = Compiler(setting, print)
    compiler.all()
    return compiler.programs


@pytest.mark.parametrize(("algorithm", "name", "copies"), [("ppo", "critic", 6), ("prime", "process", 7)])
def test_the_other_model_is_planned_for(algorithm: str, name: str, copies: int):
    """Hand-worked: masters and two moments of both models, and the start; what it learns with is compiled."""
    config = ConfigDict(small_setting().config.to_dict())
    config.algorithm, config.train.kl_coef, config.train.minibatch_prompts = algorithm, 0.0, 2
    setting = dataclasses.replace(small_setting(), config=FrozenConfigDict(config))
    with jax.set_mesh(setting.mesh):
        compiler = Compiler(setting, print)
        compiler.learning(name)
        compiler.learning("policy")
    labels = [program.label for program in compiler.programs]
    scored = [f"score {name} score"] if name == "critic" else []  # values; the start is scored in the gradient
    assert labels == [
        *scored, f"update {name} gradient", f"update {name} step", "score", "update gradient", "update step"
    ]  # fmt: skip
    one = chip_bytes(setting.layout().policy.params)
    assert compiler.state == pytest.approx(copies * one, rel=0.01)
    assert all(program.together >= compiler.state for program in compiler.programs)


def halves(setting: Setting, **dtypes: str) -> Setting:
    config = ConfigDict(setting.config.to_dict())
    config.train.update(dtypes)
    return dataclasses.replace(setting, config=FrozenConfigDict(config))


@pytest.mark.parametrize(
    ("master", "moments", "held"),
    [("float32", "bfloat16", 8), ("bfloat16", "float32", 10), ("bfloat16", "bfloat16", 6)],
)
def test_masters_and_moments_in_bfloat16_are_counted(master: str, moments: str, held: int):
    """Hand-worked: of 599,936 weights 2 or 4 bytes of the master, twice that of a moment, 4 of the start, which
    computes in float32 here, and 4 of the gradient's sum while the model learns, whatever the masters are."""
    setting = halves(small_setting(), master_dtype=master, moments_dtype=moments)
    one, config = 599_936 // 8, setting.config
    assert chip_bytes(setting.layout()) == pytest.approx(held * one, abs=100)
    assert programs_of_config.trained_bytes(config, setting.model) == held * 599_936
    with jax.set_mesh(setting.mesh):
        compiler = Compiler(setting, print)
        compiler.learning("policy")
    assert compiler.state == pytest.approx((held + 4) * one, abs=100)
    for program in compiler.programs:
        masters = 2 if master == "bfloat16" else 4
        assert program.weights == (masters + 4) * one
        assert program.optimizer == pytest.approx((held - masters + 4) * one, abs=100)
        assert min(program.cache, program.activations) >= 0
    step = compiler.programs[-1]
    assert step.aliased >= held * one  # a step holds no second model
    estimate = estimates(setting)["gradient"]
    assert estimate.state == pytest.approx(compiler.state + 4 * one)
    assert estimate.more < estimates(small_setting())["gradient"].more or master == "float32"


@pytest.mark.slow
def test_what_rests_in_the_hosts_memory_takes_none_of_a_device_while_it_samples():
    """Hand-worked: without masters and moments, but for the masters while they are copied."""
    config = ConfigDict(small_setting().config.to_dict())
    config.mesh.offload, setting = True, small_setting()
    there, rest = compiled(setting), compiled(dataclasses.replace(setting, config=FrozenConfigDict(config)))
    masters, state = chip_bytes(setting.layout().policy.params), chip_bytes(setting.layout())
    for one, other in zip(there, rest, strict=True):
        saved = {"sample": state, "evaluate": state}.get(one.phase, 0) - masters * (one.name == "copy")
        assert one.together - other.together == saved, one.label
        assert min(other.weights, other.optimizer, other.cache, other.activations) >= 0


def test_nothing_fits_a_thimble():
    setting = small_setting()
    (only,) = plan.search(setting, None, Memory(1e5, 1e5), print)
    assert not only["fits"]


def test_smaller_steps_come_first_and_estimates_go_down():
    setting = small_setting()
    needs = {name: one.state + one.more for name, one in estimates(setting).items()}
    changes = list(nearest(setting, 0.99 * max(needs.values()), {}))
    assert changes[0] in ({"train.micro_tokens": 3072}, {"rollout.rows": 512}, {"mesh.tensor": 2})
    sizes = [sum(map(abs, map(doublings, change.items()))) for change in changes]
    assert sizes == sorted(sizes)
    split = changed(setting, {"mesh.tensor": 2})
    assert (
        dict(split.mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
        and split.config.train.to_dict() == setting.config.train.to_dict()
    )
    assert estimates(split)["copy"].more < estimates(setting)["copy"].more


def doublings(change: tuple[str, int]) -> int:
    key, value = change
    given = {"train.micro_tokens": 6144, "rollout.rows": 1024, "mesh.tensor": 1}[key]
    return round(max(value, given) / min(value, given)).bit_length() - 1


def test_estimates_learn_from_what_xla_said():
    """A factor that makes the estimate of the same setting XLA's own."""
    setting = small_setting()
    programs = [program for program in compiled(setting) if program.name == "gradient"]
    factors = found(setting, programs, {"decode": 3.0})
    one = estimates(setting)["gradient"]
    assert one.state + factors["gradient"] * one.more == pytest.approx(programs[0].together)
    assert factors["decode"] == 3.0


# ---------------------------------------------------------------------- what a user can get wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v9:4x4"], ("v9:4x4", "v5e", "v6e")),
        (["--topology=v5e"], ("v5e", "v5e:4x4")),
        (["--topology=v5e:4xfour"], ("4xfour",)),
        (["--topology=a100"], ("a100", "a100-80", "h100:8")),
        (["--topology=h100:"], ("h100:", "h100:8")),
        (["--topology=h100:0"], ("h100:0", "h100:8")),
        (["--topology=h100:2x4"], ("h100:2x4", "h100:8")),
        (["--topology=h100:12"], ("h100:12", "8 GPUs each")),
        (["--questions=16"], ("2 whole numbers", "'16'")),
        (["--questions=a,b"], ("2 whole numbers", "'a,b'")),
        (["--questions=4,8", "--config.rollout.prompts=8"], ("4 questions", "rollout.prompts=8")),
        (["--config.mesh.tensor=3"], ("mesh", "8 devices")),
        (["--config.model.path=nowhere.gguf"], ("model.path",)),
        (["--config.rollout.max_tokens=200"], ("positions", "lower one")),
        (["--config.model.attention=splash"], ("splash runs on TPUs",)),
    ],
)
def test_mistakes_are_one_sentence(call, arguments: list[str], words: tuple[str, ...]):
    code, out, err = call(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    assert all(word in err for word in words), err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_slice_without_the_compiler_for_it(call):
    code, _, err = call("--topology=v5e:4x4")
    assert code == 2 and 'pip install -e ".[tpu]"' in err and err.count("\n") == 1


@pytest.mark.skipif(gpus.installed(), reason="the compiler for GPUs is installed")
def test_a_gpu_without_the_compiler_for_it(call):
    code, _, err = call("--topology=h100")
    assert code == 2 and 'pip install -e ".[cuda13]"' in err and err.count("\n") == 1


def test_well_known_models_need_no_files(call):
    """Two layers' worth of arithmetic only: the shape is read, and the run is refused for its mesh."""
    code, _, err = call("--config.model.path=Qwen/Qwen2.5-Math-7B", "--config.mesh.tensor=3")
    assert code == 2 and "mesh" in err


def test_questions_that_are_not_here_are_assumed():
    """As many as are sampled at once, so that the plan holds for any number."""
    config = quickstart_sums.get_config()
    config.data.path, config.eval.tasks = "someone/questions", ()
    assert plan.number_of_questions(FrozenConfigDict(config), []) is None
    assert plan.number_of_questions(FrozenConfigDict(config), ["30"]) == (30,)
    setting = dataclasses.replace(small_setting(), questions=(256,))
    _, (evaluation, *_), _ = setting.draws()[-1]
    assert evaluation.at_once == 256 and evaluation.batches == 1


def test_programs_of_a_run_are_counted_where_it_has_few(monkeypatch: pytest.MonkeyPatch):
    """Hand-worked, as if these were no CPUs: of responses of 13 tokens each of three numbers of slots has one size of
    the cache; rows have one shape, and one optimizer step takes all, so that no scores are computed."""
    setting = small_setting()
    assert Compiler(setting, print).of_run() is None
    monkeypatch.setattr(programs_of_config, "_on_cpu", lambda mesh: False)
    assert Compiler(setting, print).of_run() == {"decode": 3, "prefill": 1, "update": 2}
    config = ConfigDict(setting.config.to_dict())
    config.judge.rule = "scrl"  # which reads entropies
    asking = dataclasses.replace(setting, config=FrozenConfigDict(config))
    assert Compiler(asking, print).of_run() == {"decode": 3, "prefill": 1, "update": 3}


def test_the_pass_over_all_votes_is_planned_for():
    """Hand-worked: the gradient is three passes over the 32 rows trained on of each question and one under the start,
    and a judge that reads entropies asks for one over all its 64 votes: twice as much of a pass, for a fourth of it."""
    config = ConfigDict(small_setting().config.to_dict())
    config.judge.rule, config.rollout.votes, config.train.samples = "negative", 64, 32
    with jax.set_mesh(small_setting().mesh):
        compiler = Compiler(dataclasses.replace(small_setting(), config=FrozenConfigDict(config)), print)
        compiler.learning("policy")
    score, gradient, _ = compiler.programs
    again = config.train.remat == "full"
    assert (score.label, gradient.label) == ("score", "update gradient")
    assert gradient.work.flops / score.work.flops == pytest.approx((3 + again + (config.train.kl_coef > 0)) / 2)


@pytest.mark.parametrize(("label", "order"), [("offline", "shuffled"), ("majority", "vote_share")])
def test_all_that_a_run_samples_is_planned_for(label: str, order: str):
    """Also one greedy response to each question, and what the start model votes on once: labels, or an order."""
    config = quickstart_sums.get_config()
    config.eval.greedy, config.reward.label, config.data.order, config.rollout.rows = True, label, order, 64
    setting = dataclasses.replace(small_setting(), config=FrozenConfigDict(config))
    drawn = {
        phase: [(draw.questions, draw.votes, draw.at_once) for draw in draws] for phase, draws, _ in setting.draws()
    }
    assert drawn == {
        "sample": [(8, 64, 8)],
        "label": [(64, 64, 16)],
        "evaluate": [(256, 17, 16), (64, 17, 16)],
    }
