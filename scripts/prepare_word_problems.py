"""Prepare word problems for configs/turkish_math.py: sample them, have them translated, and write what it reads.

    python scripts/prepare_word_problems.py sample openai/gsm8k --subset main --question-column question --out turkish
    python scripts/prepare_word_problems.py finish turkish --translated translated.jsonl

`sample` reads a .json, .jsonl, .csv, .tsv or .parquet file or a hub data set, keeps the questions whose answer is a
whole number, draws some of them by a seed, and writes OUT/questions.jsonl: rows of `id`, `question` and `answer`.
Translating them is up to you. Of an answer that ends in `#### 42`, as those of GSM8K do, it takes the number there;
other worked solutions are read as --truth-extract says, which is data.truth_extract of a config: last_number, say.

`finish` takes a file of the translations, rows of the same `id` and the translated `question` in any order, and writes
DIR/train.jsonl and DIR/test.jsonl, rows of `id`, `prompt` and `answer`. Without --translated the questions stay as they
were sampled, for data that is in the right language already.

Needs nothing but the package; takes seconds, and for a hub data set a network.
"""

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package of this checkout

from ttrl_jax.data.problems import load, truths  # noqa: E402
from ttrl_jax.errors import InputError  # noqa: E402
from ttrl_jax.run import places  # noqa: E402
from ttrl_jax.run.metrics import write_jsonl  # noqa: E402
from ttrl_jax.tasks.truths import read_truths  # noqa: E402

QUESTIONS = "questions.jsonl"
PARTS = ("train", "test")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows the arguments")


def main(arguments: Sequence[str]) -> int:
    try:
        given = read_arguments(arguments)
        return sample(given) if given.command == "sample" else finish(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def local(path: str) -> Path:
    return places.local(path, flag="a path")


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("sample", help="draw questions to translate")
    first.add_argument("data", help=".json, .jsonl, .csv or .parquet file, or a hub data set")
    first.add_argument("--subset", help="of a hub data set that has several, such as main of openai/gsm8k")
    first.add_argument("--split", default="train", help="of a hub data set (default: train)")
    first.add_argument("--question-column", default="prompt", help="default: prompt, or question, problem ... if there")
    first.add_argument("--answer-column", default="answer")
    first.add_argument("--truth-extract", default="", help="hash, last_number, answer_is, boxed or tag:NAME")
    first.add_argument("--train", type=int, default=2000, help="questions to train on (default: 2000)")
    first.add_argument("--test", type=int, default=598, help="held-out questions (default: 598)")
    first.add_argument("--seed", type=int, default=0, help="which questions are drawn (default: 0)")
    first.add_argument("--out", type=local, required=True, help="folder to write")
    second = commands.add_parser("finish", help="write train.jsonl and test.jsonl")
    second.add_argument("folder", type=local, help="what `sample` has written")
    second.add_argument("--translated", type=local, help="file of rows with `id` and `question`")
    return parser.parse_args(arguments)


def sample(given: argparse.Namespace) -> int:
    """Draw --train and --test questions with whole answers and write them; no question is drawn twice."""
    if min(given.train, given.test) < 1 or given.seed < 0:
        raise InputError(
            f"--train={given.train} and --test={given.test} must be at least 1, and --seed={given.seed} at least 0"
        )
    path = given.out / QUESTIONS
    if path.exists() or (given.out.exists() and not given.out.is_dir()):
        raise InputError(f"{path if path.exists() else given.out} exists and is kept; give another --out")
    columns = given.question_column, given.answer_column
    rows = read_rows(given.data, given.split, given.subset, *columns, truth_extract=given.truth_extract)
    whole: dict[str, tuple[str, str]] = {}  # question -> its id and answer, where it is seen first
    for name, question, answer in rows:
        number = whole_number(answer)
        if number is not None:
            whole.setdefault(question.strip(), (name, number))
    wanted = given.train + given.test
    if len(whole) < wanted:
        raise InputError(
            f"{given.data} has {len(whole)} different questions with a whole number as answer, of {len(rows)}, and "
            f"{wanted} are to be drawn; lower --train={given.train} or --test={given.test}"
        )
    order = np.random.default_rng(given.seed).permutation(len(whole))[:wanted]
    questions = list(whole.items())
    drawn = []
    for place, i in enumerate(order):
        question, (name, number) = questions[i]
        # The part is in the id, so that no row number can be taken for one.
        drawn.append({"id": f"{PARTS[place >= given.train]}-{name}", "question": question, "answer": number})
    write_jsonl(path, drawn)
    print(f"{len(whole)} of {len(rows)} questions are different and have a whole number as answer")
    print(f"wrote {wanted} of them to {path}; translate the column `question` and keep the column `id`")
    return 0


def finish(given: argparse.Namespace) -> int:
    """Join the sampled answers with the translated questions by id, and write the two parts."""
    sampled = read_rows(str(given.folder / QUESTIONS), "train", None, "question", "answer")
    texts = {name: question for name, question, _ in sampled}
    if given.translated is not None:
        source = {name: question for name, question, _ in sampled}
        texts = translations(str(given.translated), source)
        same = sum(texts[name] == question for name, question in source.items())
        print(f"{len(texts) - same} questions are translated, {same} are as they were")
    for part in PARTS:
        rows = [
            {"id": name, "prompt": texts[name], "answer": answer}
            for name, _, answer in sampled
            if name.startswith(f"{part}-")
        ]
        write_jsonl(given.folder / f"{part}.jsonl", rows)
        print(f"wrote {len(rows)} questions to {given.folder / part}.jsonl")
    return 0


def translations(path: str, source: dict[str, str]) -> dict[str, str]:
    """The translated question of each id of `source`. Raises InputError unless there is one for each, and no other."""
    found = {
        problem.id: problem.question
        for problem in load(path, split="train", question_column="question", truth_column="", level=None, limit=None)
    }
    missing, unknown = ([name for name in a if name not in b] for a, b in ((source, found), (found, source)))
    if missing or unknown:
        raise InputError(
            f"{path} must have one row with `id` and `question` for each id of {QUESTIONS}; {len(missing)} of them are "
            f"missing{_first(missing)} and {len(unknown)} others are there{_first(unknown)}"
        )
    return found


def read_rows(
    path: str, split: str, subset: str | None, question_column: str, answer_column: str, *, truth_extract: str = ""
) -> list[tuple[str, str, str]]:
    """(id, question, answer) of each row that has an answer. Raises InputError if none has, or on unreadable data."""
    problems = load(
        path,
        split=split,
        subset=subset,
        question_column=question_column,
        truth_column=answer_column,
        level=None,
        limit=None,
        read_truths=functools.partial(
            read_truths, way=truth_extract, path=path, of_formulas=True, say=print, key="--truth-extract"
        ),
        say=print,
    )
    answers = truths(problems)
    if answers is None:
        raise InputError(f"{path} has no column {answer_column!r} with answers; name it by --answer-column")
    rows = zip(problems, answers, strict=True)
    return [(problem.id, problem.question, answer) for problem, answer in rows if answer is not None]


def whole_number(answer: str) -> str | None:
    """The whole number that an answer is, in plain digits: of one with `####` what follows the last; else None."""
    text = answer.rpartition("####")[2].strip().removeprefix("$")
    match = re.fullmatch(r"([+-]?)([0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,30})(?:\.0+)?", text)
    return None if match is None else str(int(match[1] + match[2].replace(",", "")))


def _first(names: Sequence[str]) -> str:
    return f" (the first is {names[0]!r})" if names else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
