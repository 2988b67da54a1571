"""Cut an answer into its parts: at separators and relations that stand outside of all brackets."""

import re

_PIECE = re.compile(
    r"\\begin(?![A-Za-z])|\\end(?![A-Za-z])|\\[lr](?:floor|ceil)(?![A-Za-z])"
    r"|(?P<cup>\\cup(?![A-Za-z]))"
    r"|(?P<relation>\\(?:le|ge|ne|in|approx)(?![A-Za-z])|:=|<=|>=|!=|[=<>])"
    r"|\\[A-Za-z]+|\\.|[()\[\]{}]|(?P<comma>,)|(?P<semicolon>;)|(?P<colon>:)"
)
_OPEN = ("(", "[", "{", "\\{", "\\begin", "\\lfloor", "\\lceil")
_CLOSE = (")", "]", "}", "\\}", "\\end", "\\rfloor", "\\rceil")
_RELATIONS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "approx", ":=": "="}
_OR = re.compile(
    r" ?(?:,? ?\\(?:text|mathrm) ?\{ ?(?:or|and) ?\}|(?<= )(?:or|and)(?= )|\\(?:lor|vee)(?![A-Za-z])"
    r"|(?<=[0-9)}\]])(?:or|and)(?=[(\[0-9-]|[A-Za-z] ?[=(])) ?"  # x=1orx=2
)
_AND = re.compile(r"(?<![A-Za-z])and(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])")

# One of these is in every text that has a separator of the kind.
_OF_KIND = {
    "cup": ("\\cup",),
    "relation": ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx"),
    "comma": (",",),
    "semicolon": (";",),
    "colon": (":",),
}


def split(text: str, kind: str) -> list[str]:
    """Split at the separators of a kind (`cup`, `relation`, `comma`, `semicolon`, `colon`) outside of all brackets."""
    return _cut(text, kind)[0]


def relations(text: str) -> tuple[list[str], list[str]]:
    """Return the sides of the relations outside of all brackets, and the relations between them."""
    sides, signs = _cut(text, "relation")
    return sides, [_RELATIONS.get(sign, sign) for sign in signs]


def encloses(text: str) -> bool:
    """Return whether the first bracket is closed by the last."""
    depth = 0
    for match in _PIECE.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth == 0:
            return match.end() == len(text)
    return False


def joined_by_commas(text: str) -> tuple[str, str]:
    """Write "or" and "and" between answers as a comma, and say which of the two it was."""
    if not any(word in text for word in ("or", "and", "\\vee", "\\wedge")):
        return text, ""
    if _OR.search(text) is None and _AND.search(text) is None:
        return text, ""
    words = "and" if _AND.search(text) else "or"
    text = re.sub(r"\\(?:land|wedge)(?![A-Za-z])", ", ", text)
    return re.sub(r",\s*,", ",", _OR.sub(", ", text)), words


def _cut(text: str, kind: str) -> tuple[list[str], list[str]]:
    if not any(sign in text for sign in _OF_KIND[kind]):
        return [text.strip()], []
    items, found, start, depth = [], [], 0, 0
    for match in _PIECE.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth == 0 and match.lastgroup == kind:
            items.append(text[start : match.start()].strip())
            found.append(match[0])
            start = match.end()
    return [*items, text[start:].strip()], found
