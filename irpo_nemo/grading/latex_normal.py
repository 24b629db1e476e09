r"""One spelling for answers that differ only in looks. Knows nothing of what an answer means.

`normalize` drops delimiters, spacing, sizes and fonts, writes Unicode signs as commands, thousands without marks, and
every argument with braces: "$\dfrac 34$." becomes "\frac{3}{4}". What could change the meaning stays: brackets, the
order of items, upper and lower case, units, percent and currency signs.
"""

import re

_SIGN_NAMES = "pi theta alpha beta leq geq neq approx infty cup cap in pm emptyset sqrt"
_COMMAND_OF = {
    **dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00d7\u22c5\u00b7\u2219\u2022", r"\cdot "),
    **dict.fromkeys("\u00a0\u202f\u2009\u200b\t\n\r", " "),
    **dict.fromkeys("\u00b0\u00ba\u02da", r"^\circ "),
    **dict.fromkeys("\u2018\u2019\u2032", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **{sign: rf"^{power}" for power, sign in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")},
    **{chr(0x2080 + index): rf"_{index}" for index in range(10)},
    **{
        sign: rf"\{name} "
        for sign, name in zip(
            "\u03c0\u03b8\u03b1\u03b2\u2264\u2265\u2260\u2248\u221e\u222a\u2229\u2208\u00b1\u2205\u221a",
            _SIGN_NAMES.split(),
            strict=True,
        )
    },
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}",
    "\u00f7": "/",
    "\u211d": r"\mathbb{R}",
    "\uff0c": ",",
    "\uff08": "(",
    "\uff09": ")",
    "\uff1a": ":",
}
"""Unicode signs as plain ones or commands."""
_UNICODE = str.maketrans(_COMMAND_OF)

_RENAMED = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("times", "ast"), "cdot"),
    **dict.fromkeys(("lbrace", "lbraces"), "{"),
    **dict.fromkeys(("rbrace", "rbraces"), "}"),
    **dict.fromkeys(("lt",), "<"),
    **dict.fromkeys(("gt",), ">"),
    **dict.fromkeys(("le", "leqslant", "leqq"), "leq"),
    **dict.fromkeys(("ge", "geqslant", "geqq"), "geq"),
    **dict.fromkeys(("ne",), "neq"),
    **dict.fromkeys(("simeq", "thickapprox"), "approx"),
    **dict.fromkeys(("langle",), "("),
    **dict.fromkeys(("rangle",), ")"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("varnothing", "O"), "emptyset"),
    **dict.fromkeys(("Reals", "R"), "mathbb{R}"),
    **dict.fromkeys(("bigcup",), "cup"),
    **dict.fromkeys(("degree", "degrees"), "circ"),
    "div": "/",
    "colon": ":",
    "arcsec": "asec",
    "plus": "+",
}
_PLAIN_CHARACTERS = frozenset("<>()|/:+")

_DROPPED = re.compile(
    r"""\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|hfill|enspace
        |thinspace|hspace\*?\{[^{}]*\}|phantom\{[^{}]*\}|vphantom\{[^{}]*\}|mathrm(?=\s*[A-Za-z])|rm|bf|it)(?![A-Za-z])\.?
      |\\q?quad|\\[!,;:>\ ~]|(?<!\\)~""",
    re.VERBOSE,
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal)?|mbox|hbox|emph|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|boldsymbol|bm|bold"
    r"|underline)\s*\{([^{}]*)\}"
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:,?\s?\\[,!;:]\s*|\{,\}|\\ )(?:\\!)?\s*\d{3})+(?!\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])")
_MIXED = re.compile(r"(?<![\d.^_{])(\d+) +(\d+) ?/ ?(\d+)(?!\d)")
_ARRAY = re.compile(
    r"(?:\\left\s*)?[(\[]\s*\\begin\{array\}\s*(?:\{[^{}]*\})?(.*?)\\end\{array\}\s*(?:\\right\s*)?[)\]]", re.DOTALL
)
_DOUBLED_BACKSLASH = re.compile(r"\\{2,}(?=[A-Za-z{}%$!,;()\[\]])")
_DOLLAR = re.compile(r"(?<!\\)[$]")
_SUFFIX = "(?:st|nd|rd|th)"
_ORDINAL = re.compile(
    rf"(?<=\d)\s*(?:\^\s*\{{\s*(?:\\text\{{{_SUFFIX}\}}|{_SUFFIX})\s*\}}|\^?\s*\\text\{{{_SUFFIX}\}}|{_SUFFIX}(?![A-Za-z]))"
)
_MERIDIEM = re.compile(r"(?<=\d)\s*(?:\\text\{)?\s*([ap])\.?\s?m\b\.?\}?", re.IGNORECASE)
_BASE = re.compile(r"(?<=[\dA-Z])\s*\(?\s*(?:\\text\{)?\(?(?:in )?base[ -](\w+)\)?\}?\)?\s*$", re.IGNORECASE)
_FRAC_DIGITS = re.compile(r"\\frac\s*(\d)\s*(\d)")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'))

_TOKEN = re.compile(
    r"\\(?:text|mathbb)\{[^{}]*\}|\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\[A-Za-z]+|\\.|\d+\.?\d*|\.\d+|[A-Za-z]+|\S"
)
_NUM_ARGUMENTS = {"\\frac": 2, "\\binom": 2, "\\sqrt": 1, "\\overline": 1, "^": 1, "_": 1}


class UnreadableError(ValueError):
    """The text is not an answer that this reader knows."""


def normalize(answer: str) -> str:
    """The one spelling of `answer`; applied to its own result it changes nothing."""
    return join_tokens(tokenize(clean(answer)))


def clean(answer: str) -> str:
    """Everything that needs no knowledge of arguments."""
    text = _unwrap(answer.translate(_UNICODE))
    text = _write_matrices(text) if "\\begin" in text else _DOUBLED_BACKSLASH.sub(lambda _: "\\", text)
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _DROPPED.sub(" ", text)
    text = re.sub(r"\\(?:f?boxed|fbox)(?![A-Za-z])", " ", text)
    text = re.sub(r"\\([A-Za-z]+)(?![A-Za-z])\s*", _rename, text)
    text = _TEXT.sub(_plain_or_text, text)
    text = _ORDINAL.sub("", text)
    text = _MERIDIEM.sub(r"\\text{\1m}", text)
    text = _BASE.sub(r"_{\1}", text)
    text = re.sub(r"\\color\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}", "", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\circ(?![A-Za-z])", r"\\degree ", text)
    text = re.sub(r"\\[()\[\]](?!\d)", "", text)
    if len(_DOLLAR.findall(text)) % 2:
        text = re.sub(r"(?<!\\)[$](?=\s?\d)", r"\\$", text)
    text = _DOLLAR.sub("", text)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?<=\d),\s+(?=\d{3}(?!\d))", ";", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _FRAC_DIGITS.sub(r"\\frac{\1}{\2}", text)
    text = re.sub(r"<\s*=", r"\\leq ", text)
    text = re.sub(r">\s*=", r"\\geq ", text)
    text = re.sub(r"!=(?!=)", r"\\neq ", text)
    text = re.sub(r"\*\*|\^\^", "^", text)
    text = re.sub(r"\*", r"\\cdot ", text)
    return text.strip().rstrip(".,;: ").lstrip(": ")


def _write_matrices(text: str) -> str:
    r"""Matrix environments in the old short spelling: \pmatrix a & b \cr c & d \endpmatrix.

    Rows may have lost one of the two backslashes between them.
    """
    text = _ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text)
    text = re.sub(r"(?<!\\)(?:\\\\)+(?=[dt]?frac|sqrt)", lambda _: "\\\\\\", text)
    text = re.sub(r"(?:\\\\(?:\s*\[[^\]]*\])?\s*)+|\\(?=[-+.\d\s])", lambda _: "\\cr ", text)
    text = re.sub(r"(\\begin\{\w+\})\s*\\cr\s", r"\1", text)
    text = re.sub(r"\\cr\s*(?=\\end)", "", text)
    text = re.sub(r"\\begin\{(?:small)?[pbB]?(?:small)?matrix\}", lambda _: "\\pmatrix ", text)
    text = re.sub(r"\\end\{(?:small)?[pbB]?(?:small)?matrix\}", lambda _: "\\endpmatrix ", text)
    text = re.sub(r"\\begin\{[vV]matrix\}", lambda _: "\\vmatrix ", text)
    return re.sub(r"\\end\{[vV]matrix\}", lambda _: "\\endvmatrix ", text)


def _unwrap(text: str) -> str:
    """Drop math delimiters, quotes and emphasis around the whole."""
    text = text.strip()
    changed = True
    while changed:
        changed = False
        text = text.rstrip(".,;").strip() if not text.endswith("\\,") else text
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                if opening in inner or closing in inner or inner.endswith("\\"):
                    continue
                text, changed = inner.strip(), True
    return text


def _rename(match: "re.Match[str]") -> str:
    name = match[1]
    new = _RENAMED.get(name, name)
    return new if new in _PLAIN_CHARACTERS else f"\\{new}" + (" " if match[0][-1].isspace() else "")


def _plain_or_text(match: "re.Match[str]") -> str:
    r"""Words keep \text; numbers, single letters and formulas in text are just what they are."""
    content = " ".join(match[1].replace("$", " ").split())
    if re.fullmatch(r"[A-Za-z]", content) and match[0].startswith("\\math"):
        return content
    if quantity := re.fullmatch(r"([\d:.,]*\d)\s*([A-Za-z][A-Za-z.\s]*)", content):
        return rf" {quantity[1]}\text{{{quantity[2].strip()}}} "
    return rf" \text{{{content}}} " if re.search(r"[A-Za-z]", content) else f" {content} "


def tokenize(text: str) -> list[str]:
    r"""Split into commands, numbers, words and signs; arguments of commands, ^ and _ get braces, other braces go.

    Raises:
        UnreadableError: Braces do not match, or an argument is missing.
    """
    return _Bracer(_TOKEN.findall(text)).run()


class _Bracer:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]
        self._done: list[str] = []

    def run(self) -> list[str]:
        while self._tokens:
            self._take(depth=0)
        return self._done

    def _take(self, *, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        token = self._tokens.pop()
        if token == "{":
            self._take_group(depth=depth)
        elif token == "}":
            raise UnreadableError("a brace closes that never opened")
        else:
            self._done.append(token)
            if token == "\\sqrt":
                self._take_root_index(depth=depth)
            if token == "\\sqrt" and self._tokens and self._tokens[-1] == "(":
                return
            for _ in range(_NUM_ARGUMENTS.get(token, 0)):
                self._take_argument(one_digit=token in ("\\frac", "\\binom"), depth=depth)

    def _take_group(self, *, depth: int) -> None:
        while self._tokens and self._tokens[-1] != "}":
            self._take(depth=depth + 1)
        if not self._tokens:
            raise UnreadableError("a brace never closes")
        self._tokens.pop()

    def _take_argument(self, *, one_digit: bool, depth: int) -> None:
        if not self._tokens:
            raise UnreadableError("an argument is missing")
        if one_digit and len(self._tokens[-1]) > 1 and self._tokens[-1][0].isdecimal():
            number = self._tokens.pop()
            self._tokens += [number[1:], number[0]]
        self._done.append("{")
        if self._tokens[-1] == "-" and not one_digit:
            self._done.append(self._tokens.pop())
            if not self._tokens:
                raise UnreadableError("an argument is missing")
        self._take(depth=depth + 1)
        self._done.append("}")

    def _take_root_index(self, *, depth: int) -> None:
        if not self._tokens or self._tokens[-1] != "[":
            return
        while self._tokens and self._tokens[-1] != "]":
            self._take(depth=depth + 1)
        if not self._tokens:
            raise UnreadableError("a bracket never closes")
        self._done.append(self._tokens.pop())


MAX_DEPTH = 30
"""Groups within groups; deeper nesting is not read."""


def join_tokens(tokens: list[str]) -> str:
    """Tokens as text; a space only where two would become one."""
    parts: list[str] = []
    for before, token in zip(["", *tokens], tokens, strict=False):
        glued = token[0].isalpha() and (before[:1].isalpha() or (before[:1] == "\\" and before[-1:].isalpha()))
        apart = before[-1:].isdecimal() and (token[0].isdecimal() or (len(token) > 1 and token[0].isalpha()))
        parts.append(f" {token}" if glued or apart else token)
    return "".join(parts)
