"""Read tags in the text of a response: `<answer>42</answer>`. Names are exact, in any script: `<cevap>42</cevap>`."""

import re
from collections.abc import Sequence

from ttrl_jax.errors import InputError

_NAME = re.compile(r"[^\W\d][\w-]*")


def require_names(names: Sequence[str]) -> None:
    """Raise InputError unless these are names of tags, each given once."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"Expected the name of a tag, a letter and then letters, digits, - or _, got {name!r}.")
    if len(set(names)) != len(names):
        raise InputError(f"Expected each tag of a format once, got {', '.join(names)}.")


def between(text: str, name: str) -> str:
    """Return what stands between the last pair of tags of this name, empty if there is no pair. Linear time.

    A pair is a closing tag and the opening tag before it, without another of the name between them; an opening tag that
    is never closed (a truncated response) does not undo an earlier pair.
    """
    found, start = "", None
    for match in re.finditer(f"<(/?){re.escape(name)}>", text):
        if not match[1]:
            start = match.end()
        elif start is not None:
            found, start = text[start : match.start()], None
    return found


def parse_format(text: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return what each tag holds if the text is in the format, else None. Linear time.

    The format: the tags in this order, each opened and closed once in the whole text, and nothing but space before,
    between and after them. For ("think", "answer"): `<think>...</think> <answer>...</answer>`.
    """
    if any(text.count(tag) != 1 for name in names for tag in (f"<{name}>", f"</{name}>")):
        return None
    contents, rest = [], text
    for name in names:
        before, _, rest = rest.partition(f"<{name}>")
        content, closed, rest = rest.partition(f"</{name}>")
        if before.strip() or not closed:
            return None
        contents.append(content)
    return None if rest.strip() else tuple(contents)
