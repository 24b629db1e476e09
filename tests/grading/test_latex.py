import subprocess
import sys
import time

import pytest

from irpo_nemo.errors import DataError
from irpo_nemo.grading import latex, math_verify_layer
from irpo_nemo.grading.latex_compare import compare
from irpo_nemo.grading.latex_normal import normalize
from tests.grading.problems import gold_problem

EQUAL = {
    "fractions": [
        (r"\frac{3}{4}", r"\dfrac 34"),
        (r"\frac43", "4/3"),
        (r"-\frac{1}{2}", r"\frac{1}{-2}"),
        (r"1\frac{1}{2}", "3/2"),
        (r"137 \frac{1}{2}", "137.5"),
        (r"\frac{9}{100}", "0.09"),
        (r"0.\overline{3}", r"\frac13"),
        (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
    ],
    "numbers": [
        ("58,500", "58500"),
        (r"3,\!250", "3250"),
        ("10{,}000", "10 000"),
        ("1500", r"1.5 \times 10^3"),
        ("0.50", ".5"),
        ("12", "twelve"),
        (r"2^{100}", "1267650600228229401496703205376"),
        ("1200000", "1.2 million"),
        ("11", r"11^{\mathrm{th}}"),
    ],
    "units": [
        (r"15\mbox{ cm}^2", "15"),
        (r"40 \text{ cm}^2", "40 square centimeters"),
        (r"40 \text{ cm}^2", r"40\,\mathrm{cm}^2"),
        ("4", "4{cm}"),
        (r"25\text{ mph}", "25 miles per hour"),
        (r"76^\circ", "76"),
        (r"90^\circ", "90 degrees"),
        ("60", "60 students"),
        (r"\$36", "36"),
        (r"\$18.90", r"18.9 \text{ dollars}"),
        (r"80 \text{ cents}", r"\$0.80"),
    ],
    "percent": [(r"25\%", "25"), (r"25\%", "0.25"), (r"\frac14", r"25\%"), (r"28\%", "28 percent")],
    "names": [
        ("5", "x = 5"),
        ("x = 5", "5"),
        ("2=x", "2"),
        (r"[-2,7]", r"x \in [-2,7]"),
        ("(3,2,7)", "(p,q,r)=(3,2,7)"),
        ("y = 2x + 3", "f(x) = 2x+3"),
        (r"\text{odd}", "odd"),
        (r"\text{(E)}", "E"),
        (r"\text{A}", "a"),
    ],
    "roots": [(r"11\sqrt2", r"11\sqrt{2}"), (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}")],
    "identities": [
        ("(x+1)^2", "x^2+2x+1"),
        (r"\tan^2(y)+1", r"\sec^2(y)"),
        ("2^{n+1}", r"2\cdot 2^n"),
        (r"36x\sqrt{35x}", r"36\sqrt{35x^3}"),
        ("n!", r"n\cdot(n-1)!"),
        (r"3+4\sqrt{2}", r"\sqrt{24\sqrt{2}+41}"),
    ],
    "lists and sets": [
        ("3, 5, 7", "7,5,3"),
        ("2, 3", r"\{3,2\}"),
        ("2, 3", r"x=2 \text{ or } x=3"),
        (r"3 \pm 2\sqrt{2}", r"3+2\sqrt2, 3-2\sqrt2"),
        (r"12\text{ and }13", "13 and 12"),
        (r"\text{A, B}", "A and B"),
        ("p = -1, p = 2", "p=2,p=-1"),
    ],
    "tuples and matrices": [
        (r"\left( \frac{3}{2}, -13 \right)", "(1.5,-13)"),
        ("(2,3)", "x=2, y=3"),
        (r"\begin{pmatrix} 1/5 \\ -2 \end{pmatrix}", r"\begin{bmatrix}\frac15\\-2\end{bmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\langle 1, 2 \rangle"),
        (r"\begin{pmatrix} 1 \\ \frac12 \end{pmatrix}", r"\begin{pmatrix}1\\\frac{1}{2}\end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\2\end{pmatrix}"),
    ],
    "relations": [
        ("x > 5", r"5 \lt x"),
        (r"x \leq 1", "-x >= -1"),
        (r"(-\infty,3]", r"x \le 3"),
        ("(2,3)", "2 < x < 3"),
        (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
        ("2x+4y-3=0", r"y=-\frac12x+\frac34"),
        (r"\mathbb{R}", r"(-\infty,\infty)"),
        ("f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)"),
    ],
    "times": [("3:30", "3:30 p.m."), (r"\text{3:30 p.m.}", "3:30 PM")],
    "no solution": [(r"\emptyset", "no solution")],
    "other": [
        ("101_2", "101 (base 2)"),
        ("2516_8", "2516_{8}"),
        (r"\text{A5}_{11}", "A5_{11}"),
        ("3:1", "3"),
        (r"\infty", r"+\infty"),
    ],
    "spelling by programs": [
        (r"3\sqrt{13}", r"3\\sqrt{13}"),
        (r"\frac{3\sqrt{5}}{7}", "(3*sqrt(5))/7"),
        ("t^2", "t**2"),
    ],
}

DIFFERENT = {
    "rounded": [
        (r"\frac13", "0.333333333333"),
        (r"\sqrt{2}", "1.4142135623730951"),
        (r"12\pi", "37.699"),
        ("0.03", "0.0273"),
    ],
    "tiny differences": [
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        ("1/2^{99}", "1/2^{98}"),
        ("4", "3.999999999999999999999"),
        ("100000000001000000000", "100000000000000000000"),
        (r"10^{50}+\sqrt{2}", r"10^{50}+\sqrt{3}"),
    ],
    "letter case": [("3R^2", "3r^2"), ("f(x)", "f(y)"), ("x", "X")],
    "brackets": [("[1,2)", "(1,2)"), ("[0,9]", "[0,9)"), ("(1,2)", r"\{1,2\}"), ("12", "(1,2)")],
    "order": [("(1,2)", "(2,1)"), ("x=1,y=2", "2,1")],
    "repeats": [("2, 2, 3", "2, 3")],
    "bases": [("101_2", "5"), ("101_2", "101"), ("-37_8", "-37_9")],
    "units": [
        (r"5\text{ m}", "5 cm"),
        (r"5\text{ m}", r"5\text{ m}^2"),
        (r"8\text{ a.m.}", r"8\text{ p.m.}"),
        ("4\\%", r"\$4"),
    ],
    "angles": [(r"30^\circ", r"\frac{\pi}{6}")],
    "equations": [("20x+23y-69=0", "0"), ("x=2", "y=2"), ("x > 5", "x < 5")],
    "left to compute": [(r"-\sqrt{3}", r"\tan 100^\circ + 4\sin 100^\circ"), ("2", r"\log_2 4")],
    "thousands": [("32349", "32, 349"), ("12", "1,23"), ("12", "1,2345")],
    "decimal comma": [("1000.99", "1000,99")],
    "percent": [("0.0304", "3.04"), ("2", "200")],
    "words": [
        (r"\text{odd}", r"\text{oddd}"),
        (r"\text{ellipse}", "circle"),
        ("12", r"11^{\text{x y}}"),
        ("12", r"11^{\mathrm{th}}"),
        ("72", "72Ihopeitiscorrect"),
    ],
    "signs": [("-1", "1"), ("4x-3", "3-4x"), ("|x|", "x"), ("10", r"10 \text{ or } -10")],
}


def _cases(groups: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for pairs in groups.values() for pair in pairs]


@pytest.mark.parametrize(("gold", "answer"), _cases(EQUAL))
def test_answers_that_mean_the_same_are_equal_both_ways(gold: str, answer: str) -> None:
    assert compare(gold, answer)[0]
    assert compare(answer, gold)[0]


@pytest.mark.parametrize(("gold", "answer"), _cases(DIFFERENT))
def test_answers_that_differ_are_different_both_ways(gold: str, answer: str) -> None:
    assert not compare(gold, answer)[0]
    assert not compare(answer, gold)[0]


@pytest.mark.parametrize(
    ("gold", "answer", "layer"),
    [
        (r"\frac{3}{4}", r"\dfrac34", "string"),
        (r"\frac{3}{4}", "0.75", "numeric"),
        (r"\sqrt{12}", r"2\sqrt{3}", "algebra"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\frac12 \begin{pmatrix} 2 \\ 4 \end{pmatrix}", "math_verify"),
    ],
)
def test_the_first_layer_that_can_tell_decides(gold: str, answer: str, layer: str) -> None:
    assert compare(gold, answer) == (True, layer)


@pytest.mark.parametrize("answer", [*dict.fromkeys(side for pair in _cases(EQUAL) for side in pair)])
def test_a_normal_form_is_its_own_normal_form(answer: str) -> None:
    assert normalize(normalize(answer)) == normalize(answer)


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "boxed"),
        (r"\boxed 5", "5", "boxed"),
        (r"\fbox{7} it is", "7", "boxed"),
        (r"first \boxed{3}, but really \boxed{4}", "4", "boxed"),
        (r"\boxed{4}. Put your answer in \boxed{}.", "4", "boxed"),
        (r"$x = -\boxed{256}$", "-256", "boxed"),
        (r"$5 - \boxed{2}$ is left", "2", "boxed"),
        (r"\boxed{\boxed{5}}", "5", "boxed"),
        (r"Therefore $\\boxed{5}$", "5", "boxed"),
        ("\\boxed{5}$.\n\nQuestion: what now?\n\\boxed{6}", "5", "boxed"),
        ("\\boxed{5}.\n\nNow it's your turn! Put it in \\boxed{[answer]}", "5", "boxed"),
        ("\\boxed{5}\nFinal answer: 6", "6", "final_answer"),
        ("Final answer: 6\nLet me check: \\boxed{5}", "5", "boxed"),
        ("Final Answer: The final answer is $5$. I hope it is correct.\nProblem:\n\\boxed{6}", "5", "final_answer"),
        ("**Final answer:** $\\boxed{5}$", "5", "final_answer"),
        (r"Final answer: $\$10$", r"\$10", "final_answer"),
        ("Final answer: the largest $n$ is 34.", "34", "final_answer"),
        ("Final answer: the area is 15 square feet", "15", "final_answer"),
        ("Final answer: x = 3 and y = 4", "x=3 and y=4", "final_answer"),
        ("Final answer:\n\\[ 5 \\]", "5", "final_answer"),
        ("**Final Answer**\n5\n\nI used 7.", "5", "final_answer"),
        ("Final answer: 6 (six)", "6", "final_answer"),
        ("### Answer\n\n5", "5", "answer_is"),
        ('{"reasoning": "it is \\boxed{4}", "answer": "\\\\frac{1}{2}"}', r"\frac{1}{2}", "json"),
        ('"answer": 5\n}', "5", "json"),
        ("<think>\\boxed{4}</think><answer>$5$</answer>", "5", "tag"),
        ("So the answer is $x^2$, since $x > 0$.", "x^{2}", "answer_is"),
        ("The answer is 42 because geometry proves it", "42", "answer_is"),
        (r"\frac{1}{2}", r"\frac{1}{2}", "whole"),
        (r"odd $n$", "n", "whole"),
        (r"Adding gives the sum $3+4=7$.", "3+4=7", "last_formula"),
        ("We add them all. The perimeter is 7.", "7", "last_number"),
    ],
)
def test_places_of_answers(text: str, answer: str, place: str) -> None:
    grade = latex.grade(gold_problem("1234567"), text)
    assert (grade.answer, grade.layer.partition("/")[0]) == (normalize(answer) if place == "whole" else answer, place)


@pytest.mark.parametrize(
    "text",
    ["", "I do not know.", "so $x$ is the number that we get if we\nadd |x-15|+|x-p-15|=|x-p|+|x-15", "\\boxed{}"],
)
def test_what_gives_no_answer_is_unparsable(text: str) -> None:
    grade = latex.grade(gold_problem("15"), text)
    assert (grade.answer, grade.verdict, grade.layer) == (None, "unparsable", "none")


def test_several_boxes_are_one_list_when_the_gold_answer_is_a_list() -> None:
    text = r"The roots are $x = \boxed{-2}$ and $\boxed{1}$."
    assert latex.grade(gold_problem("1, -2"), text).verdict == "correct"
    assert latex.grade(gold_problem("1"), text).verdict == "correct"
    assert latex.grade(gold_problem("-2"), text).verdict == "wrong"
    assert latex.grade(gold_problem("1, -2"), r"\boxed{-2} is too small. So \boxed{1}").verdict == "wrong"


def test_votes_for_the_same_value_go_together() -> None:
    answers = [latex.grade(gold_problem("1"), rf"\boxed{{{answer}}}").answer for answer in (r"\frac12", "0.5", "x=1/2")]
    assert None not in answers
    assert all(latex.is_same(str(left), str(right)) for left in answers for right in answers)
    assert not latex.is_same("1", "2")


def test_golden_cases_hold() -> None:
    for problem, text, verdict in latex.golden_cases():
        assert (text, latex.grade(problem, text).verdict) == (text, verdict)
    latex.self_test()


def test_math_verify_is_not_asked_about_what_it_misreads() -> None:
    assert not math_verify_layer.is_equal(r"3R^{2}", r"3r^{2}")
    assert not math_verify_layer.is_equal(r"50\%", "50")
    assert not math_verify_layer.is_equal("-37_{8}", "-37_{80}")
    assert not math_verify_layer.is_equal(r"\frac{1}{3}", "0.3333333333")


@pytest.mark.parametrize("gold", ["", "  ", "$$", r"\frac{1"])
def test_a_gold_answer_that_says_nothing_is_an_error(gold: str) -> None:
    with pytest.raises(DataError) as error:
        latex.check_gold(gold_problem(gold))
    assert str(error.value) == (f"gold answer {gold!r} says nothing; wanted for example \\frac{{3}}{{4}} or x^2 + 1.")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("9^{9^{9^{9}}}", "error"),
        ("2^{100000000}", "error"),
        ("1000000!", "error"),
        (r"\binom{1000000}{500000}", "error"),
        (r"\sqrt{10^{100000}}", "error"),
        ("(1+1)^{1000000}", "error"),
        ("(3^{30000})(5^{30000})", "error"),
        ("9" * 1000, "wrong"),
        ("9" * 1_000_000, "unparsable"),
        ("(" * 700 + "1" + ")" * 700, "wrong"),
        (r"\frac{1}{" * 60 + "2" + "}" * 60, "wrong"),
        ("-" * 500 + "5", "wrong"),
        ("(1).__class__.__mro__[1].__subclasses__()", "wrong"),
    ],
)
def test_hostile_answers_cost_little(answer: str, verdict: str) -> None:
    latex.grade(gold_problem("5"), r"\boxed{\sqrt{2}}")  # imports mpmath
    began = time.process_time()
    assert latex.grade(gold_problem("5"), rf"\boxed{{{answer}}}").verdict == verdict
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 30_000,
        "\\boxed{1}" * 30_000,
        "Final answer: " * 20_000,
        "$" * 100_000,
        "$1$" * 50_000,
        "the answer is " * 20_000,
        "<answer>" * 20_000 + "1</answer>" * 20_000,
        '"answer": "' * 10_000,
        "\\[ " * 50_000,
        "{" * 200_000,
        "\n" * 200_000,
        "solve this problem. " * 20_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    latex.grade(gold_problem("5"), text)
    assert time.process_time() - began < 1.0


def test_importing_the_graders_imports_nothing_heavy() -> None:
    code = "import sys, irpo_nemo.grading; print({'sympy', 'mpmath', 'math_verify', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("answer", [r"\$}}0.250", r"\$", "{}", r"\text{}", r"\left", "}", "_", "^"])
def test_scraps_of_formulas_are_no_crash(answer: str) -> None:
    assert latex.grade(gold_problem(r"\$0.50"), f"Final answer: \\boxed{{{answer}}}").verdict != "correct"


@pytest.mark.parametrize("answer", ["about 1200", r"\text{about }1200", r"\approx 1200", "roughly 1200 km"])
def test_a_hedged_number_is_that_number(answer: str) -> None:
    assert latex.grade(gold_problem("1200"), f"Final answer: {answer}").verdict == "correct"
