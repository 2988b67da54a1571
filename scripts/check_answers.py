"""Compare answers as test suites of other projects do, and say which of their cases come out otherwise.

    python scripts/check_answers.py FILE_OR_FOLDER ...

Needs nothing but the package, and the suites' own files, which are yours to bring; takes a minute. Nothing of them is
run: their cases are read out of the source. Known are

- math-verify, `tests/test_*.py` of https://github.com/huggingface/Math-Verify: the parametrised cases of a gold, a
  prediction and whether they are equal. A text with a box, or with one formula, stands for what is in there;
- hendrycks' MATH, `modeling/math_equivalence_test.py` of https://github.com/hendrycks/math: one pair a test;
- NeMo-Skills, `tests/test_math_equal.py` of https://github.com/NVIDIA-NeMo/Skills: pairs that are equal, or not.

Prints for each suite how many cases come out as its authors say, and the others with their texts. Equality is asked in
one order: ours has none.
"""

import argparse
import ast
import math
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout

from ttrl_jax.reward.equivalence import same  # noqa: E402
from ttrl_jax.reward.extract import Answer, extract  # noqa: E402

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)", re.DOTALL)
_FINAL = re.compile(r"(?i:final answer)(?: is|:)")
_STORY = 200  # characters
_SENTENCE = re.compile(r"[A-Za-z]{2,}:? [A-Za-z0-9$]{2,}")


@dataclass(frozen=True)
class Case:
    """Two answers, and whether a suite's authors say that they are equal."""

    suite: str
    test: str
    first: str
    second: str
    equal: bool


def cases_of(path: Path) -> list[Case]:
    """The cases of a test file; none if it is of no suite that is known. Raises SyntaxError if it is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # for "\\$" in their source
        warnings.simplefilter("ignore", DeprecationWarning)
        tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    return [case for function in functions for case in (*_parametrised(function), *_asserted(function))]


def _parametrised(function: ast.FunctionDef) -> Iterator[Case]:
    """The rows of `@pytest.mark.parametrize(NAMES, ROWS)`."""
    for call in function.decorator_list:
        if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith("parametrize") and len(call.args) == 2):
            continue
        names = [name.strip() for name in ast.literal_eval(call.args[0]).split(",")]
        if names == ["output_pair"]:
            equal = "incorrect" not in function.name
            for row in call.args[1].elts:
                first, second = (_written(value) for value in row.elts)
                yield Case("NeMo-Skills", function.name, first, second, equal)
        elif names[:2] == ["gold", "pred"]:
            verdict = names.index("expected" if "expected" in names else "result")
            for row in call.args[1].elts:
                first, second = (_read(_written(value)) for value in row.elts[:2])
                yield Case("math-verify", function.name, first, second, bool(ast.literal_eval(row.elts[verdict])))


def _asserted(function: ast.FunctionDef) -> Iterator[Case]:
    """`test_in = ...; test_out = ...; self.assertTrue(is_equiv(test_in, test_out))`."""
    values = {
        ast.unparse(node.targets[0]): node.value.value
        for node in function.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    for node in function.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and "is_equiv(test_in, test_out)" in ast.unparse(call):
            equal = ast.unparse(call.func) == "self.assertTrue"
            yield Case("hendrycks", function.name, values["test_in"], values["test_out"], equal)


def _written(node: ast.expr) -> str:
    """A value as an answer: texts as they are, numbers as Python writes them, quotients and roots as their values."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_written(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        root = node.value
        if not (isinstance(root, ast.Call) and ast.unparse(root.func) == "math.sqrt" and node.format_spec):
            raise ValueError(
                f"expected a text, a number or a square root in line {node.lineno}, got {ast.unparse(node)}"
            )
        return format(math.sqrt(ast.literal_eval(root.args[0])), _written(node.format_spec))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return str(ast.literal_eval(node.left) / ast.literal_eval(node.right))
    value = ast.literal_eval(node)
    return "" if value is None else str(value)


def _read(text: str) -> str:
    """The answer of a text: what it says to be the final one, else its box, else what it says, else its formulas."""
    if r"\begin" not in text:  # whose lines end with two back-slashes
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # raw texts whose back-slashes were doubled all the same
    said = extract(text, strategies=("answer_is",), thinking=False)
    if said is not None and _FINAL.search(text):
        return _bare(said.text)
    if extract(text, strategies=("boxed",), thinking=False) is not None or said is None:
        return _bare(text)
    return _bare(said.text)


def _bare(text: str) -> str:
    """A box, or else of words with formulas all of these, the last of a whole story, or a number that comes after them;
    of words alone the last number."""
    for closed in (text, text + "}"):  # a box that is left open ends with the text
        boxed = extract(closed, strategies=("boxed",), thinking=False)
        if boxed is not None:
            return boxed.text
    found = list(_FORMULA.finditer(text))
    after = text[found[-1].end() if found else 0 :]
    number = extract(after, strategies=("last_number",), thinking=False)
    if number is not None and _SENTENCE.search(after if found else text):
        return number.text
    formulas = ["".join(match.groups("")).strip() for match in found]
    return (", ".join(formulas) if len(text) <= _STORY else formulas[-1]) if found else text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    paths = parser.parse_args().paths
    if missing := [path for path in paths if not path.exists()]:
        parser.error(f"expected test files, or folders of them; there is no {missing[0]}")
    files = [file for path in paths for file in (sorted(path.rglob("*test*.py")) if path.is_dir() else [path])]
    cases = [case for file in files for case in cases_of(file)]
    if not cases:
        parser.error(
            f"expected cases of math-verify, hendrycks or NeMo-Skills, got none in {', '.join(map(str, paths))}"
        )
    for suite in dict.fromkeys(case.suite for case in cases):
        asked = [case for case in cases if case.suite == suite]
        wrong = [case for case in asked if same(Answer(case.first), Answer(case.second)) != case.equal]
        print(f"{suite}: {len(asked) - len(wrong)} of {len(asked)} as its authors say")
        for case in wrong:
            print(
                f"  {case.test}: {case.first!r} and {case.second!r} are {'equal' if case.equal else 'different'} there"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
