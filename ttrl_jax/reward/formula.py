"""Read a formula, in LaTeX or plain, as an exact `Expression`. Nothing is ever evaluated as code."""

import re
from fractions import Fraction

from ttrl_jax.reward import algebra
from ttrl_jax.reward.algebra import Expression, Unread

_MAX_TOKENS = 300
_MAX_DEPTH = 24
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell infty emptyset "
    "varnothing infinity"
).split()
_FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc ln lg log exp".split()
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_SYNONYMS = {"infinity": "infty", "varnothing": "emptyset"}
_FONTS = "vec mathrm".split()
_CALLED = "fghFGHTPQ"  # letters that name a function where a bracket follows
_OF_SEVERAL = "gcd lcm max min".split()
_ENDS = {"lfloor": ("floor", "rfloor"), "lceil": ("ceil", "rceil")}
# Words that are read as a whole in plain text; the longer first.
NAMES = sorted({"pi", "sqrt", *_FUNCTIONS, *(n for n in _GREEK if len(n) > 3)}, key=lambda name: (-len(name), name))
_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar|dot) ?\{? ?[0-9]+ ?\}?)"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|\\(?P<macro>[A-Za-z]+)"
    rf"|(?P<name>{'|'.join(NAMES)})"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<symbol>\*\*|\\[{}]|[-+*/^_(){}\[\]|!'%,=]))"
)
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_SIGNS = ("cdot", "times", "div", "circ", "degree", "rfloor", "rceil")


def read_formula(text: str) -> Expression:
    """Return the expression that a text is.

    Implicit products, `\\frac12`, mixed numbers (`3\\frac12` is 7/2), roots, powers, functions, `|x|`, `n!`, `n!!`,
    binomials, floors, `\\gcd`, repeating decimals, `%` (a hundredth). `f(x)` is a function of x for the letters that
    usually name one, never a product. A degree sign counts only where an angle is an argument of a function. Raises
    Unread for anything else, and beyond the limits on length, depth and size.
    """
    return _Reader(text).read()


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.at, self.depth, self.bars = 0, 0, 0
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None or len(self.tokens) >= _MAX_TOKENS:
                raise Unread(text[position : position + 1])
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind]))
            position = match.end()
        self.angles = any(word in _FUNCTIONS for _, word in self.tokens)

    def read(self) -> Expression:
        result = self.sum()
        if self.at < len(self.tokens):
            raise Unread(self.word())
        return result

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def word(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def take(self, *words: str) -> str:
        """Take the next token if it is one of these."""
        word = self.word()
        if word not in words or self.kind() == "letter":
            return ""
        self.at += 1
        return word

    def need(self, word: str) -> None:
        if not self.take(word):
            raise Unread(f"{word} expected")

    def sum(self) -> Expression:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unread("too deep")
        total: Expression | None = None
        while True:
            sign = self.take("+", "-")
            if total is not None and not sign:
                break
            minus = sign == "-"
            while again := self.take("+", "-"):  # 3 + -2
                minus ^= again == "-"
            term = self.product()
            term = algebra.negative(term) if minus else term
            total = term if total is None else algebra.add(total, term)
        self.depth -= 1
        return total

    def product(self) -> Expression:
        result = self.factor()
        while True:
            if self.take("*", "cdot", "times"):
                result = algebra.multiply(result, self.signed())
            elif self.take("/", "div"):
                result = algebra.divide(result, self.signed())
            elif self.starts_factor():
                result = algebra.multiply(result, self.factor())
            else:
                return result

    def signed(self) -> Expression:
        return algebra.negative(self.factor()) if self.take("-") else self.factor()

    def starts_factor(self) -> bool:
        """Return whether a factor follows without a sign for "times". A number never does: "x 2" is not read."""
        kind, word = self.kind(), self.word()
        if kind == "macro":
            return word not in _SIGNS
        return kind in ("letter", "name") or word in ("(", "[", "{") or (word == "|" and not self.bars)

    def factor(self) -> Expression:
        base = self.base()
        while True:
            if self.take("^", "**"):
                if self.degree():
                    base = self.angle(base)
                else:
                    base = algebra.power(base, self.exponent())
            elif self.take("degree"):
                base = self.angle(base)
            elif self.take("!"):
                base = algebra.call("doublefactorial" if self.take("!") else "factorial", base)
            elif self.take("%"):
                base = algebra.multiply(base, algebra.number(Fraction(1, 100)))
            else:
                return base

    def degree(self) -> bool:
        if self.take("circ"):
            return True
        if self.word() == "{" and self.tokens[self.at + 1 : self.at + 3] == [("macro", "circ"), ("symbol", "}")]:
            self.at += 3
            return True
        return False

    def angle(self, base: Expression) -> Expression:
        if not self.angles:
            return base
        return algebra.multiply(base, algebra.divide(algebra.symbol(r"\pi"), algebra.number(Fraction(180))))

    def exponent(self) -> Expression:
        if self.word() == "{":
            return self.group()
        if self.take("-"):
            return algebra.negative(self.base())
        if self.kind() == "number":  # in x^2\frac13 nothing is a mixed number
            return self.plain_number()
        return self.base()

    def group(self) -> Expression:
        inner = self.arguments("(", "[", "{")
        if len(inner) > 1:
            raise Unread("a comma")
        return inner[0]

    def arguments(self, *openings: str) -> list[Expression]:
        opening = self.take(*openings)
        if not opening:
            raise Unread("a group expected")
        bars, self.bars = self.bars, 0
        inner = [self.sum()]
        while self.take(","):
            inner.append(self.sum())
        self.bars = bars
        self.need(_CLOSING[opening])
        return inner

    def base(self) -> Expression:
        kind, word = self.kind(), self.word()
        if kind == "number":
            return self.number()
        if kind == "repeating":
            self.at += 1
            return algebra.number(_repeating(word))
        if kind == "letter":
            self.at += 1
            return self.named(word)
        if word in _CLOSING:
            return self.group()
        if word == "|":
            self.at, self.bars = self.at + 1, self.bars + 1
            inner = self.sum()
            self.bars -= 1
            self.need("|")
            return algebra.call("abs", inner)
        if kind in ("macro", "name"):
            self.at += 1
            return self.macro(word)
        raise Unread(word)

    def plain_number(self) -> Expression:
        word = self.word()
        self.at += 1
        if len(word) > algebra.MAX_BITS // 4:
            raise Unread("too many digits")
        return algebra.number(Fraction(word))

    def number(self) -> Expression:
        word = self.word()
        value = self.plain_number()
        if "." not in word and self.kind() == "macro" and self.word() == "frac":
            self.at += 1
            above, below = self.fraction()
            over, under = above.constant(), below.constant()
            part = algebra.divide(above, below)
            mixed = over and under and over.denominator == under.denominator == 1 and 0 < over < under
            return algebra.add(value, part) if mixed else algebra.multiply(value, part)
        return value

    def named(self, name: str) -> Expression:
        """Return a variable with its subscript and primes."""
        if self.take("_"):
            name = f"{name}_{{{self.subscript()}}}"
        while self.take("'"):
            name += "'"
        if name[0] in _CALLED:
            if self.word() == "(":
                return algebra.unknown(name, *self.arguments("("))
            if self.word() == "^" and self.word(1) == "{" and self.word(2) == "-" and "(" in self.word(5):
                raise Unread("the inverse of a function")
        return algebra.symbol(name)

    def subscript(self) -> str:
        """Read letters and digits, which are a name, or a formula in braces."""
        braces, start = bool(self.take("{")), self.at
        while self.kind() in ("letter", "number") and (braces or self.at == start):
            self.at += 1
        name = "".join(word for _, word in self.tokens[start : self.at])
        if braces and not self.take("}"):
            self.at = start
            name = self.sum().key()
            self.need("}")
        if not name:
            raise Unread("a subscript expected")
        return name

    def series(self, name: str) -> Expression:
        """Read a sum or a product over an index, `\\sum_{k=1}^n k^2`. It has no value here."""
        self.need("_")
        self.need("{")
        index = self.base()
        self.need("=")
        low = self.sum()
        self.need("}")
        self.need("^")
        return algebra.call(name, index, low, self.exponent(), self.product())

    def macro(self, word: str) -> Expression:
        if word == "frac":
            return algebra.divide(*self.fraction())
        if word in _OF_SEVERAL:
            return algebra.call(word, *self.arguments("(", "\\{"))
        if word in _ENDS:
            name, end = _ENDS[word]
            inner = self.sum()
            self.need(end)
            return algebra.call(name, inner)
        if word in ("sum", "prod"):
            return self.series(word)
        if word == "hat":
            name = self.word()
            self.at += 1
            return algebra.symbol(rf"\hat{{{name}}}")
        if word == "sqrt":
            degree = self.group() if self.word() == "[" else algebra.number(Fraction(2))
            return algebra.power(self.argument(), algebra.divide(algebra.number(Fraction(1)), degree))
        if word in _FUNCTIONS:
            return self.function(word)
        if word in ("binom", "dbinom", "tbinom"):
            return algebra.call("binom", self.argument(), self.argument())
        if word in _FONTS:
            return self.base()
        if word == "mathbb":
            self.need("{")
            name, self.at = self.word(), self.at + 1
            self.need("}")
            return algebra.symbol(rf"\mathbb{{{name}}}")
        if word == "pi" or word in _GREEK:
            return self.named("\\" + (_SYNONYMS[word] if word in _SYNONYMS else word))
        raise Unread(word)

    def argument(self) -> Expression:
        """Read what a macro takes: a group or one token, as in `\\sqrt2` and `\\frac1x`."""
        return self.group() if self.word() in ("{", "(") else self.base()

    def fraction(self) -> tuple[Expression, Expression]:
        if self.word() == "{" and self.word(1) == "d" and self.tokens[self.at + 2 : self.at + 3] != [("symbol", "}")]:
            raise Unread("a derivative")
        parts: list[Expression] = []
        while len(parts) < 2:
            word = self.word()
            if self.kind() != "number":
                parts.append(self.group() if word == "{" else self.base())
                continue
            if not word.isdigit() or len(word) + len(parts) > 2:
                raise Unread("which digits are above and which below?")
            parts += [algebra.number(Fraction(digit)) for digit in word]
            self.at += 1
        return parts[0], parts[1]

    def function(self, name: str) -> Expression:
        below = self.argument() if self.take("_") else None
        above = self.exponent() if self.take("^") else None
        if self.word() in ("(", "[", "{"):
            argument = self.group()
        else:
            argument = self.factor()
            while self.goes_on(argument):
                argument = algebra.multiply(argument, self.factor())
        if above is not None and above.constant() == -1 and name in _INVERSE:
            name, above = _INVERSE[name], None
        if name == "exp":
            result = algebra.power(algebra.symbol("e"), argument)
        elif name == "log":
            # Without a base, 10 and e are both usual: an atom without a value.
            result = algebra.call("log", argument) if below is None else algebra.call("logbase", below, argument)
        elif name == "lg":
            result = algebra.call("logbase", algebra.number(Fraction(10)), argument)
        else:
            result = algebra.call(name, argument)
        return result if above is None else algebra.power(result, above)

    def goes_on(self, argument: Expression) -> bool:
        """Return whether a function's argument without brackets goes on: `\\sin 2ax`, but not `\\sin x (x+1)`."""
        kind, word = self.kind(), self.word()
        if kind == "letter":
            called = word in _CALLED and self.word(1) == "("
            return not called and not (word == "e" and self.word(1) == "^")
        if word == "(" and not any(atom for monomial in argument.terms for atom, _ in monomial if atom != r"\pi"):
            raise Unread("does the bracket belong to the argument?")  # \sin 2(x+1)
        return kind in ("macro", "name") and (word == "pi" or word in _GREEK)


def _repeating(text: str) -> Fraction:
    """0.1\\overline{6} is 1/6."""
    whole, _, rest = text.partition(".")
    once, _, macro = rest.partition("\\")
    period = re.sub(r"[^0-9]", "", macro)
    if len(text) > algebra.MAX_BITS // 4:
        raise Unread("too many digits")
    ends = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(once))
    return Fraction(int(whole + once or 0), 10 ** len(once)) + ends
