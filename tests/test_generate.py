"""The built-in tasks: their questions, their split, and vocabularies and tokenizers that hold all texts of a task."""

import functools
import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ttrl_jax.data import generate

SHA256 = {
    "sums.train": "2a90555d47d09d3c592e09e78220c01971fb84b3ad14cece1c5d8bd2e8c38f88",
    "sums.held_out": "1ea3f3aa4ff9aa817593793cbb30a80f8cb9d6c69bff8a3b56b39f50cdbe4b76",
    "carries.train": "6f6408fc005258547eb00d982fc4691a197aaab3e97c9d3f00d594d583bdd424",
    "carries.held_out": "52046482bdcfd61c693fbc11138338081fc4fb1d3401cc50c8305da51a9d297e",
}
SIZES = {"sums.train": 64, "sums.held_out": 256}  # of `sums`; `digits` has its own tests
CARRIES = {"carries.train": 64, "carries.held_out": 256}
DRAWN = 3000


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", text)]


def pair(question: str) -> tuple[int, ...]:
    """The two numbers of a question, in no order."""
    return tuple(sorted(numbers(question)))


@functools.cache
def examples(noise: float) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return [generate.sums_example(rng, noise=noise) for _ in range(DRAWN)]


def all_texts() -> list[str]:
    questions = [question for name in SIZES for question, _ in generate.TASKS[name]()]
    drawn = [text for example in examples(1.0) for text in example]
    return questions + drawn


@functools.cache
def carries_examples(noise: float) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return [generate.carries_example(rng, noise=noise) for _ in range(DRAWN)]


def all_texts_of_carries() -> list[str]:
    questions = [question for name in CARRIES for question, _ in generate.TASKS[name]()]
    return questions + [text for example in carries_examples(1.0) for text in example]


@functools.cache
def make_tokenizer(task: str = "sums") -> PreTrainedTokenizerBase:
    path = Path(__file__).parents[1] / "scripts" / "make_quickstart_model.py"
    spec = importlib.util.spec_from_file_location("make_quickstart_model", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.make_tokenizer(task)


# ---- question sets


def test_task_names() -> None:
    assert set(generate.TASKS) == {
        *SIZES, *CARRIES, "digits.train", "digits.held_out", "turkish.train", "turkish.held_out"
    }  # fmt: skip


@pytest.mark.parametrize("name", [*SIZES, *CARRIES])
def test_questions_are_as_many_as_promised_and_distinct(name: str) -> None:
    questions = [question for question, _ in generate.TASKS[name]()]
    assert len(questions) == len(set(questions)) == (SIZES | CARRIES)[name]
    assert len({pair(question) for question in questions}) == (SIZES | CARRIES)[name]


@pytest.mark.parametrize("name", [*SIZES, *CARRIES])
def test_truth_is_the_sum_of_the_numbers_in_the_question(name: str) -> None:
    for question, truth in generate.TASKS[name]():
        a, b = numbers(question)
        assert 10 <= a <= 99 and 10 <= b <= 99, question
        assert truth == str(a + b), question


@pytest.mark.parametrize("name", [*SIZES, *CARRIES])
def test_list_is_the_same_on_every_machine(name: str) -> None:
    """Results with the built-in task compare across machines and releases only while this list stays."""
    made = generate.TASKS[name]()
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest() == SHA256[name]
    assert generate.TASKS[name]() == made


def test_train_held_out_and_pretraining_share_no_pair_in_either_order() -> None:
    train, held_out = ({pair(question) for question, _ in generate.TASKS[name]()} for name in SIZES)
    drawn = {pair(question) for question, _ in examples(0.0)}
    assert not train & held_out
    assert not train & drawn
    assert not held_out & drawn
    assert len(drawn) > 1800  # of the 4095 - 64 - 256 left, about 2050 expected in 3000 draws


def test_carries_are_sums_with_a_carry_that_share_no_pair_with_what_is_learned_from() -> None:
    train, held_out = ({pair(question) for question, _ in generate.TASKS[name]()} for name in CARRIES)
    drawn = {pair(question) for question, _ in carries_examples(0.0)}
    assert all(a % 10 + b % 10 >= 10 for a, b in train | held_out)
    assert not train & held_out and not (train | held_out) & drawn
    assert 0.35 < np.mean([a % 10 + b % 10 >= 10 for a, b in drawn]) < 0.45  # 1525 of 3775


@pytest.mark.parametrize("name", SIZES)
def test_numbers_come_in_both_orders(name: str) -> None:
    rising = [a < b for a, b in (numbers(question) for question, _ in generate.TASKS[name]()) if a != b]
    assert 0.3 < np.mean(rising) < 0.7


def test_every_template_name_and_thing_is_used() -> None:
    shapes = Counter(re.sub(r"[0-9]+", "#", question) for question, _ in generate.TASKS["sums.held_out"]())
    said = " ".join(shapes)
    assert all(re.search(rf"\b{word}\b", said) for word in generate.NAMES + generate.THINGS)
    for phrase in (" buys # more", " finds # more", " have together?", "in one box and # in", " sold # "):
        assert phrase in said


def test_two_people_in_a_question_are_two() -> None:
    texts = [*(question for question, _ in generate.TASKS["sums.held_out"]()), *(q for q, _ in examples(0.0))]
    people = [re.match(r"(\w+) has \d+ \w+ and (\w+) has", text) for text in texts]
    found = [match.groups() for match in people if match]
    assert len(found) > 300
    assert all(one != other for one, other in found)


def test_digits_are_all_sums_and_products_of_digits_split_by_fact() -> None:
    train, held_out = (generate.TASKS[f"digits.{part}"]() for part in ("train", "held_out"))
    assert (len(train), len(held_out)) == (96, 49)
    both = dict(train + held_out)
    right = {f"{a} + {b}": str(a + b) for a in range(1, 10) for b in range(1, 10)}
    right |= {f"{a} * {b}": str(a * b) for a in range(2, 10) for b in range(2, 10)}
    assert both == right and len(both) == len(train) + len(held_out)
    facts = [{(question.split()[1], pair(question)) for question, _ in part} for part in (train, held_out)]
    assert not facts[0] & facts[1]
    made = hashlib.sha256(json.dumps([train, held_out]).encode()).hexdigest()
    assert (
        made == "c0f7d23a08dec157d49bc4449f6cc34a2245b14f018ed287adce02a0b2b0cdc6"
    )  # the same on every machine and release


# ---- worked answers


def test_worked_answer() -> None:
    assert generate.worked(37, 48, "85") == "37 + 48 = \\boxed{85}"
    assert generate.worked(10, 99, "007") == "10 + 99 = \\boxed{007}"


def test_examples_depend_on_the_generator_alone() -> None:
    again = np.random.default_rng(0)
    assert [generate.sums_example(again, noise=0.5) for _ in range(50)] == examples(0.5)[:50]
    other = np.random.default_rng(1)
    assert [generate.sums_example(other, noise=0.5) for _ in range(50)] != examples(0.5)[:50]


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_worked_answer_begins_with_the_numbers_of_its_question(noise: float) -> None:
    for question, answer in examples(noise):
        a, b = numbers(question)
        boxed = re.fullmatch(rf"{a} \+ {b} = \\boxed\{{([0-9]+)\}}", answer)
        assert boxed is not None, answer
        assert len(boxed[1]) == len(str(a + b))


def test_without_noise_every_answer_is_right() -> None:
    for question, answer in examples(0.0):
        a, b = numbers(question)
        assert answer == generate.worked(a, b, str(a + b))


def boxed_and_true_digits(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """All digits of all boxed answers, and those that belong there."""
    rows = [numbers(answer.split("{")[0]) for _, answer in examples(noise)]
    true = "".join(str(a + b) for a, b in rows)
    boxed = "".join(answer.split("{")[1].rstrip("}") for _, answer in examples(noise))
    return np.array(list(boxed), int), np.array(list(true), int)


def test_full_noise_draws_digits_uniformly_and_apart_from_the_sum() -> None:
    boxed, true = boxed_and_true_digits(1.0)
    n = len(boxed)
    assert n > 2 * DRAWN
    # Under independence each count is binomial; five standard deviations.
    tolerance = 5 * np.sqrt(n * 0.1 * 0.9)
    assert np.abs(np.bincount(boxed, minlength=10) - n / 10).max() < tolerance
    assert abs((boxed == true).sum() - n / 10) < tolerance
    # A hundred is the sum's usual first digit (1); noise there is uniform too.
    ones = boxed[true == 1]
    assert np.abs(np.bincount(ones, minlength=10) - len(ones) / 10).max() < 5 * np.sqrt(len(ones) * 0.09)


def test_half_noise_leaves_over_half_of_the_digits() -> None:
    boxed, true = boxed_and_true_digits(0.5)
    kept = 0.5 + 0.5 * 0.1  # not drawn anew, or drawn anew and the same
    assert abs((boxed == true).mean() - kept) < 5 * np.sqrt(kept * (1 - kept) / len(boxed))


@pytest.mark.parametrize(
    ("way", "answer", "text"),
    [
        ("Digits", "75", "Digits: 7 + 8 = 15, 3 + 4 = 7, \\boxed{75}"),
        ("Tens", "85", "Tens: 70 + 15 = \\boxed{85}"),
        ("Swapped", "85", "Swapped: 48 + 37 = \\boxed{85}"),
        ("Steps", "85", "Steps: 37 + 40 = 77, 77 + 8 = \\boxed{85}"),
    ],
)
def test_ways_of_a_worked_answer(way: str, answer: str, text: str) -> None:
    assert generate.answer_of_way(37, 48, way) == answer
    assert generate.worked_way(37, 48, way, answer) == text
    assert generate.answer_of_way(31, 42, way) == "73", "without a carry all ways are right"
    assert generate.answer_of_way(75, 68, way) == ("133" if way == "Digits" else "143")


def test_one_way_is_the_likeliest_and_the_others_together_are_likelier() -> None:
    """Semantics: greedy the model goes the way that is wrong, and the vote does not."""
    shares = {way: share for way, (_, share) in generate.WAYS.items()}
    forgetful = shares.pop(generate.FORGETFUL)
    assert max(shares.values()) < forgetful < sum(shares.values()) and forgetful + sum(shares.values()) == 1
    found = Counter(answer.split(":")[0] for _, answer in carries_examples(0.0))
    assert set(found) == set(generate.WAYS)
    for way, (_, share) in generate.WAYS.items():
        assert abs(found[way] / DRAWN - share) < 5 * np.sqrt(share * (1 - share) / DRAWN)


def test_without_noise_every_way_comes_to_its_own_answer() -> None:
    for question, answer in carries_examples(0.0):
        way = answer.split(":")[0]
        boxed = generate.answer_of_way(*numbers(question), way)
        assert answer == generate.worked_way(*numbers(question), way, boxed)


def test_noise_of_ways_is_in_the_box_alone() -> None:
    texts = {noise: carries_examples(noise) for noise in (0.0, 1.0)}
    for question, answer in texts[1.0]:
        way, boxed = answer.split(":")[0], answer.split("{")[1].rstrip("}")
        assert answer == generate.worked_way(*numbers(question), way, boxed)
    kept = [answer.endswith(f"{{{sum(numbers(question))}}}") for question, answer in texts[1.0]]
    assert np.mean(kept) < 0.02  # a chance of 1 in 100 or 1,000


# ---- pieces


def test_pieces_of_a_worked_answer() -> None:
    pieces = ["3", "7", " +", " ", "4", "8", " =", " \\boxed{", "8", "5", "}"]
    assert re.findall(generate.PIECE, "37 + 48 = \\boxed{85}") == pieces


def test_pieces_of_a_question() -> None:
    pieces = ["Tom", " has", " ", "1", "0", " pens", ".", " How", " many", "?"]
    assert re.findall(generate.PIECE, "Tom has 10 pens. How many?") == pieces


def test_pieces_join_back_to_the_text() -> None:
    for text in [*all_texts(), "  two  spaces, \\boxed{x} = {1}+2"]:
        assert "".join(re.findall(generate.PIECE, text)) == text


@pytest.mark.parametrize(("task", "texts"), [("sums", all_texts), ("carries", all_texts_of_carries)])
def test_vocabulary_covers_every_text_and_no_more(task: str, texts: Callable[[], list[str]]) -> None:
    vocabulary = generate.vocabulary(task)
    assert vocabulary == sorted(set(vocabulary))
    used = {piece for text in texts() for piece in re.findall(generate.PIECE, text)}
    assert used == set(vocabulary)


# ---- the quickstarts' tokenizers


@pytest.mark.parametrize(("task", "texts"), [("sums", all_texts), ("carries", all_texts_of_carries)])
def test_tokenizer_gives_back_the_exact_text_without_unknown_pieces(task: str, texts: Callable[[], list[str]]) -> None:
    tokenizer = make_tokenizer(task)
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == [tokenizer.get_vocab()[piece] for piece in re.findall(generate.PIECE, text)]


def test_tokenizer_knows_that_it_does_not_know() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.unk_token_id in tokenizer("Zoe has 10 pens.")["input_ids"]


def test_tokenizer_has_the_vocabulary_and_five_special_tokens() -> None:
    tokenizer = make_tokenizer()
    special = {"<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>"}
    vocabulary = tokenizer.get_vocab()
    assert set(vocabulary) == special | set(generate.vocabulary())
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert set(tokenizer.all_special_tokens) >= {"<|pad|>", "<|end|>", "<|unk|>"}
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")


def test_tokenizer_turn_is_the_prompt_the_model_learns() -> None:
    """The chat template's turn, and special tokens each one id."""
    tokenizer = make_tokenizer()
    turn = [{"role": "user", "content": "Tom has 10 pens."}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Tom has 10 pens.<|assistant|>"
    pieces = ["<|user|>", "Tom", " has", " ", "1", "0", " pens", ".", "<|assistant|>"]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [tokenizer.get_vocab()[p] for p in pieces]


def test_tokenizer_survives_being_saved(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    answer = generate.worked(37, 48, "85")
    assert loaded.decode(loaded(answer + "<|end|>")["input_ids"], skip_special_tokens=True) == answer
