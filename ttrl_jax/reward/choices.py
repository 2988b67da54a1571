"""The letter of a multiple-choice answer: which letters a question offers, and which one a response says."""

import re

LETTERS = "ABCDEFGHIJ"

_FONT = r"\\(?:text|textbf|textrm|textsf|textit|mathrm|mathbf|mathsf|mathcal|mbox|underline)\s{0,3}\{\s{0,3}"
_DASH = r"\s{1,3}[-\u2013\u2014]\s{1,3}"
# What a box may hold around a letter: $B$  **B**  \text{Option B}  "Answer: B".
_WRAPPED = re.compile(
    rf"(?:[\s$*}}]|\\[(),;!\[\] ]|{_FONT}"
    r"|(?i:(?:the\s{1,3})?(?:option|choice|answer|letter)\b(?:\s{1,3}is)?\s{0,3}:?))*"
)
# A letter that comes after another: "A, B and D", "(A) or (B)", "(A)(B)". Not the "I" of "B, I think".
_NEXT = r"(?:and\s|or\s)?(?:[A-J](?![A-Za-z0-9_'^])(?!\s(?!and\b|or\b)[a-z])|\([A-Ja-j]\))"
# The letter, and what follows it: nothing, or a text set off from it. Not B_2, BC, "B = 2", nor "A - B".
_BOXED = re.compile(
    r"[(\[<]?\s{0,3}([A-Ja-j])(?:[\s)\]>}*$.]|\\[)\],;!])*"
    rf"(?:\Z|(?<=[.)}}])(?!\s{{0,9}}(?:[,+=^_&]|and\b|or\b|{_NEXT})).*|:.*|{_DASH}(?=.*[A-Za-z]{{3}}).*)",
    re.DOTALL,
)

# "answer is", "Answer:", "the correct option, therefore, would be".
_ADVERB = r"(?:therefore|thus|hence|then|clearly|indeed|simply|just|likely|most|probably|definitely|actually|now|so)"
_IS = r"(?:is|was|would be|will be|must be|should be|has to be|may be)"
_SAYS = (
    rf"\b(?i:answer|option|choice|letter)(?:\*{{1,3}})?(?:,?\s{{1,3}}(?i:{_ADVERB}),?)?"
    rf"(?:\s{{1,3}}(?i:{_IS})|\s{{0,3}}:)(?:,?\s{{1,3}}(?i:{_ADVERB})\b,?){{0,2}}"
)
# "Answer" on a line of its own.
HEADING = (
    r"^[ \t]{0,3}(?:#{1,6}[ \t]{0,3})?[*_]{0,3}(?i:(?:the )?(?:final |correct )?answer)[ \t]{0,3}[*_]{0,3}[ \t]{0,3}\n"
)
_MARKS = rf"(?:[\s:*$\"'`\u201c(\[<]|\\[(\[]|{_FONT}){{0,9}}"
_CALLED = rf"(?:(?i:(?:the\s)?(?:option|choice|letter|answer))\b{_MARKS})?"
_SAID = re.compile(rf"(?:{_SAYS}|{HEADING}){_MARKS}{_CALLED}([A-Ja-j])(?![A-Za-z0-9_'^])", re.MULTILINE)
# What may follow a letter that is said: brackets and marks, and then the end, a text set off from it, or a reason.
_MARK = r"(?:[)\]}>*$\"'`\u201d]|\\[)\]])"
_BRACKET = re.compile(r"\}?[)\]]")
_END = re.compile(
    rf"{_MARK}{{0,9}}(?:\s{{0,9}}\Z|[ \t]{{0,9}}\n|[.!?:;\u3002](?![0-9A-Za-z=])|[.!?:;]{_MARK}|,"
    rf"|{_DASH}(?![A-J0-9]\b)|\s{{1,3}}(?:(?:because|since|as|which|and|but)\b|\(|\\q?quad|<)|<)"
)
_ALONE = re.compile(rf"{_MARK}{{0,9}}[.!]?{_MARK}{{0,9}}(?:\s{{0,9}}\Z|[ \t]{{0,9}}\n)")
_SEVERAL = re.compile(rf"{_MARK}{{0,9}}\s{{0,3}}(?:(?:,|and\b|or\b|&|/)\s{{0,3}}{_MARKS}{_NEXT}|\([A-Ja-j]\))")

# An option of a question: "A. 5" and "(B) 6" at the start of a line, or "(C)" within one, in their order.
_OPTION = re.compile(
    r"(?:^[ \t*$-]{0,6}(?:\\text(?:bf)?\{)?\(?([A-J])\}?[.):]\)?|(?<![A-Za-z0-9])\((?:\\text(?:bf)?\{)?([A-J])\}?\)"
    r"|\\(?:textbf|mathrm|text)\s?\{\s?\(([A-J])\))",
    re.MULTILINE,
)


def offered(question: str) -> str:
    """Return the letters of the options that a question shows, such as "ABCD"; empty if it shows none. Linear time.

    They are lines that begin with `A.`, `A)` or `(A)`, or `(A)` within a line: at least A and B, in their order.
    """
    letters = ""
    for match in _OPTION.finditer(question):
        letter = match[1] or match[2] or match[3]
        if len(letters) < len(LETTERS) and letter == LETTERS[len(letters)]:
            letters += letter
    return letters if len(letters) > 1 else ""


def boxed_letter(content: str, *, among: str) -> str:
    """Return the letter that a box holds, in any usual spelling; empty if it holds another thing. Linear time.

    among: letters that it can be, all capital.
    """
    content = content.strip()
    match = _BOXED.fullmatch(content, _WRAPPED.match(content).end())
    return _known(match[1], among) if match else ""


def said_letter(response: str, *, among: str) -> str:
    """Return the letter that the response says last: "answer is (B)", "the correct choice is **B**", a heading
    "Answer" and `B` below it. Empty if it says none. Linear time.

    A letter within prose is none: "Answer: A molecule", "the answer is C-14 dating", "Answer: E = mc^2"; nor are two,
    "the answer is A and C". A small letter counts in brackets or where nothing follows it. among: as in `boxed_letter`.
    """
    found = ""
    for match in _SAID.finditer(response):
        before, end = response[match.start(1) - 1], match.end()
        set_off = (
            _BRACKET.match(response, end) if match[1].isupper() else before == "(" and response.startswith(")", end)
        )
        ends = _END if match[1].isupper() else _ALONE
        if not _SEVERAL.match(response, end) and (set_off or ends.match(response, end)):
            found = _known(match[1], among) or found
    return found


def _known(letter: str, among: str) -> str:
    return letter.upper() if letter.upper() in among else ""
