"""Hooks of mkdocs (mkdocs.yml): what makes a site of Markdown files that GitHub shows as they are.

- README.md is the first page.
- A link to a file outside of docs/ leads to that file in the repository.
- Formulas, in GitHub's spelling (a ```math block, or $`...`$ in a line), become MathML, which browsers show without a
  script.
"""

import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]*)((?:#[^)\s]*)?)(?=\))")
CODE = re.compile(r"(```.*?\n```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = ROOT if page.file.src_uri == "index.md" else DOCS
    markdown = BLOCK.sub(lambda match: f"\n{convert(match[1], display='block')}\n", markdown)
    # In a span, as a line that begins with <math> would be a block of its own.
    markdown = INLINE.sub(lambda match: f"<span>{convert(match[1])}</span>", markdown)
    # What is code stays as it is.
    pieces = CODE.split(markdown)
    pieces[::2] = [
        LINK.sub(lambda match: _address(match, folder, str(config.repo_url)), piece) for piece in pieces[::2]
    ]
    return "".join(pieces)


def _address(link: re.Match[str], folder: Path, repository: str) -> str:
    """Where a link leads on the site. A file that is not there is left to mkdocs, which refuses it."""
    target = (folder / link[1]).resolve()
    if target.is_relative_to(DOCS) or not target.exists():
        return os.path.relpath(target, DOCS) + link[2]
    kind = "tree" if target.is_dir() else "blob"
    return f"{repository}/{kind}/main/{target.relative_to(ROOT)}{link[2]}"
