"""What stands on the left of "=" and only names the value on the right."""

import re

# What may stand before "=" as a name: x, x_1, AB, \angle ABC, \text{Area}, f(x + 1), a(n); not the product x(y + 1).
_INDEX = r"(?: ?_ ?(?:[A-Za-z0-9]|\{[^{}]*\}))?'*"
_NAME = re.compile(
    r"(?:(?:m ?)?\\(?:angle|triangle|measuredangle) ?)?(?:"
    rf"[fghpqFGHPQ]{_INDEX} ?(?:\^ ?\{{ ?-1 ?\}} ?)?\([^()]*\)"
    rf"|(?:[A-Za-z]|\\(?!pi\b|infty|frac|sqrt)[a-zA-Z]+){_INDEX}(?: ?\([A-Za-z0-9, ]*\))?"
    r"|[A-Z]{2,3}(?: ?\^ ?\{? ?[23] ?\}?)?|[A-Za-z]{3,20}|\|[A-Z]{1,2}\||\\frac ?\{[A-Z]{2}\} ?\{[A-Z]{2}\}"
    rf"|\\(?:text|mathrm|overline|vec|hat) ?\{{[^{{}}]*\}}{_INDEX}(?: ?\([^()]*\))?)"
)
_NAMES = re.compile(r"\( ?[A-Za-z](?:_[0-9])?(?: ?, ?[A-Za-z](?:_[0-9])?)+ ?\)")
_FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|log|lg|ln|sqrt|exp|gcd|lcm|max|min|lfloor|lceil)(?![a-z])")
# A quantity that a question asks for: m+n, a+b+c, 100m+n, ab; not x+y, which may be a line, and not 2n or n^2.
QUANTITY = re.compile(
    r"(?=(?:.*[a-zA-Z]){2})(?:[0-9]{0,4} ?[a-wA-W](?: ?_ ?[0-9])?(?: ?[-+] ?|(?<=[a-wA-W])(?=[a-wA-W])|$))+"
)


def is_name(text: str) -> bool:
    """Return whether a text is a name: of a variable, a function of one, a length, an angle, or of several at once."""
    if _FUNCTION.match(text):
        return False
    if _NAMES.fullmatch(text):
        return True
    return all(_NAME.fullmatch(part.strip()) for part in text.split(":"))  # AB:CD = 3:4
