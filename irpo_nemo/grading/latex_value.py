r"""Are two expressions the same number, or the same function? Decided without tolerance for rounded answers.

Rational arithmetic is exact (Fraction). Roots, \pi, logarithms and the like are computed to 100 digits and must agree
in 90 of them; where both sides nearly cancel, a second precision tells zero from small. Variables get a few rational
values, and the two expressions must agree at each. Sizes are limited before anything is computed.
"""

import functools
import math
import random
from collections.abc import Iterator, Set
from fractions import Fraction
from typing import Any

from irpo_nemo.grading.latex_normal import UnreadableError
from irpo_nemo.grading.latex_reader import FUNCTIONS, Apply, Node, Number, Symbol

TRIGONOMETRIC = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
MAX_BITS = 60_000
"""Of an exact integer; 2024^4046 has 44,403."""
MAX_FACTORIAL = 3000
MAX_BINOMIAL = 5000
MAX_ARGUMENT = 10**6
"""Of an exponential or a trigonometric function."""
MAX_INEXACT = 10**60
"""Larger numbers that are not rational cannot be told apart with 100 digits."""

_DIGITS = 100
_NUM_POINTS = 3
_NUM_TRIES = 12
_CONSTANTS = {"\\pi", "e", "i", "\\infty"}

Value = Any
"""A Fraction, or an mpmath number of a private context."""


class TooCostlyError(ValueError):
    """Deciding would take too much time or memory."""


class _UndefinedError(ArithmeticError):
    """The expression has no value at this point."""


def is_same_value(left: Node, right: Node) -> bool | None:
    """Whether two expressions are equal for all values of their variables; None when that cannot be told.

    Raises:
        TooCostlyError: The numbers are too large.
    """
    if find_symbols(left) != find_symbols(right) and not (_vanishing(left) or _vanishing(right)):
        return False
    if _uses_degrees(left) != _uses_degrees(right) and mentions(left, TRIGONOMETRIC) and mentions(right, TRIGONOMETRIC):
        left, right = _drop_degrees(left), _drop_degrees(right)
    agreed = 0
    for point in _points(left, right):
        try:
            if not _agree(left, right, point):
                return False
        except UnreadableError:
            return None
        except (_UndefinedError, ZeroDivisionError):
            continue
        agreed += 1
        if agreed == _NUM_POINTS or not point:
            return True
    return True if agreed else None


@functools.lru_cache(maxsize=4096)
def find_symbols(node: Node) -> frozenset[str]:
    """The variables of an expression; constants are none."""
    if isinstance(node, Symbol):
        return frozenset() if node.name in _CONSTANTS else frozenset([node.name])
    if isinstance(node, Apply):
        return frozenset().union(*map(find_symbols, node.arguments))
    return frozenset()


def value_of(node: Node) -> Fraction | None:
    """The value of an expression without variables when it is rational; None otherwise."""
    try:
        value = _evaluate(node, {}, _DIGITS)
    except (UnreadableError, _UndefinedError, ZeroDivisionError):
        return None
    return value if isinstance(value, Fraction) else None


def approximate(node: Node) -> float | None:
    """A real number near the value of an expression without variables; infinities included."""
    if node == Symbol("\\infty"):
        return math.inf
    if node == Apply("neg", (Symbol("\\infty"),)):
        return -math.inf
    try:
        value = _evaluate(node, {}, _DIGITS)
        return float(value)
    except (UnreadableError, _UndefinedError, ArithmeticError, TypeError):
        return None


def _uses_degrees(node: Node) -> bool:
    return mentions(node, frozenset(["degree"]))


def _drop_degrees(node: Node) -> Node:
    """Without degree signs: one side may have left them out."""
    if not isinstance(node, Apply):
        return node
    if node.function == "degree":
        return _drop_degrees(node.arguments[0])
    return Apply(node.function, tuple(map(_drop_degrees, node.arguments)))


def _vanishing(node: Node) -> bool:
    """Whether variables may cancel, as in x - x."""
    return mentions(node, {"+", "^", "/"}) and bool(find_symbols(node))


def mentions(node: Node, functions: Set[str]) -> bool:
    """Whether any of the functions or operations occurs."""
    return isinstance(node, Apply) and (
        node.function in functions or any(mentions(argument, functions) for argument in node.arguments)
    )


def _points(left: Node, right: Node) -> Iterator[dict[str, Fraction]]:
    """Values to try: whole ones where factorials want them, of both signs unless a root or logarithm is near."""
    names = sorted(find_symbols(left) | find_symbols(right))
    if not names:
        yield {}
        return
    is_whole = any(mentions(node, {"!", "binom"}) for node in (left, right))
    has_roots = any(mentions(node, {"sqrt", "root", "ln", "log", "lg"}) for node in (left, right))
    is_positive = has_roots and not any(mentions(node, {"abs"}) for node in (left, right))
    generator = random.Random("points")
    for attempt in range(_NUM_TRIES):
        point = {}
        for name in names:
            size = Fraction(generator.randint(5, 25)) if is_whole else Fraction(generator.randint(11, 90), 31)
            point[name] = -size if attempt % 2 and not (is_whole or is_positive) else size
        yield point


def _agree(left: Node, right: Node, point: dict[str, Fraction]) -> bool:
    left_value, right_value = _evaluate(left, point, _DIGITS), _evaluate(right, point, _DIGITS)
    if isinstance(left_value, Fraction) and isinstance(right_value, Fraction):
        return left_value == right_value
    context = _context(_DIGITS)
    difference = abs(_inexact(left_value, context) - _inexact(right_value, context))
    size = max(abs(_inexact(left_value, context)), abs(_inexact(right_value, context)))
    if difference > size * context.mpf(10) ** -(_DIGITS // 2) and size > context.mpf(10) ** -(_DIGITS // 2):
        return False
    if size > MAX_INEXACT:
        raise TooCostlyError("too large to compare")
    if difference <= size * context.mpf(10) ** -(_DIGITS - 10):
        return True
    finer = _context(2 * _DIGITS)
    fine_values = [_inexact(_evaluate(node, point, 2 * _DIGITS), finer) for node in (left, right)]
    return bool(abs(fine_values[0] - fine_values[1]) <= finer.mpf(difference) * finer.mpf(10) ** -(_DIGITS // 2))


@functools.cache
def _context(digits: int) -> Any:
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    return context


def _inexact(value: Value, context: Any) -> Any:
    if isinstance(value, Fraction):
        return context.mpf(value.numerator) / value.denominator
    return value


def _evaluate(node: Node, point: dict[str, Fraction], digits: int) -> Value:
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Symbol):
        return _evaluate_symbol(node.name, point, digits)
    if not isinstance(node, Apply):
        raise UnreadableError("not an expression")
    values = [_evaluate(argument, point, digits) for argument in node.arguments]
    context = _context(digits)
    if node.function in TRIGONOMETRIC and _uses_degrees(node.arguments[0]):
        values[0] = _multiply(context, values[0], context.pi / 180)
    if node.function in _OPERATIONS:
        return _limited(_OPERATIONS[node.function](context, *values))
    if node.function in _FUNCTIONS:
        return _apply_function(context, node.function, values)
    raise UnreadableError(f"{node.function} is not computed")


def _evaluate_symbol(name: str, point: dict[str, Fraction], digits: int) -> Value:
    if name in point:
        return point[name]
    if name == "\\pi":
        return +_context(digits).pi
    if name == "e":
        return +_context(digits).e
    if name == "i":
        return _context(digits).mpc(0, 1)
    raise UnreadableError(f"{name} has no value")


def _limited(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooCostlyError("too many digits")
    return value


def _both(context: Any, left: Value, right: Value) -> tuple[Value, Value]:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left, right
    return _inexact(left, context), _inexact(right, context)


def _add(context: Any, left: Value, right: Value) -> Value:
    left, right = _both(context, left, right)
    return left + right


def _multiply(context: Any, left: Value, right: Value) -> Value:
    left, right = _both(context, left, right)
    return left * right


def _divide(context: Any, left: Value, right: Value) -> Value:
    left, right = _both(context, left, right)
    if right == 0:
        raise _UndefinedError
    return left / right


def _power(context: Any, base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _whole_power(base, int(exponent))
        if base < 0 and exponent.denominator % 2:
            sign = -1 if exponent.numerator % 2 else 1
            return sign * _power(context, -base, exponent)
    base, exponent = _inexact(base, context), _inexact(exponent, context)
    if base == 0:
        raise _UndefinedError
    if abs(exponent) * max(1, abs(context.log(abs(base)))) > MAX_ARGUMENT:
        raise TooCostlyError("too large a power")
    return context.power(base, exponent)


def _whole_power(base: Fraction, exponent: int) -> Fraction:
    if base == 0 and exponent <= 0:
        raise _UndefinedError
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and bits * abs(exponent) > MAX_BITS:
        raise TooCostlyError("too large a power")
    if base in (0, 1, -1):
        exponent = 1 + (exponent + 1) % 2
    return base**exponent


def _root(context: Any, inside: Value, index: Value) -> Value:
    if not isinstance(index, Fraction) or index == 0:
        raise _UndefinedError
    return _power(context, inside, 1 / index)


def _square_root(context: Any, inside: Value) -> Value:
    if isinstance(inside, Fraction) and inside >= 0:
        root = Fraction(math.isqrt(inside.numerator), math.isqrt(inside.denominator))
        if root**2 == inside:
            return root
    return context.sqrt(_inexact(inside, context))


def _factorial(_: Any, number: Value) -> Value:
    if not isinstance(number, Fraction) or number.denominator != 1 or number < 0:
        raise _UndefinedError
    if number > MAX_FACTORIAL:
        raise TooCostlyError("too large a factorial")
    return Fraction(math.factorial(int(number)))


def _binomial(_: Any, total: Value, chosen: Value) -> Value:
    for number in (total, chosen):
        if not isinstance(number, Fraction) or number.denominator != 1 or number < 0:
            raise _UndefinedError
    if total > MAX_BINOMIAL:
        raise TooCostlyError("too large a binomial")
    return Fraction(math.comb(int(total), int(chosen)))


def _absolute(_: Any, value: Value) -> Value:
    return abs(value)


def _degrees(_: Any, value: Value) -> Value:
    """A degree sign is a unit, except within a trigonometric function."""
    return value


def _negative(_: Any, value: Value) -> Value:
    return -value


_OPERATIONS: dict[str, Any] = {
    "+": _add,
    "*": _multiply,
    "/": _divide,
    "^": _power,
    "neg": _negative,
    "sqrt": _square_root,
    "root": _root,
    "!": _factorial,
    "binom": _binomial,
    "abs": _absolute,
    "degree": _degrees,
}
_FUNCTIONS = FUNCTIONS - {"max", "min", "gcd", "lcm"}


def _apply_function(context: Any, name: str, values: list[Value]) -> Value:
    arguments = [_inexact(value, context) for value in values]
    if abs(arguments[0]) > MAX_ARGUMENT:
        raise TooCostlyError("too large an argument")
    if name in ("ln", "log", "lg"):
        return _logarithm(context, name, arguments)
    if len(arguments) > 1:
        raise UnreadableError(f"{name} takes one argument")
    name = name.replace("arc", "a")
    return getattr(context, name)(arguments[0])


def _logarithm(context: Any, name: str, arguments: list[Any]) -> Any:
    """Logarithm to the given base; without one, log and lg are to base ten as in school."""
    if arguments[0] == 0:
        raise _UndefinedError
    if len(arguments) == 1:
        return context.log(arguments[0]) if name == "ln" else context.log10(arguments[0])
    if arguments[1] in (0, 1):
        raise _UndefinedError
    return context.log(arguments[0]) / context.log(arguments[1])
