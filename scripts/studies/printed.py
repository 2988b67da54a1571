"""The numbers that the paper prints (arXiv 2504.16084), from printed.json."""

import json
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "printed.json"


def printed() -> dict[str, Any]:
    """All of printed.json."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def cell(table: str, model: str, column: str) -> str:
    """What a table of the paper has for a model, by its name on the hub, and a column: before -> after; empty where it
    has nothing."""
    rows = printed()["tables"].get(table, {})
    found = rows.get(model.rpartition("/")[2], {}).get(column)
    return "" if found is None else " -> ".join(f"{x:g}" for x in found)
