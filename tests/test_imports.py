"""Semantics: who may import whom, and the wall between the truth and the rewards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ttrl_jax"
FILES = sorted(ROOT.rglob("*.py"))

# A module may import what stands below its line, and within its own room.
LEVELS = [
    {"card", "ctrl_c", "errors", "records"},
    {"commands"},
    {"model", "data", "reward", "run"},
    {"rollout", "learn", "tasks", "source", "check"},
    {"resolve", "cli", "huggingface", "programs", "origin"},
    {"inputs"},
    {"session"},
    {"algorithms", "resume", "prepare", "measure", "merge", "report", "plan"},
    {"stream", "export"},
    {"train", "evaluate", "solve", "library", "look"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path: Path):
    own = room(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("ttrl_jax.")}
    wrong = {other for other in others if other != own and LEVEL[other] >= LEVEL[own]}
    assert not wrong, f"{own} (level {LEVEL[own]}) imports {wrong}"


def test_every_module_has_a_level():
    assert {room(path) for path in FILES} - {"__init__"} == set(LEVEL)


def test_init_files_are_empty():
    """But for the package's own, which does one thing before a command's imports."""
    filled = [path for path in FILES if path.name == "__init__.py" and path.read_text()]
    assert filled == [ROOT / "__init__.py"] and imported(*filled) == {"sys", "ttrl_jax", "ttrl_jax.ctrl_c"}


def test_reward_knows_neither_jax_nor_records():
    for path in (ROOT / "reward").glob("*.py"):
        names = imported(path)
        assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names), path
        assert "ttrl_jax.records" not in names, path


def test_model_knows_neither_text_nor_learning():
    for path in (ROOT / "model").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"transformers", "tokenizers", "optax"}, path


def reads_truth(tree: ast.AST) -> list[str]:
    """Functions in which an attribute `.truth` is read."""
    return [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Attribute) and node.attr == "truth" for node in ast.walk(function))
    ]


def test_the_truth_is_read_in_one_function():
    readers = [(room(path), name) for path in FILES for name in reads_truth(ast.parse(path.read_text()))]
    assert readers == [("data", "truths")]


MEASURES = {"audit", "estimates"}  # of reward/, the modules that only measure
MAKES_REWARDS = [path for path in (ROOT / "reward").glob("[!_]*.py") if path.stem not in MEASURES]


@pytest.mark.parametrize("path", MAKES_REWARDS, ids=lambda path: path.stem)
def test_what_makes_rewards_has_no_parameter_for_the_truth(path: Path):
    tree = ast.parse(path.read_text())
    arguments = {
        argument.arg
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for argument in [*function.args.args, *function.args.kwonlyargs]
    }
    assert not {name for name in arguments if "truth" in name or "gold" in name or "correct" in name}


def test_files_and_functions_stay_small():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "main":
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
