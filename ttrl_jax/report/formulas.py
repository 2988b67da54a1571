"""Formulas in the texts of questions and responses, from LaTeX to MathML, as nested lists that the page builds from.

latex2mathml does not escape the text of a formula, and passes on attributes such as href. So its result is never used
as markup: what comes out of here are names of elements and attributes that are listed below, and texts.
"""

import html
import re
from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml import converter, exceptions

# Read by Python and, in the page, by JavaScript: only what both know. A $ that a digit follows or a space precedes
# closes nothing ($5 and $7), as in pandoc.
_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"
PATTERN = (
    r"\$\$[^$]{1,2000}\$\$|\\\[(?:(?!\\\])[^]){1,2000}\\\]|\\\((?:(?!\\\))[^]){1,2000}\\\)"
    r"|\$(?!\s)[^$\n]{1,600}(?<!\s)\$(?!\d)|\\boxed" + _BRACES
)
_FORMULA = re.compile(PATTERN.replace("[^]", r"[\s\S]"))
_BARE = re.compile(r"\\[A-Za-z]|[\^_]")  # an answer with one of these is read as a formula
_LONGEST = 2_000  # characters
_TAGS = {
    "math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msup", "msub", "msubsup",
    "mover", "munder", "munderover", "mmultiscripts", "mprescripts", "none", "mtable", "mtr", "mtd", "mstyle",
    "menclose", "mpadded", "mphantom",
}  # fmt: skip
_ATTRIBUTES = {
    "display", "displaystyle", "mathvariant", "stretchy", "fence", "form", "accent", "linethickness", "columnalign",
    "columnlines", "rowlines", "rowspacing", "columnspacing", "notation", "separator", "movablelimits",
}  # fmt: skip
_SPACE = re.compile(r"-?[0-3](\.[0-9]{1,4})?em")  # no wider: a space may not push the page apart
_REFUSED = tuple(each for each in vars(exceptions).values() if isinstance(each, type)) + (
    RecursionError, ValueError, IndexError, KeyError, AttributeError, TypeError, StopIteration, RuntimeError,
)  # fmt: skip


def in_text(text: str) -> list[str]:
    """The formulas of a text with what marks them: $...$, $$...$$, \\(...\\), \\[...\\] and \\boxed{...}."""
    return [match[0] for match in _FORMULA.finditer(text)]


def mathml(source: str) -> list[Any] | None:
    """A formula as [element, attributes, child or text, ...]; None if it cannot be converted, or is no formula.

    source: as `in_text` returns it, or a whole answer, which is a formula if it has a command, a power or an index.
    """
    marked, display = source, "inline"
    for opening, closing, kind in (("$$", "$$", "block"), ("\\[", "\\]", "block"), ("\\(", "\\)", ""), ("$", "$", "")):
        if source.startswith(opening) and source.endswith(closing) and len(source) > len(opening + closing):
            marked, display = source[len(opening) : -len(closing)], kind or "inline"
            break
    else:
        if not _BARE.search(source):
            return None
    if len(marked) > _LONGEST:
        return None
    try:
        return _listed(converter.convert_to_element(marked, display=display))
    except _REFUSED:  # what its parser raises on broken LaTeX is not declared
        return None


def _listed(element: Element) -> list[Any]:
    """The element as lists. Raises ValueError if it is none that the page shows."""
    text = html.unescape(element.text or "")
    if element.tag not in _TAGS or element.tail or text.startswith("\\"):  # a command that is not known stays as it was
        raise ValueError(element.tag)
    kept = {name: value for name, value in element.attrib.items() if name in _ATTRIBUTES}
    if element.tag == "mspace" and _SPACE.fullmatch(element.get("width", "")):
        kept["width"] = element.attrib["width"]
    return [element.tag, kept, *([text] if text else []), *map(_listed, element)]


def convert(texts: Iterable[str], answers: Iterable[str], *, budget: int, size: Any) -> dict[str, list[Any]]:
    """Formula -> what `mathml` makes of it, of as many as fit into `budget` bytes; size: of a value, in bytes.

    answers: texts that are one formula or none, which come first.
    """
    found: dict[str, list[Any]] = {}
    sources = dict.fromkeys(answers) | dict.fromkeys(each for text in texts for each in in_text(text))
    for source in sources:
        made = mathml(source)
        if made is None:
            continue
        budget -= size({source: made})
        if budget < 0:
            break
        found[source] = made
    return found
