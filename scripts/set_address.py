"""Write the project's address into everything that shows it: setup.py, README.md, mkdocs.yml, docs/ and colab/.

    python scripts/set_address.py https://github.com/OWNER/NAME

setup.py is the one place that knows the present address. tests/test_docs.py checks that no file shows another one.
Takes less than a second.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN_IN = ("setup.py", "README.md", "mkdocs.yml", "docs/*.md", "colab/*.ipynb")
GITHUB = re.compile(r"https://github\.com/([A-Za-z0-9-]+/[\w.-]+)")


def repository(root: Path) -> str:
    """OWNER/NAME, as setup.py has it."""
    return re.search(rf'^ADDRESS = "{GITHUB.pattern}"$', (root / "setup.py").read_text(), re.MULTILINE)[1]


def main(address: str) -> int:
    match = GITHUB.fullmatch(address.removesuffix("/").removesuffix(".git"))
    if match is None:
        print(f"error: expected https://github.com/OWNER/NAME, which Colab can open, got {address}", file=sys.stderr)
        return 2
    old, new = repository(ROOT), match[1]
    for path in sorted(path for pattern in SHOWN_IN for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if old in text:
            path.write_text(text.replace(old, new), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {old} -> {new}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
