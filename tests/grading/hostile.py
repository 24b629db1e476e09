r"""Two hundred answers made to hang, crash, fill or fool a grader. None is 17, B or Paris, the gold answers.

Some are written by hand (`EXPRESSIONS`, `TEXTS`), the others drawn from a grammar of costly expressions, always the
same ones.
"""

import random

GOLDS = {"numeric": "17", "latex": "17", "choice": "B", "text": "Paris"}
NUM_INPUTS = 200

EXPRESSIONS = [
    r"9^{9^{9^{9}}}",
    r"9^{9^{9}}-9^{9^{9}}+18",
    r"2^{3^{4^{5^{6^{7}}}}}",
    "9**9**9**9",
    "10^10^10^10",
    r"((((9!)!)!)!)!",
    "100000000!",
    r"\frac{10^{9}!}{(10^{9}-1)!}",
    r"\binom{10^9}{5\cdot 10^8}",
    r"\sum_{k=0}^{10^9}\binom{10^9}{k}",
    r"\sum_{n=1}^{\infty}\frac{1}{n^{n^{n}}}",
    r"\prod_{k=1}^{10^{12}}\left(1+\frac{1}{k^{k}}\right)",
    r"\int_{0}^{1}\sin(\cos(\tan(e^{x^{x^{x}}})))\,dx",
    r"\int\int\int e^{-x^2y^2z^2}\sqrt{x^y+y^z+z^x}\,dx\,dy\,dz",
    r"\lim_{x\to 0}\frac{\sin(x)^{x^{x^{x}}}}{x!}",
    r"\sqrt[1000000007]{10^{1000000007}+1}",
    r"\log_{2}(3^{5^{7^{11}}})",
    r"1e1000000000",
    r"1e-1000000000",
    r"1E999999999999999999999",
    r"0x" + "f" * 5000,
    r"17" + "0" * 1_000_000,
    r"0." + "3" * 1_000_000,
    r"1/" + "7" * 100_000,
    "-" * 9_999 + "17",
    "-" * 99_999 + "5",
    "(" * 50_000 + "18" + ")" * 50_000,
    "(" * 100_000,
    "{" * 100_000,
    "}" * 100_000,
    r"\frac{" * 5_000 + "1" + "}{2}" * 5_000,
    r"\sqrt{" * 20_000 + "4" + "}" * 20_000,
    "^".join(["2"] * 5_000),
    "_".join(["x"] * 5_000),
    r"\left(" * 3_000 + "x" + r"\right)" * 3_000,
    "+".join(["1"] * 100_000) + "-99982",
    "*".join(["(x+1)"] * 500),
    r"(x+y+z+w)^{100000}",
    r"(x+1)^{(x+1)^{(x+1)^{(x+1)}}}",
    r"x^{x^{x^{x^{x^{x}}}}}=18",
    "=".join(["17"] * 2 + ["18"] * 20_000),
    r"\begin{pmatrix}" + r" \\ ".join([" & ".join(["9"] * 300)] * 300) + r"\end{pmatrix}",
    r"\begin{vmatrix}" + r" \\ ".join([" & ".join([f"x_{{{i}}}" for i in range(40)])] * 40) + r"\end{vmatrix}",
    r"\begin{pmatrix}2&1\\1&2\end{pmatrix}^{10^{9}}",
    r"\{" + ",".join(map(str, range(100_000))) + r"\}",
    r"[" + ",".join(["1"] * 100_000) + ")",
    r"x\in" + r"\cup".join(f"({n},{n}.5)" for n in range(2_000)),
    r"\sin(" * 2_000 + "18" + ")" * 2_000,
    r"\gcd(10^{10^{8}}, 17^{10^{7}})",
    r"10^{10^{8}} \mod 97",
    r"F_{10^{18}}",
    r"\zeta(10^{-100000})",
    r"\Gamma(10^{100})",
    r"\pi^{\pi^{\pi^{\pi}}}",
    r"e^{e^{e^{79}}}",
    r"i^{i^{i^{i^{10^{9}}}}}",
    r"18!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    r"1\frac{1}{1+\frac{1}{" + r"1+\frac{1}{" * 3_000 + "1" + "}" * 3_002,
    r"\overline{" * 3_000 + "18" + "}" * 3_000,
    r"0.\overline{" + "142857" * 20_000 + "}",
    r"100000000000000000000000000000000000000000_{36}",
    r"zz_{10^{9}}",
    r"\text{" * 5_000 + "18" + "}" * 5_000,
    "17," * 50_000 + "18",
    ("1" + ",000" * 100_000),
    "1 1/" + "1" * 1_000,
    "1:" * 50_000 + "2",
    "50%" * 50_000,
    r"\$" * 50_000 + "18",
    "__import__('os').system('echo 18')",
    "(lambda f: f(f))(lambda f: f(f))",
    "exec('while True: pass')",
    "[0]*10**12",
    "'a'*10**12",
    "().__class__.__bases__[0].__subclasses__()",
    "eval('1'+'6+2')",
    "S(18).__class__",
    "Symbol('x')**Symbol('x')**9999999",
    "integrate(exp(exp(exp(x))),x)",
    "factorint(2**4096+1)",
    "nextprime(10**5000)",
]
"""Each is put into \\boxed{...}, after "Final answer:", or after "####"."""

TEXTS = [
    "",
    "\0" * 20_000,
    "Final answer: \0\0\0",
    "\\boxed{\0}",
    "\ud800" * 1_000,
    "Final answer: \ud800\udfff",
    "\\boxed{\udfff}",
    "\x1b[2J\x1b]0;18\x07",
    "\u202e71 :rewsna laniF",
    "Final answer: \u202e71\u202c8",
    "Final answer: \u0661\u0668",
    "Final answer: \u3251\u3252",
    "Final answer: \U0001d7cf\U0001d7d6",
    "Final answer: \u217b\u00b2\u00b3",
    "Final answer: 1\u030a8\u0332",
    "Final answer: " + "\u0301" * 40_000,
    "Final answer: \u200b\u200c\u200d\ufeff18",
    "\ufeff" * 20_000,
    "a" * 3_000_000,
    "9" * 3_000_000,
    " " * 3_000_000,
    "\n" * 1_000_000,
    "\t" * 200_000 + "x",
    "Final answer: " * 40_000,
    "Final answer:" * 40_000 + "18",
    "Final answer: " + " " * 200_000 + "x",
    "final answer is " * 20_000,
    "#### " * 40_000,
    "#### 18\n" * 20_000,
    "####" + " " * 500_000 + "x",
    "\\boxed{" * 40_000,
    "\\boxed{18}" * 20_000,
    "\\boxed" * 40_000,
    "\\boxed{" * 10_000 + "18" + "}" * 10_000,
    "\\boxed{18" + "}" * 40_000,
    "\\" * 100_000,
    "\\frac" * 20_000,
    "$" * 100_000,
    "$$" + "x" * 20_000,
    "$1$ " * 40_000,
    "Question: " * 20_000,
    "\nQuestion:" * 40_000,
    "The answer is " * 20_000,
    "the answer is the answer is (A) or (C) " * 4_000,
    "(A) (C) (D) " * 20_000,
    "A" * 1_000_000,
    "Answer: " + "(" * 60_000,
    "So " * 60_000 + "A.",
    "<answer>" * 20_000,
    "<answer>18" + "</answer>" * 10_000,
    '{"answer": ' * 10_000,
    '"answer": "' * 10_000,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
    "[" * 100_000,
    "1 " * 100_000,
    "1," * 100_000,
    "1." * 100_000,
    "1/" * 100_000,
    "-1" * 100_000,
    "1e" * 100_000,
    "1,000," * 40_000 + "x",
    "1 000 " * 40_000 + "x",
    "x=" * 60_000,
    "** " * 60_000,
    "**" * 40_000 + "18",
    "*`" * 40_000 + "A",
    "^" * 60_000,
    "%" * 60_000,
    "ﬁ" * 20_000,
    "İ" * 40_000,
    "ß" * 40_000,
    "\u0149" * 40_000,
    "\U0010ffff" * 40_000,
    "18\x0b18\x0c18\x1c18\x85\u2028\u2029" * 2_000,
    "\r" * 100_000,
    "Final answer:\r\n\r\n\r\n" * 10_000,
]
"""Whole completions."""


def hostile_completions() -> list[str]:
    """Two hundred completions, always the same."""
    frames = ["So it is $\\boxed{%s}$.", "Thus.\nFinal answer: %s", "Thus.\n#### %s"]
    boxed = [frames[number % 3].replace("%s", text) for number, text in enumerate(EXPRESSIONS)]
    draw = random.Random(17)
    drawn = [
        frames[number % 2].replace("%s", draw_expression(draw, depth=6))
        for number in range(NUM_INPUTS - len(boxed) - len(TEXTS))
    ]
    return [*boxed, *TEXTS, *drawn]


def draw_expression(draw: random.Random, *, depth: int) -> str:
    """An expression that is costly to evaluate, simplify or compare, and hardly ever 17."""
    if depth == 0:
        return draw.choice(["x", "y", "9", "10^{9}", "987654321", r"\pi", "e", "i"])
    inner = [draw_expression(draw, depth=depth - draw.randint(1, 2) if depth > 1 else 0) for _ in range(3)]
    shape = draw.choice(
        [
            "{%s}^{%s}",
            "{%s}^{{%s}^{%s}}",
            r"\frac{%s}{%s}",
            "(%s)!",
            r"\binom{%s}{%s}",
            r"\sum_{k=1}^{%s}k^{%s}",
            r"\prod_{k=1}^{%s}(%s)",
            r"\int_{0}^{%s}%s\,dx",
            r"\sqrt{%s+\sqrt{%s}}",
            r"\sin(%s)\cos(%s)",
            r"\log_{%s}(%s)",
            "(%s+%s)^{%s}",
            r"\left|%s-%s\right|",
            r"(%s)\cdot(%s)",
        ]
    )
    for part in inner[: shape.count("%s")]:
        shape = shape.replace("%s", part, 1)
    return shape
