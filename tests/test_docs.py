"""Semantics: links between README, docs/ and the site lead somewhere; all files show one address of the project."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r"github(?:\.com)?/([A-Za-z0-9-]+/[\w.-]*?)(?=\.git\b|[/\s)\"'\\]|$)")


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in a link, as GitHub and mkdocs both make it."""
    text = CODE.sub(lambda match: match[0] if match[0].count("\n") == 0 else "", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> Iterator[str]:
    """The links of a page that stay in the repository."""
    for link in LINK.findall(CODE.sub("", path.read_text())):
        if not link.startswith(("https://", "http://")):
            yield link


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path):
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link}, there is {sorted(anchors(target))}"


def test_a_link_into_nothing_is_seen(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One two, three?\n[a](#one-two-three) `[b](no.md)`\n```\n# no heading\n[c](no.md)\n```\n[d](e.md#f)\n"
    )
    assert list(links(page)) == ["#one-two-three", "e.md#f"] and anchors(page) == {"one-two-three"}


def test_pages_that_code_names_are_there():
    files = [path for folder in ("ttrl_jax", "configs", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in files for name in re.findall(r"(?<![\w/])docs/\w+\.(?:md|svg)", path.read_text())}
    assert "docs/library.md" in named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_site_has_every_page_once():
    def pages(entries: list) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    shown = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(shown) == sorted(["index.md", *(page.name for page in PAGES)])


def test_the_readme_is_short_and_has_what_others_read():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 9000
    for marker, part in (("test", ".venv/bin/pytest -q"), ("quickstart", "--config configs/quickstart.py")):
        (block,) = re.findall(rf"^<!-- {marker} command -->\n```\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
        assert part in block and "\n" not in block


def addresses(root: Path) -> dict[str, set[str]]:
    """What each file takes for OWNER/NAME of this project."""
    shown = [root / name for name in ("setup.py", "README.md", "mkdocs.yml", "docs/start.md")]
    shown += sorted((root / "colab").glob("*.ipynb"))
    others = {"PRIME-RL/TTRL"}
    return {path.name: set(ADDRESS.findall(path.read_text())) - others for path in shown}


def test_one_address_everywhere_and_one_command_that_changes_it(tmp_path: Path):
    """OWNER/ttrl_jax is known to stand for a name that is not decided yet."""
    before = addresses(ROOT)
    (address,) = before["setup.py"]
    assert len(before) == 4 + len(NOTEBOOKS) and all(found == {address} for found in before.values()), before
    for name in ("docs", "colab", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("setup.py", "README.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "scripts/set_address.py"]
    subprocess.run([*command, "https://github.com/some-one/another.name"], cwd=tmp_path, check=True)
    assert all(found == {"some-one/another.name"} for found in addresses(tmp_path).values())
    for notebook in NOTEBOOKS:
        json.loads((tmp_path / "colab" / notebook.name).read_text())
    wrong = subprocess.run([*command, "https://gitlab.com/a/b"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and "expected https://github.com/OWNER/NAME" in wrong.stderr


class Fetched(HTMLParser):
    """What a browser asks for when it opens a page, and the formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.formulas: list[str] = []
        self._in_formula = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.addresses.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.addresses.append(given["href"])
        if tag == "math":
            self._in_formula = True
            self.formulas.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_formula = self._in_formula and tag != "math"

    def handle_data(self, data: str) -> None:
        if self._in_formula:
            self.formulas[-1] += data


@pytest.mark.slow
def test_the_site_is_built_and_needs_no_network(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    formulas = []
    for page in [*PAGES, Path("index.md")]:
        html = (tmp_path / page.with_suffix(".html").name).read_text()
        found = Fetched()
        found.feed(html)
        assert found.addresses and [a for a in found.addresses if a.startswith(("http:", "https:", "//"))] == []
        formulas += found.formulas
        assert "$`" not in html and "```" not in html, page.name
    assert len(formulas) > 10 and [text for text in formulas if "\\" in text] == []
    (address,) = addresses(ROOT)["setup.py"]
    assert f"https://github.com/{address}/blob/main/configs/default.py" in (tmp_path / "index.html").read_text()
