r"""What the last box of a response holds, or the last ones of a closing sentence, with what stands outside of them.

A box is \boxed{...}, \fbox{...} or \framebox{...}, or \boxed before a bare number or letter.
"""

import re
from collections.abc import Iterator, Sequence

# Not the start of a longer macro name; the brace after it, or what TeX boxes without one.
_BARE = r"[-+]?[0-9](?:[0-9]|[.,](?=[0-9]))*|[A-Za-z](?=\s{0,3}(?:\$|\\[)\]]|[.,]|\Z))"
_BOX = re.compile(
    rf"\\(?:boxed|fbox|framebox(?:\[[^][{{}}]{{0,20}}\]){{0,2}})(?![A-Za-z])\s*(?:(?P<brace>\{{)|(?P<bare>{_BARE}))?"
)
# A back-slash takes the next character with it, so \{ and \} are never seen as braces of a group.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

# "put your final answer within \boxed{}": how it is asked for, which a model repeats or says to itself. Counts here and
# below are bounded, so that no run is read over and over.
_ASKING = re.compile(
    r"(?:\b(?:in|within|inside|into|using|use|with|by|an?|the|your|of|like|as)|[在于入用到])[\s`'\"$(*]{0,9}\Z",
    re.IGNORECASE,
)
_BLANK = re.compile(
    r"\s{0,9}(?:\.{2,3}|\u2026|\\[lc]?dots|(?:\\text\s{0,3}\{)?(?:(?:your|the|final)\s{1,3}){0,2}answer\}?)?\s{0,9}\}",
    re.IGNORECASE,
)

# Between two boxes of one list, once what is there for the look alone has become space.
_LOOK = re.compile(
    r"\\(?:text|textbf|textrm|mbox|mathrm)\s?\{|\\q?quad(?![A-Za-z])|\\[,;:!>()\[\]]|\\(?=\s)|[\s$~*&}]+", re.ASCII
)
_PART = r"(?:[A-Za-z]{1,20}|for (?:part |question )?\(?[A-Za-z0-9]\)?)"  # "papers and", "for part (a) and"
_NAME = r"[A-Za-z](?:_\s?(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,4}))?'?\s{0,3}=\s{0,3}"  # the look has taken the closing brace
_JOINT = re.compile(rf"(?:{_PART} and|[,;\u3001\uff0c]|and|or)(?: ?(?:[,;]|and|or)){{0,2}} ?(?P<name>{_NAME})?")
_NAMED = re.compile(r"(?<![A-Za-z\\{}^_)\]])([A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,4}\}))?)\s{0,3}=\s{0,3}\Z")
_LONGEST_JOINT = 80  # characters
_LONGEST_LIST = 64  # boxes

# A sign before a box, where nothing stands before the sign that it could subtract from.
_SIGN = re.compile(
    r"(?:(?:=|\u2248|\\approx|(?<![0-9A-Za-z)\]}])\$|\\[(\[])\s{0,3}(?P<sign>[-\u2212]|\\pm|\u00b1)\s{0,3}"
    r"|(?:\bis\s{1,3}|:\s{0,3}|^)(?P<bound>[-\u2212]|\\pm|\u00b1))\Z",
    re.MULTILINE,
)
_TEN = r"\s{0,3}(?:\\times|\\cdot|[*\u00d7\u00b7])\s{0,3}10\s?\^\s?(?:\{\s?[-+]?[0-9]{1,4}\s?\}|-?[0-9]{1,4})"
_SCRIPT = r"\^(?!\{?(?:st|nd|rd|th)\b)(?:\{[^][{}]{1,20}\}|[0-9]|\\circ(?![A-Za-z]))|_(?:\{[^{}]{1,20}\}|[0-9]{1,2})"
_PERCENT = r"(?:\$|\\\))?\s{0,3}(?:\\?%|(?:\\text\s?\{\s?)?(?:pct|percent|per cent)(?![A-Za-z]))"
_AFTER = re.compile(rf"(?P<ten>{_TEN})|(?P<script>{_SCRIPT})|(?P<percent>{_PERCENT})")
_NUMERIC = re.compile(r"[-+]?[0-9.,]+|[-+]?\\[dt]?frac\{[0-9]+\}\{[0-9]+\}")
_ATOM = re.compile(r"[0-9.]+|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[A-Za-z]|\([^()]*\)|\\[dt]?frac\{[^{}]*\}\{[^{}]*\}")
_SEVERAL = re.compile(r"[,;=<>]|\\(?:text|mbox|le|ge|lt|gt|in|cup|or|and)(?![A-Za-z])")
_WINDOW = 40  # characters that are looked at before a box


def last_box(response: str) -> str:
    """Return what the last box holds; empty if there is none, or if it holds nothing or never closes. Linear time.

    One that is asked for ("put it in \\boxed{}") is none. Several boxes that a comma, "and" or "or" joins are one
    list, `\\boxed{1} and \\boxed{2}` is `1, 2`; with names where each has its own. All alike are one. A sign, a
    power of ten, an exponent, a base and a per cent that stand outside are taken in where that is certain.
    """
    boxes = list(_BOX.finditer(response))
    while boxes and _is_asked_for(response, boxes[-1]):
        boxes.pop()
    found = list(_joined(response, boxes))[::-1]
    if len({content for _, content in found}) < 2:
        return found[-1][1] if found else ""
    names = [name for name, _ in found]
    if None not in names and len(set(names)) == len(names):
        return ", ".join(content if "=" in content else f"{name} = {content}" for name, content in found)
    return ", ".join(content for _, content in found)


def closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the group whose content begins at `start`, or None."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _is_asked_for(response: str, box: re.Match[str]) -> bool:
    """Whether a box holds nothing and stands in an instruction, or is spoken of."""
    if box["bare"] or (box["brace"] and not _BLANK.match(response, box.end())):
        return False
    return _ASKING.search(response[max(0, box.start() - _WINDOW) : box.start()]) is not None


def _joined(response: str, boxes: Sequence[re.Match[str]]) -> Iterator[tuple[str | None, str]]:
    """Name (None: it has none) and content of the last box, and of those before it that are joined to it, backwards."""
    following = len(response)
    for i, box in enumerate(reversed(boxes[-_LONGEST_LIST:])):
        if (content := _content(response, box)) is None or content[1] > following:
            return
        text, end = content
        if i > 0 and not (text and _join(response[end:following])):
            return
        before = response[max(0, box.start() - _WINDOW) : box.start()]
        name = _NAMED.search(before)
        yield name[1] if name else None, _signed(before, text)
        following = box.start()
        if not text:
            return


def _join(between: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    return len(between) <= _LONGEST_JOINT and _JOINT.fullmatch(" ".join(_LOOK.sub(" ", between).split())) is not None


def _content(response: str, box: re.Match[str]) -> tuple[str, int] | None:
    """What a box holds, with what follows it and belongs to it, and where that ends; None if it never closes."""
    if box["bare"]:
        return box["bare"], box.end()
    close = closing_brace(response, box.end()) if box["brace"] else None
    if close is None:
        return None
    text, end = response[box.end() : close].strip(), close + 1
    after = _AFTER.match(response, end)
    if after is None or not _is_one(text):
        return text, end
    if after["percent"]:
        return (f"{text}\\%", after.end()) if _NUMERIC.fullmatch(text) else (text, end)
    return _bracketed(text) + (" " if after["ten"] else "") + after[0].strip(), after.end()


def _signed(before: str, text: str) -> str:
    """The content of a box with the sign that stands before it."""
    sign = _SIGN.search(before)
    if sign is None or not _is_one(text):
        return text
    plus_minus = (sign["sign"] or sign["bound"]) in (r"\pm", "\u00b1")
    return (r"\pm " if plus_minus else "-") + _bracketed(text)


def _is_one(text: str) -> bool:
    """Whether a box holds one value, of which a sign or an exponent outside is a part."""
    return _ATOM.fullmatch(text) is not None or (text != "" and _SEVERAL.search(text) is None)


def _bracketed(text: str) -> str:
    return text if _ATOM.fullmatch(text) else f"({text})"
