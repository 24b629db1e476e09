r"""Reads an answer into a tree: expressions, lists, tuples and intervals, sets, unions, relations, matrices, words.

The grammar, loosest first:

    answer     items separated by , ; "and" "or"
    item       sides separated by = < > \leq \geq \neq \in \to
    side       parts joined by \cup
    sum        terms joined by + - \pm \mp
    term       factors joined by \cdot / or nothing
    factor     a number, symbol, \frac, \sqrt, function, bracket or matrix, with powers, ! and degree signs

A unit, percent or currency sign around the whole is kept apart from the value. What does not fit is unreadable: then
the caller has to decide without a tree. Nothing is evaluated here, and limits on length and depth hold.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from irpo_nemo.grading.latex_normal import UnreadableError, tokenize
from irpo_nemo.grading.units import UNIT_WORDS, UNITS, canonical_unit

MAX_TOKENS = 400
"""Longer answers are not read."""
MAX_DEPTH = 25
"""Brackets within brackets."""
MAX_NUMBER_DIGITS = 400


@dataclass(frozen=True)
class Number:
    value: Fraction


@dataclass(frozen=True)
class Symbol:
    """A variable, with its index: "x", "x_{1}", "\\theta"; also \\pi, e and i."""

    name: str


@dataclass(frozen=True)
class Based:
    """Digits in a stated base: 2516_8."""

    digits: str
    base: str


@dataclass(frozen=True)
class Words:
    """Text, in lower case without spaces."""

    text: str


@dataclass(frozen=True)
class Apply:
    """An operation (+ * / ^ neg pm mp ! abs) or a named function of expressions."""

    function: str
    arguments: "tuple[Node, ...]"


@dataclass(frozen=True)
class Group:
    """Items in brackets: ( [ for tuples and intervals, { for sets, "," for a bare list, "u" for a union."""

    opening: str
    items: "tuple[Node, ...]"
    closing: str


@dataclass(frozen=True)
class Relation:
    """A chain of sides: 1 < x < 2 has signs ("<", "<")."""

    signs: tuple[str, ...]
    sides: "tuple[Node, ...]"


@dataclass(frozen=True)
class Matrix:
    rows: "tuple[tuple[Node, ...], ...]"


Node = Number | Symbol | Based | Words | Apply | Group | Relation | Matrix


@dataclass(frozen=True)
class Answer:
    """A tree, and what surrounded it."""

    body: Node
    unit: str | None = None
    """Canonical, such as "cm^2"; None when none was given."""
    has_percent: bool = False


_FUNCTION_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log lg exp max min gcd lcm
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_FUNCTION_COMMANDS = frozenset(f"\\{name}" for name in FUNCTIONS)
_SYMBOL_NAMES = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell infty emptyset pi hbar
"""
_GREEK = frozenset(f"\\{name}" for name in _SYMBOL_NAMES.split())
_ROUGHLY = ("about", "approximately", "roughly", "around")
_RELATION_SIGNS = {"=", "<", ">", "\\leq", "\\geq", "\\neq", "\\in", "\\to", "\\equiv", "\\approx"}
_CONNECTIVES = {"and", "or"}
_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "|": ("|",)}
_PRODUCT_SIGNS = {"\\cdot", "/", ":"}
_NAMED_SIDES = re.compile(r"\\(?:angle|triangle|overline|arc|widehat|vec|hat|overrightarrow|bar|mathbb)")
_WORD_LETTERS = 3
"""Runs of more letters are words; of fewer, products."""
_TOO_LONG_FOR_WORD = 16


def read_answer(text: str) -> Answer:
    """Read a normalized answer.

    Raises:
        UnreadableError: It does not fit the grammar, or is too long.
    """
    tokens = tokenize(text)
    if not tokens or len(tokens) > MAX_TOKENS:
        raise UnreadableError("empty, or too long")
    while tokens and (tokens[0] == "\\approx" or _is_text(tokens[0], _ROUGHLY)):
        tokens = tokens[1:]
    tokens, currency = _take_currency(tokens)
    tokens, has_percent = _take_percent(tokens)
    tokens, unit = _take_unit(tokens)
    parser = _Parser(tokens)
    try:
        body = parser.read_list()
    except RecursionError:
        raise UnreadableError("nested too deeply") from None
    parser.expect_end()
    return Answer(body, unit or currency, has_percent)


def _take_currency(tokens: list[str]) -> tuple[list[str], str | None]:
    kept = [token for token in tokens if token not in ("\\$", "€", "£", "¥", "\\pounds", "\\euro")]
    return kept, "dollar" if len(kept) < len(tokens) and "\\$" in tokens else None


def _take_percent(tokens: list[str]) -> tuple[list[str], bool]:
    kept = [token for token in tokens if token != "\\%" and not _is_text(token, ("percent", "pct", "percentage"))]
    return kept, len(kept) < len(tokens)


def _is_text(token: str, words: tuple[str, ...]) -> bool:
    return _bare(token).casefold() in words


def _bare(token: str) -> str:
    return token[6:-1].strip() if token.startswith("\\text{") else token


def _take_unit(tokens: list[str]) -> tuple[list[str], str | None]:
    """Split off a unit at the end: words after a value, with their powers and "per"."""
    end = len(tokens)
    while end > 1 and _is_unit_part(tokens, end - 1):
        end = _start_of_unit_part(tokens, end - 1)
    start = end
    while start > 1 and _is_plain_word(tokens[start - 1]):
        start -= 1
    if start > 0 and _ends_value(tokens[start - 1]):
        end = start
    if end == len(tokens) or end == 0 or tokens[end - 1] in _RELATION_SIGNS | _PRODUCT_SIGNS | {",", "+", "-", ";"}:
        return tokens, None
    return tokens[:end], canonical_unit([_bare(token) for token in tokens[end:]])


def _is_plain_word(token: str) -> bool:
    """A word that can be a unit without being a known one: "apples", but not what lost its spaces."""
    is_word = _WORD_LETTERS < len(token) < _TOO_LONG_FOR_WORD and is_letter(token) and token.islower()
    return is_word and token not in _SCALES | _NUMBER_WORDS


def _ends_value(token: str) -> bool:
    return token[-1:].isdecimal() or token in ("}", ")", "\\pi")


def _is_unit_part(tokens: list[str], last: int) -> bool:
    token = tokens[last]
    if token == "}" and last >= 3 and tokens[last - 3] == "^" and tokens[last - 2] == "{":
        return last >= 5 and tokens[last - 1] in "23" and _is_unit_part(tokens, last - 4)
    if token == "\\degree":
        return not any(is_trigonometric(token) for token in tokens)
    if token == "/":
        return last + 1 < len(tokens) and _is_unit_part(tokens, last - 1)
    if token.casefold() in ("h", "s", "l") and tokens[last - 1] == "/":
        return last >= 2 and _is_unit_word(tokens[last - 2])
    return _is_unit_word(token)


def _start_of_unit_part(tokens: list[str], last: int) -> int:
    return last - 3 if tokens[last] == "}" else last


def _is_unit_word(token: str) -> bool:
    """Words in text, and known units or powers of them without text."""
    if token.startswith("\\text{"):
        words = re.findall(r"[a-z]+", _bare(token).casefold().replace(".", ""))
        return bool(words) and words[0] not in _CONNECTIVES and not re.search(r"\d", _bare(token))
    return len(token) > 1 and is_letter(token) and token.casefold() in UNITS.keys() | UNIT_WORDS


def is_letter(token: str) -> bool:
    """Whether a token is a letter or word of plain text."""
    return token[:1].isalpha() and token.isascii()


def is_trigonometric(token: str) -> bool:
    """Whether degrees after this token are an angle and not just a unit."""
    return token.lstrip("\\")[:3] in ("sin", "cos", "tan", "cot", "sec", "csc")


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0

    # -- tokens

    def _peek(self, ahead: int = 0) -> str:
        index = self._position + ahead
        return self._tokens[index] if index < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._position += 1
        return token

    def _accept(self, *tokens: str) -> str:
        return self._next() if self._peek() in tokens and self._peek() else ""

    def _expect(self, *tokens: str) -> str:
        if not (token := self._accept(*tokens)):
            raise UnreadableError(f"found {self._peek()!r}, wanted {tokens}")
        return token

    def expect_end(self) -> None:
        if self._peek():
            raise UnreadableError(f"{self._peek()!r} is left over")

    # -- grammar

    def read_list(self) -> Node:
        items = [self._read_item()]
        while self._accept_separator():
            items.append(self._read_item())
        return items[0] if len(items) == 1 else Group(",", tuple(items), ",")

    def _accept_separator(self) -> bool:
        found = False
        while self._accept(",", ";") or self._accept_connective():
            found = True
        return found

    def _accept_connective(self) -> bool:
        if _is_text(self._peek(), ("and", "or", ", and", ", or", "&", ",", ";")):
            self._position += 1
            return True
        return bool(self._accept("\\lor", "\\land", "\\vee", "\\wedge"))

    def _read_item(self) -> Node:
        sides, signs = [self._read_union()], []
        while sign := self._accept(*_RELATION_SIGNS):
            signs.append(sign)
            sides.append(self._read_union())
        return Relation(tuple(signs), tuple(sides)) if signs else sides[0]

    def _read_union(self) -> Node:
        parts = [self._read_sum()]
        while self._accept("\\cup"):
            parts.append(self._read_sum())
        return parts[0] if len(parts) == 1 else Group("u", tuple(parts), "u")

    def _read_sum(self) -> Node:
        total = self._read_signed_term()
        while sign := self._accept("+", "-", "\\pm", "\\mp", "\\setminus"):
            term = self._read_term()
            if sign == "\\setminus":
                total = Apply("setminus", (total, term))
            elif sign in "+-":
                total = Apply("+", (total, term if sign == "+" else Apply("neg", (term,))))
            else:
                total = Apply("+", (total, Apply(sign[1:], (term,))))
        return total

    def _read_signed_term(self) -> Node:
        signs = []
        while sign := self._accept("+", "-", "\\pm", "\\mp"):
            signs.append(sign)
        term = self._read_term()
        if len(signs) > MAX_DEPTH:
            raise UnreadableError("too many signs")
        for sign in reversed(signs):
            if sign != "+":
                term = Apply("neg" if sign == "-" else sign[1:], (term,))
        return term

    def _read_term(self) -> Node:
        product = self._read_factor()
        while True:
            if sign := self._accept(*_PRODUCT_SIGNS):
                factor = self._read_signed_factor()
                product = Apply("/" if sign in "/:" else "*", (product, factor))
            elif self._starts_factor():
                product = self._multiply(product)
            else:
                return product

    def _read_signed_factor(self) -> Node:
        sign = self._accept("-", "+")
        factor = self._read_factor()
        return Apply("neg", (factor,)) if sign == "-" else factor

    def _multiply(self, left: Node) -> Node:
        r"""What stands side by side: a product, or a mixed number as in 3\frac{1}{2}."""
        token, is_bare = self._peek(), self._peek(-1)[-1].isdecimal()
        right = self._read_factor()
        if is_bare and isinstance(right, Number) and token[0].isdecimal():
            raise UnreadableError("two numbers side by side")
        if is_bare and token == "\\frac" and _is_whole(left) and _is_proper_fraction(right):
            return Apply("+", (left, right))
        return Apply("*", (left, right))

    def _starts_factor(self) -> bool:
        token = self._peek()
        if (
            token in ("(", "\\frac", "\\sqrt", "\\binom", "\\{", "\\pmatrix", "[")
            or token in _FUNCTION_COMMANDS | _GREEK
        ):
            return True
        if token[:1].isdecimal() or token.startswith("."):
            return True
        return is_letter(token) and token.casefold() not in _CONNECTIVES

    def _read_factor(self) -> Node:
        base = self._read_primary()
        while True:
            if self._accept("^"):
                base = self._read_power(base)
            elif self._accept("!"):
                base = Apply("!", (base,))
            elif self._accept("\\degree"):
                base = Apply("degree", (base,))
            elif self._peek() == "'" and isinstance(base, Symbol):
                self._next()
                base = Symbol(base.name + "'")
            else:
                return base

    def _read_power(self, base: Node) -> Node:
        self._expect("{")
        if self._accept("'"):
            exponent: Node = Symbol("'")
        else:
            exponent = self._read_sum()
        self._expect("}")
        return Apply("^", (base, exponent))

    def _read_primary(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        try:
            return self._read_primary_at_depth()
        finally:
            self._depth -= 1

    def _read_primary_at_depth(self) -> Node:
        token = self._next()
        if token[:1].isdecimal() or (token.startswith(".") and len(token) > 1):
            return self._read_number(token)
        if token.startswith("\\text{"):
            return self._read_words(token)
        if token == "\\frac":
            return Apply("/", (self._read_argument(), self._read_argument()))
        if token == "\\binom":
            return Apply("binom", (self._read_argument(), self._read_argument()))
        if token in ("\\sqrt", "sqrt"):
            return self._read_root()
        if token in ("(", "[", "\\{"):
            return self._read_bracket(token)
        if token == "|":
            inside = self._read_sum()
            self._expect("|")
            return Apply("abs", (inside,))
        if token in ("\\pmatrix", "\\vmatrix"):
            return self._read_matrix(token[1:])
        if token.startswith("\\"):
            return self._read_command(token)
        if is_letter(token):
            return self._read_letters(token)
        raise UnreadableError(f"{token!r} is unknown here")

    def _read_argument(self) -> Node:
        self._expect("{")
        node = self.read_list()
        self._expect("}")
        return node

    def _read_number(self, token: str) -> Node:
        if len(token) > MAX_NUMBER_DIGITS:
            raise UnreadableError("too many digits")
        if self._peek() == "_":
            return self._read_based(token)
        if self._peek() == "\\overline" and "." in token:
            return self._read_repeating(token)
        value = Fraction(token.rstrip("."))
        if self._peek() in ("e", "E") and (exponent := self._take_exponent()) is not None:
            value *= Fraction(10) ** exponent
        while (word := _bare(self._peek()).casefold()) in _SCALES:
            self._next()
            value *= _SCALES[word]
        return Number(value)

    def _take_exponent(self) -> int | None:
        sign = self._peek(1) if self._peek(1) in ("+", "-") else ""
        digits = self._peek(1 + bool(sign))
        if not digits.isdecimal() or len(digits) > 3 or (self._peek() == "e" and not sign and len(digits) > 2):
            return None
        self._position += 2 + bool(sign)
        return int(sign + digits)

    def _read_based(self, digits: str) -> Node:
        self._expect("_")
        self._expect("{")
        base = _bare(self._next())
        self._expect("}")
        base = _NUMBER_WORDS.get(base.casefold(), base)
        if not base.isdecimal():
            raise UnreadableError(f"{base!r} is no base")
        return Based(digits, base)

    def _read_repeating(self, token: str) -> Node:
        self._expect("\\overline")
        self._expect("{")
        block = self._next()
        self._expect("}")
        if not block.isdecimal() or len(block) > MAX_NUMBER_DIGITS:
            raise UnreadableError("no digits repeat")
        places = len(token.partition(".")[2])
        tail = Fraction(int(block), (10 ** len(block) - 1) * 10**places)
        return Number(Fraction(token.rstrip(".")) + tail)

    def _read_words(self, token: str) -> Node:
        text = _bare(token)
        if self._peek() == "_" and re.fullmatch(r"[0-9A-Za-z]*\d[0-9A-Za-z]*", text):
            return self._read_based(text.casefold())
        items = [item.strip() for item in re.split(r",|;|\band\b|\bor\b", text)]
        if len(items) > 1 and all(re.fullmatch(r"\(?\w+\)?", item) for item in items):
            return Group(",", tuple(map(_words_or_number, items)), ",")
        return _words_or_number(text)

    def _read_root(self) -> Node:
        index: Node | None = None
        if self._accept("["):
            index = self._read_sum()
            self._expect("]")
        inside = self._read_argument() if self._peek() == "{" else self._read_bracket(self._expect("("))
        return Apply("sqrt", (inside,)) if index is None else Apply("root", (inside, index))

    def _read_bracket(self, opening: str) -> Node:
        if closing := self._accept(*_CLOSING[opening]):
            return Group(opening, (), closing)
        content = self.read_list()
        closing = self._expect(*_CLOSING[opening])
        if opening == "(" and closing == ")" and not (isinstance(content, Group) and content.opening == ","):
            return content
        items = content.items if isinstance(content, Group) and content.opening == "," else (content,)
        if len(items) == 1 and opening == "[" and closing == "]":
            return items[0]
        return Group(opening[-1], items, closing[-1])

    def _read_matrix(self, name: str) -> Node:
        rows, row = [], [self._read_sum()]
        while separator := self._accept("&", "\\cr"):
            if separator == "\\cr":
                rows.append(tuple(row))
                row = []
            row.append(self._read_sum())
        self._expect(f"\\end{name}")
        matrix = Matrix((*rows, tuple(row)))
        return matrix if name == "pmatrix" else Apply("determinant", (matrix,))

    def _read_command(self, token: str) -> Node:
        if token in _FUNCTION_COMMANDS:
            return self._read_function(token[1:])
        if token in _GREEK:
            return self._read_symbol(token)
        if _NAMED_SIDES.match(token):
            return self._read_named(token)
        for command in sorted(_FUNCTION_COMMANDS | _GREEK, key=len, reverse=True):
            if token.startswith(command) and token[len(command) :].isalpha():
                self._position -= 1
                self._tokens[self._position : self._position + 1] = [command, token[len(command) :]]
                return self._read_command(self._next())
        raise UnreadableError(f"{token} is unknown")

    def _read_named(self, token: str) -> Node:
        r"""\angle ABC, \overline{AB}: a name, whatever it means."""
        if token.startswith("\\mathbb"):
            return Symbol(token)
        name = token
        if self._accept("{"):
            while not self._accept("}"):
                if not self._peek():
                    raise UnreadableError("a brace never closes")
                name += self._next()
        elif is_letter(self._peek()):
            name += self._next()
        return Symbol(name)

    def _read_function(self, name: str) -> Node:
        base = power = None
        for _ in range(2):
            if self._accept("_"):
                base = self._read_argument()
            elif self._accept("^"):
                power = self._read_argument()
        argument = self._read_function_argument()
        if power == Apply("neg", (Number(Fraction(1)),)) and name in ("sin", "cos", "tan"):
            return Apply(f"arc{name}", (argument,))
        result: Node = Apply(name, (argument,) if base is None else (argument, base))
        return result if power is None else Apply("^", (result, power))

    def _read_function_argument(self) -> Node:
        if self._peek() == "(":
            return self._read_factor()
        argument = self._read_signed_factor()
        while self._starts_factor() and self._peek() not in _FUNCTION_COMMANDS | {"("}:
            argument = self._multiply(argument)
        return argument

    def _read_symbol(self, name: str) -> Node:
        if self._accept("_"):
            self._expect("{")
            parts = []
            while not self._accept("}"):
                if not self._peek():
                    raise UnreadableError("a brace never closes")
                parts.append(self._next())
            name += "_" + "".join(parts)
        return Symbol(name)

    def _read_letters(self, token: str) -> Node:
        """One letter is a symbol; more are a function, a number word, a product of letters, or a word."""
        if len(token) == 1:
            return self._read_symbol(token)
        lowered = token.casefold()
        if token == "sqrt":
            return self._read_root()
        if token in FUNCTIONS:
            return self._read_function(token)
        if token in ("pi", "infinity", "inf", "theta", "infty"):
            return Symbol({"pi": "\\pi", "theta": "\\theta"}.get(token, "\\infty"))
        if lowered in _NUMBER_WORDS:
            return Number(Fraction(_NUMBER_WORDS[lowered]))
        if len(token) > _WORD_LETTERS:
            return Words(lowered + self._rest_of_words())
        self._position -= 1
        self._tokens[self._position : self._position + 1] = list(token)
        return self._read_letters(self._next())

    def _rest_of_words(self) -> str:
        rest = ""
        while is_letter(self._peek()) and self._peek().casefold() not in _CONNECTIVES:
            rest += self._next().casefold()
        return rest


def _words_or_number(text: str) -> Node:
    text = re.sub(r"^(?:an?|the)\s+(?=\w)", "", text.casefold().strip(" .,;:!\"'"))
    if (number := _NUMBER_WORDS.get(text, text)).isdecimal() and len(number) <= MAX_NUMBER_DIGITS:
        return Number(Fraction(number))
    return Words(re.sub(r"[\s()-]", "", text) or text)


def _is_whole(node: Node) -> bool:
    return isinstance(node, Number) and node.value.denominator == 1


def _is_proper_fraction(node: Node) -> bool:
    if not isinstance(node, Apply) or node.function != "/":
        return False
    top, bottom = node.arguments
    return isinstance(top, Number) and isinstance(bottom, Number) and 0 < top.value < bottom.value


_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER_NAMES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBER_NAMES.split())}
