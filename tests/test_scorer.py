"""Semantics: eval.scorer chooses one of several responses, and what goes wrong in its file is one sentence."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import quickstart_sums
from ttrl_jax import library as ttrl
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import identity
from ttrl_jax.reward.estimates import best_of_n
from ttrl_jax.tasks.scorer import from_file, scores_of


def written(folder: Path, text: str) -> str:
    (folder / "scorer.py").write_text(text)
    return str(folder / "scorer.py")


def small(path: str) -> ConfigDict:
    config = quickstart_sums.get_config()
    config.eval.scorer, config.eval.tasks, config.eval.samples = path, (), 4
    config.data.limit = config.rollout.prompts = config.train.minibatch_prompts = 4
    return config


def test_scores_of_responses(tmp_path: Path):
    scorer = from_file(written(tmp_path, "def score(prompt, response):\n    return len(prompt) * 10 + len(response)\n"))
    found = scores_of(scorer, ["ab", "c"], [["x", "xyz"], ["", "xy"]])
    assert found.tolist() == [[21, 23], [10, 12]] and found.dtype == np.float64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("there is no file", "eval.scorer")),
        ("def score(:\n", ("scorer file", "line 1")),
        ("import nothing_like_it\n", ("scorer file", "nothing_like_it")),
        ("score = 3\n", ("no function score(prompt, response)",)),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str | None, words: tuple[str, ...]):
    path = str(tmp_path / "scorer.py") if text is None else written(tmp_path, text)
    with pytest.raises(InputError) as error:
        ttrl.read_inputs(small(path))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('here\\nand there')", ("raised KeyError", "'so 5'")),
        ("return 'good'", ("finite number", "'good'")),
        ("return None", ("finite number", "None")),
        ("return float('nan')", ("finite number", "nan")),
        ("return 1 / 0", ("raised ZeroDivisionError", "division by zero")),
    ],
)
def test_what_goes_wrong_in_the_function(tmp_path: Path, body: str, words: tuple[str, ...]):
    scorer = from_file(written(tmp_path, f"def score(prompt, response):\n    {body}\n"))
    with pytest.raises(InputError) as error:
        scorer("2 + 3", "so 5")
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in ("scorer.py", *words))


def test_an_evaluation_chooses_by_the_scorer(tmp_path: Path):
    """The number is that of its responses, scored again by hand: here the larger answer is taken for the better."""
    text = "import re\n\ndef score(prompt, response):\n    assert prompt.startswith('Tom') or 'many' in prompt\n"
    text += "    return float((re.findall(r'[0-9]+', response) or ['0'])[-1])\n"
    inputs = ttrl.read_inputs(small(written(tmp_path, text)), training=False)
    session = ttrl.open_session(inputs)
    [key] = ttrl.task_keys(session)
    found = ttrl.measure(session, inputs.sets[0], key, progress=lambda *done: None)
    chances = {2: [], 4: []}
    for row in found.rows():
        right = [sample["class"] is not None and sample["class"] == row["right"] for sample in row["samples"]]
        scores = [float("".join(c for c in s["response"].split("{")[-1] if c.isdigit()) or 0) for s in row["samples"]]
        for j, of_rows in chances.items():
            of_rows.append(best_of_n(scores, right, j))
    assert {j: found.numbers[f"scorer_best_of@{j}"] for j in chances} == {j: np.mean(x) for j, x in chances.items()}
    assert len(json.dumps(identity(inputs).config["scorer_sha256"])) == 66
    plain = ttrl.measure(
        dataclasses.replace(session, inputs=dataclasses.replace(inputs, scorer=None)),
        inputs.sets[0],
        key,
        progress=lambda *done: None,
    )
    assert plain.numbers == {name: x for name, x in found.numbers.items() if not name.startswith("scorer_")}
