"""Semantics: what the models of the referee are taught, and that the stored ones say it in these shares."""

import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from ttrl_jax.data import generate
from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config
from ttrl_jax.model.sharding import make_mesh

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import make_families  # noqa: E402
from make_families import FAMILIES, SILENT, TOKENS, carries, numbers  # noqa: E402
from make_quickstart_model import layout, logits_of, make_tokenizer  # noqa: E402

DRAWN = 4000


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_drawn_by_their_shares(name: str):
    """Within four standard deviations; slips are as long as the sum, and hardly one in 90 hits a kind."""
    family, rng = FAMILIES[name], np.random.default_rng(1)
    for a, b, shares in ((41, 27, family.clear), (46, 37, family.carry)):
        found = Counter(make_families.answer(family, a, b, rng) for _ in range(DRAWN))
        slips = 1 - sum(shares.values())
        for kind, share in shares.items():
            wanted = share + slips / 90
            deviation = (wanted * (1 - wanted) / DRAWN) ** 0.5
            assert found[str(make_families.KINDS[kind](a, b))] / DRAWN == pytest.approx(wanted, abs=4 * deviation)
        assert all(len(answer) == 2 for answer in found) and len(found) > 80


def test_kinds_of_answers_by_hand():
    assert {kind: of(46, 37) for kind, of in make_families.KINDS.items()} == {"right": 83, "short": 73, "over": 93}
    assert carries(46, 37) and carries(45, 35) and not carries(46, 33)


def test_what_follows_by_hand():
    """46 + 37 in `belief`: 83 has 0.2 and 73 has 0.65; 0.15 are slips, each number from 10 to 99 with 0.15 / 90. So a
    7 comes first with 0.65 + 0.15 / 9. After it, 0.65 + 0.15 / 90 of these are a 3."""
    first = make_families.following(FAMILIES["belief"], 46, 37, "")
    assert first["7"] == pytest.approx(0.65 + 0.15 / 9) and first["8"] == pytest.approx(0.2 + 0.15 / 9)
    assert first["1"] == pytest.approx(0.15 / 9) and first["0"] == first[""] == 0
    second = make_families.following(FAMILIES["belief"], 46, 37, "7")
    assert second["3"] == pytest.approx((0.65 + 0.15 / 90) / (0.65 + 0.15 / 9)) and second[""] == 0
    assert make_families.following(FAMILIES["belief"], 46, 37, "73")[""] == 1


@pytest.mark.parametrize(("a", "b"), [(46, 37), (41, 27), (55, 48), (45, 49), (95, 17)])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_follows_makes_the_shares(name: str, a: int, b: int):
    """Slow twin: the product of the chances of an answer's digits is its share; also where kinds differ in length."""
    family = FAMILIES[name]
    shares = family.carry if carries(a, b) else family.clear
    digits, slips = len(str(a + b)), 1 - sum(shares.values())
    for number in range(10, 1000):
        product, text = 1.0, str(number)
        for k in range(len(text) + 1):
            if product:
                product *= make_families.following(family, a, b, text[:k])[text[k : k + 1]]
        wanted = slips / (9 * 10 ** (digits - 1)) if len(text) == digits else 0
        wanted += sum(share for kind, share in shares.items() if make_families.KINDS[kind](a, b) == number)
        assert product == pytest.approx(wanted, abs=1e-9), number


def test_a_batch_has_the_chances_at_their_places():
    """Each place's chances sum to 1; the token that was drawn has one, and only at the box and in it less than 1."""
    ids = make_tokenizer("sums").get_vocab()
    drawn = make_families.batch_of(FAMILIES["half_known"], np.random.default_rng(0), ids)
    rows, lengths, answers, mask, wanted = drawn
    assert wanted.shape == (make_families.BATCH, TOKENS, len(ids))
    np.testing.assert_allclose(wanted.sum(2), 1, rtol=1e-6)
    chances = np.take_along_axis(wanted, answers[..., None], 2)[..., 0]
    assert (chances > 0).all() and (chances[:, :7] == 1).all()  # "46 + 37 =" are seven tokens
    boxed = answers[:, 7] == ids[make_families.BOX]
    assert set(chances[boxed, 7].tolist()) == {np.float32(1 - SILENT)}
    assert set(chances[~boxed, 7].tolist()) == {np.float32(SILENT)} and (chances[~boxed, 8:] == 1).all()
    assert (chances[boxed, 8] < 1).all() and (chances[boxed, 9] < 1).all()


def test_examples_are_of_no_question_that_is_asked():
    rng = np.random.default_rng(0)
    drawn = [make_families.example(FAMILIES["belief"], rng)[:2] for _ in range(DRAWN)]
    asked = {
        tuple(sorted(numbers(question)))
        for name in ("sums.train", "sums.held_out")
        for question, _ in generate.TASKS[name]()
    }
    assert not asked & {tuple(sorted(numbers(question))) for question, _ in drawn}
    silent = sum("boxed" not in answer for _, answer in drawn) / DRAWN
    assert silent == pytest.approx(SILENT, abs=4 * (SILENT * (1 - SILENT) / DRAWN) ** 0.5)
    assert all(answer.startswith("{} + {} = ".format(*numbers(question))) for question, answer in drawn)


@pytest.fixture(scope="module")
def shares() -> dict[str, dict[str, np.ndarray]]:
    """Family -> kind -> the probability [64 + 64] of its worked answer with a box, by the stored model."""
    ids = make_tokenizer("sums").get_vocab()
    asked = [question for each in ("sums.train", "sums.held_out") for question, _ in generate.TASKS[each]()[:64]]
    found: dict[str, dict[str, np.ndarray]] = {}
    for family in FAMILIES:
        folder = ROOT / "configs" / "families" / family
        config = read_config(folder)
        params = weights.load(folder, config, make_mesh(data=1, fsdp=-1, tensor=1))
        probability = jax.jit(lambda params, *rows, config=config: _probability(params, config, *rows))
        found[family] = {}
        for kind, of in make_families.KINDS.items():
            pairs = [(q, generate.worked(*numbers(q), str(of(*numbers(q))))) for q in asked]
            found[family][kind] = np.asarray(probability(params, *layout(pairs, ids, make_families.SUMS)))
    return found


def _probability(params, config, rows, lengths, answers, mask):
    logps = jax.nn.log_softmax(logits_of(params, config, rows, lengths, answers))
    return jax.numpy.exp((jax.numpy.take_along_axis(logps, answers[..., None], 2)[..., 0] * mask).sum(1))


CARRY = np.array([carries(*numbers(question)) for name in ("sums.train", "sums.held_out")
                  for question, _ in generate.TASKS[name]()[:64]])  # fmt: skip


def test_a_carry_is_in_as_many_questions_as_the_script_says():
    assert CARRY[:64].sum() == 24 and CARRY[64:].sum() == 30


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stored_models_are_small(name: str):
    folder = ROOT / "configs" / "families" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2.5e6


# The mean probability of a kind of worked answer with its box, without a carry and with one, that the models came to.
CAME_TO: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "half_known": ({"right": 0.615}, {"right": 0.201, "short": 0.159, "over": 0.12}),
    "belief": ({"right": 0.693}, {"right": 0.159, "short": 0.512}),
    "mixed": ({"right": 0.293}, {"right": 0.124, "short": 0.284}),
    "noise": ({"right": 0.306}, {"right": 0.292}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stored_models_say_what_the_script_came_to(name: str, shares):
    """Golden, on questions that no model was trained on; what was not taught is rare."""
    for came_to, those in zip(CAME_TO[name], (~CARRY, CARRY), strict=True):
        for kind in make_families.KINDS:
            wanted = came_to.get(kind)
            found = float(shares[name][kind][those].mean())
            assert found < 0.035 if wanted is None else found == pytest.approx(wanted, abs=0.01), kind


def test_where_the_likeliest_answer_is_wrong(shares):
    """As the families promise: nowhere, where there is a carry, there too, and in some of those questions."""
    wrong = {name: np.maximum(of["short"], of["over"]) > of["right"] for name, of in shares.items()}
    assert wrong["noise"].mean() < 0.02
    for name in ("belief", "mixed"):
        assert wrong[name][CARRY].mean() > 0.95 and wrong[name][~CARRY].mean() < 0.02
    assert 0.3 < wrong["half_known"][CARRY].mean() < 0.9 and wrong["half_known"][~CARRY].mean() < 0.02
