r"""Do two answers, as trees, say the same?

Order matters in tuples, intervals and matrices, and not in sets, unions and bare lists, where repeats count. A name
before the value ("x =", "f(x) =", "x \in") may be missing on one side. An inequality of one variable is its interval,
an equation may be multiplied by a number. Brackets of intervals are compared exactly.

Units and currency may be missing on one side, but may not differ; a percent sign may be missing (25\% is 25) or be
worked out (25\% is 0.25). A stated base (2516_8) may neither be missing nor be worked out, and 30 degrees are not
\pi/6. Arithmetic and roots may be left to do; but a number given by a trigonometric function or logarithm, as in \tan
100^\circ, differs from one given without, for it often just repeats the question.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from irpo_nemo.grading.latex_reader import (
    FUNCTIONS,
    Answer,
    Apply,
    Based,
    Group,
    Matrix,
    Node,
    Number,
    Relation,
    Symbol,
    Words,
)
from irpo_nemo.grading.latex_value import approximate, find_symbols, is_same_value, mentions

_FLIPPED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq", "=": "=", "\\neq": "\\neq"}
_NO_SOLUTION = {"nosolution", "nosolutions", "none", "norealsolution", "norealsolutions", "emptyset", "\\emptyset"}
_INFINITY = Symbol("\\infty")
_MINUS_INFINITY = Apply("neg", (_INFINITY,))
_CENTS_PER_DOLLAR = 100


def is_same_answer(gold: Answer, other: Answer) -> bool | None:
    """Whether two answers say the same; None when that cannot be told.

    Raises:
        TooCostlyError: They are too large to be computed.
    """
    gold_body, other_body = gold.body, other.body
    if gold.unit and other.unit and gold.unit != other.unit:
        if {gold.unit, other.unit} != {"cent", "dollar"}:
            return False
        gold_body, other_body = (_in_dollars(answer) for answer in (gold, other))
    if (gold.has_percent and other.unit) or (other.has_percent and gold.unit):
        return False
    if gold.has_percent == other.has_percent:
        return is_same(gold_body, other_body)
    if gold.has_percent:
        return _either(is_same(gold_body, other_body), is_same(_hundredth(gold_body), other_body))
    return _either(is_same(gold_body, other_body), is_same(gold_body, _hundredth(other_body)))


def _in_dollars(answer: Answer) -> Node:
    return _hundredth(answer.body) if answer.unit == "cent" else answer.body


def _hundredth(node: Node) -> Node:
    return Apply("/", (node, Number(Fraction(_CENTS_PER_DOLLAR))))


def _either(*verdicts: bool | None) -> bool | None:
    return True if True in verdicts else None if None in verdicts else False


def _all(verdicts: "Sequence[bool | None]") -> bool | None:
    return False if False in verdicts else None if None in verdicts else True


def is_same(left: Node, right: Node) -> bool | None:
    """Whether two trees say the same; None when that cannot be told."""
    if left == right:
        return True
    left, right = _expand_signs(left), _expand_signs(right)
    if isinstance(left, Relation) or isinstance(right, Relation):
        return _compare_relations(left, right)
    if isinstance(left, Group) or isinstance(right, Group):
        return _compare_groups(left, right)
    if isinstance(left, Matrix) or isinstance(right, Matrix):
        return _compare_matrices(left, right)
    if _holds_words(left) or _holds_words(right):
        return _compare_words(left, right)
    if _is_based(left) or _is_based(right):
        return _compare_based(left, right)
    return _compare_expressions(left, right)


# -- expressions


def _compare_expressions(left: Node, right: Node) -> bool | None:
    if _is_infinite(left) != _is_infinite(right):
        return False
    if _is_left_to_compute(left) != _is_left_to_compute(right):
        return False
    return is_same_value(left, right)


def _is_left_to_compute(node: Node) -> bool:
    r"""Whether a number is given by functions, as \tan 100^\circ: that often just repeats the question."""
    return not find_symbols(node) and mentions(node, FUNCTIONS)


def _is_infinite(node: Node) -> bool:
    return node in (_INFINITY, _MINUS_INFINITY)


def _is_based(node: Node) -> bool:
    return isinstance(node, Based) or (isinstance(node, Apply) and any(map(_is_based, node.arguments)))


def _compare_based(left: Node, right: Node) -> bool:
    if isinstance(left, Apply) and isinstance(right, Apply) and left.function == right.function == "neg":
        return _compare_based(left.arguments[0], right.arguments[0])
    if not isinstance(left, Based) or not isinstance(right, Based):
        return False
    return left.base == right.base and left.digits.lstrip("0") == right.digits.lstrip("0")


def _compare_words(left: Node, right: Node) -> bool:
    letters = {_letters(left), _letters(right)}
    return None not in letters and (len(letters) == 1 or letters <= _NO_SOLUTION)


def _holds_words(node: Node) -> bool:
    return isinstance(node, Words) or (isinstance(node, Apply) and any(map(_holds_words, node.arguments)))


def _letters(node: Node) -> str | None:
    """Words, or a product of one-letter symbols that was meant as a word; None for anything else."""
    if isinstance(node, Words):
        return node.text
    if isinstance(node, Symbol):
        return node.name.casefold()
    if isinstance(node, Apply) and node.function == "*":
        parts = list(map(_letters, node.arguments))
        return None if None in parts else "".join(filter(None, parts))
    return None


def _expand_signs(node: Node) -> Node:
    r"""Write a \pm b as the list of a + b and a - b; also within a list or a set."""
    if isinstance(node, Group) and node.opening in ("{", ","):
        items: list[Node] = []
        for item in node.items:
            expanded = _expand_signs(item)
            is_list = isinstance(expanded, Group) and expanded.opening == "," and expanded is not item
            items += expanded.items if is_list and isinstance(expanded, Group) else (expanded,)
        return Group(node.opening, tuple(items), node.closing)
    if isinstance(node, Relation) and set(node.signs) == {"="} and _has_signs(node.sides[-1]):
        expanded = _expand_signs(node.sides[-1])
        if isinstance(expanded, Group):
            return Group(",", tuple(Relation(node.signs, (*node.sides[:-1], item)) for item in expanded.items), ",")
    if isinstance(node, Apply) and _has_signs(node):
        return Group(",", (_choose_sign(node, upper=True), _choose_sign(node, upper=False)), ",")
    return node


def _has_signs(node: Node) -> bool:
    return isinstance(node, Apply) and (node.function in ("pm", "mp") or any(map(_has_signs, node.arguments)))


def _choose_sign(node: Node, *, upper: bool) -> Node:
    if not isinstance(node, Apply):
        return node
    arguments = tuple(_choose_sign(argument, upper=upper) for argument in node.arguments)
    if node.function in ("pm", "mp"):
        return arguments[0] if (node.function == "pm") == upper else Apply("neg", arguments)
    return Apply(node.function, arguments)


# -- relations


def _compare_relations(left: Node, right: Node) -> bool | None:
    if isinstance(left, Relation) and isinstance(right, Relation):
        return _compare_two_relations(left, right)
    relation, other = (left, right) if isinstance(left, Relation) else (right, left)
    assert isinstance(relation, Relation)
    if (value := _stated_value(relation)) is not None:
        return is_same(value, other)
    if isinstance(other, Group) and (interval := _as_interval(relation)) is not None:
        return is_same(interval, other)
    if isinstance(other, Group) and other.opening in (",", "u"):
        return is_same(Group(",", (relation,), ","), other) if len(other.items) == 1 else False
    return False


def _stated_value(relation: Relation) -> Node | None:
    r"""What "x = 5", "5 = x", "3 + 4 = 7" or "x \in S" gives as the answer; None for an equation or inequality."""
    signs, sides = relation.signs, relation.sides
    if "\\approx" in signs:
        cut = signs.index("\\approx")
        if cut:
            return _stated_value(Relation(signs[:cut], sides[: cut + 1]))
        return sides[1] if is_name(sides[0]) else sides[0]
    if set(signs) == {"="}:
        if is_name(sides[0]) or len(sides) > 2 or not find_symbols(sides[0]):
            return sides[0] if is_name(sides[-1]) and not is_name(sides[0]) else sides[-1]
        return sides[0] if is_name(sides[-1]) else None
    return sides[1] if signs in (("\\in",), ("\\to",)) else None


def is_name(node: Node) -> bool:
    r"""Whether a side of an equation only names what is asked for: x, f(x), |AB|, \sin A, (x, y), "Area"."""
    if isinstance(node, Symbol):
        return bool(find_symbols(node)) or node.name in ("e", "i")
    if isinstance(node, Words):
        return True
    if isinstance(node, Group):
        return node.opening == "(" and all(map(is_name, node.items))
    if isinstance(node, Apply):
        return _is_function_at(node) or _is_product_of_names(node)
    return False


def _is_product_of_names(node: Apply) -> bool:
    r"""Such as AB or a/b; also a function of anything, as in \sin A or |z|."""
    if node.function in ("*", "/", "!"):
        return all(map(is_name, node.arguments))
    return node.function not in ("+", "neg", "^", "pm", "mp", "sqrt", "root") and bool(find_symbols(node))


def _is_function_at(node: Apply) -> bool:
    """f(2) reads as the product of f and 2."""
    left = node.arguments[0]
    return node.function == "*" and isinstance(left, Symbol) and left.name in ("f", "g", "h", "P", "Q")


def _compare_two_relations(left: Relation, right: Relation) -> bool | None:
    left_interval, right_interval = _as_interval(left), _as_interval(right)
    if left_interval is not None and right_interval is not None:
        return _all((_variable(left) == _variable(right), is_same(left_interval, right_interval)))
    if left.signs == right.signs == ("=",) and _name_alike(left.sides[0], right.sides[0]):
        return is_same(left.sides[1], right.sides[1])
    if _compare_sides(left, right) or _compare_sides(left, _flip(right)):
        return True
    if len(left.sides) == len(right.sides) == 2:
        return _compare_as_equations(left, right)
    left_value, right_value = _stated_value(left), _stated_value(right)
    return left_value is not None and right_value is not None and is_same(left_value, right_value)


def _name_alike(left: Node, right: Node) -> bool:
    """Whether two sides are names of the same thing, as y and f(x) are."""
    if not is_name(left) or not is_name(right):
        return False
    is_function = any(isinstance(side, Apply) and side.function == "*" for side in (left, right))
    return left == right or (Symbol("y") in (left, right) and is_function)


def _flip(relation: Relation) -> Relation:
    signs = tuple(_FLIPPED.get(sign, sign) for sign in reversed(relation.signs))
    return Relation(signs, tuple(reversed(relation.sides)))


def _compare_sides(left: Relation, right: Relation) -> bool | None:
    if left.signs != right.signs or len(left.sides) != len(right.sides):
        return False
    return _all([is_same(*sides) for sides in zip(left.sides, right.sides, strict=True)])


def _compare_as_equations(left: Relation, right: Relation) -> bool | None:
    """Whether the two say a = 0 and c a = 0 with a constant c; with c of the right sign for inequalities."""
    differences = [Apply("+", (relation.sides[0], Apply("neg", (relation.sides[1],)))) for relation in (left, right)]
    if any(not _is_expression(side) for relation in (left, right) for side in relation.sides):
        return False
    if find_symbols(differences[0]) != find_symbols(differences[1]) or not find_symbols(differences[0]):
        return False
    ratio = Apply("/", (differences[0], differences[1]))
    value = _constant_value(ratio)
    if value is None or value == 0:
        return False
    sign = right.signs[0] if value > 0 else _FLIPPED.get(right.signs[0])
    return left.signs[0] == sign


def _is_expression(node: Node) -> bool:
    return isinstance(node, Number | Symbol) or (isinstance(node, Apply) and all(map(_is_expression, node.arguments)))


def _constant_value(ratio: Node) -> float | None:
    """The value of an expression whose variables cancel; None when they do not."""
    shifted = {name: Apply("+", (Symbol(name), Number(Fraction(7, 13)))) for name in find_symbols(ratio)}
    other = substitute(ratio, shifted)
    if not is_same_value(ratio, other):
        return None
    return approximate(substitute(ratio, {name: Number(Fraction(17, 29)) for name in shifted}))


def substitute(node: Node, values: Mapping[str, Node]) -> Node:
    """Put expressions in the place of variables."""
    if isinstance(node, Symbol):
        return values.get(node.name, node)
    if isinstance(node, Apply):
        return Apply(node.function, tuple(substitute(argument, values) for argument in node.arguments))
    return node


def _variable(relation: Relation) -> Node:
    return next(side for side in relation.sides if find_symbols(side) or is_name(side))


def _as_interval(relation: Relation) -> Node | None:
    r"""The interval of "x < 3", "1 \leq x < 2" or "x \neq 0"; None when it is something else."""
    signs, sides = relation.signs, relation.sides
    if signs == ("\\in",):
        return sides[1]
    if signs == ("\\neq",) and is_name(sides[0]):
        return Group("u", (_interval(None, sides[1], ""), _interval(sides[1], None, "")), "u")
    if len(sides) == 2 and signs[0] in ("<", ">", "\\leq", "\\geq"):
        if not is_name(sides[0]):
            relation = _flip(relation)
            (sign,), (name, bound) = relation.signs, relation.sides
        else:
            (sign,), (name, bound) = signs, sides
        if not is_name(name) or find_symbols(bound):
            return None
        closed = "]" if sign == "\\leq" else "[" if sign == "\\geq" else ""
        return _interval(None, bound, closed) if sign in ("<", "\\leq") else _interval(bound, None, closed)
    if len(sides) == 3 and is_name(sides[1]) and not find_symbols(sides[0]) and not find_symbols(sides[2]):
        if set(signs) <= {">", "\\geq"}:
            signs, sides = _flip(relation).signs, _flip(relation).sides
        if set(signs) <= {"<", "\\leq"}:
            closed = ("[" if signs[0] == "\\leq" else "") + ("]" if signs[1] == "\\leq" else "")
            return _interval(sides[0], sides[2], closed)
    return None


def _interval(low: Node | None, high: Node | None, closed: str) -> Group:
    items = (_MINUS_INFINITY if low is None else low, _INFINITY if high is None else high)
    return Group("[" if "[" in closed else "(", items, "]" if "]" in closed else ")")


# -- groups


def _compare_groups(left: Node, right: Node) -> bool | None:
    left, right = _gather_intervals(left), _gather_intervals(right)
    if not isinstance(left, Group) or not isinstance(right, Group):
        return _compare_group_with_other(left, right)
    if _is_loose(left) and _is_loose(right):
        if _names(left) and _names(right) == [] and len(set(map(str, _names(left)))) > 1:
            return _compare_items(left, right)
        if _names(right) and _names(left) == [] and len(set(map(str, _names(right)))) > 1:
            return _compare_items(left, right)
        return _match_items(left.items, right.items)
    if _is_loose(left) or _is_loose(right):
        loose, tight = (left, right) if _is_loose(left) else (right, left)
        if len(loose.items) == 1:
            return is_same(loose.items[0], tight)
        is_plain = loose.opening == "," and (tight.opening, tight.closing) == ("(", ")")
        return _compare_items(left, right) if is_plain else False
    is_vector = len(left.items) > 2 and {left.opening + left.closing, right.opening + right.closing} <= {"()", "[]"}
    if (left.opening, left.closing) != (right.opening, right.closing) and not is_vector:
        return False
    return _compare_items(left, right)


def _is_loose(group: Group) -> bool:
    """A list, set or union, where order does not matter."""
    return group.opening in (",", "{", "u")


def is_list(node: Node) -> bool:
    """Whether an answer consists of several values in no fixed place: a list or a set."""
    node = _expand_signs(node)
    return isinstance(node, Group) and node.opening in (",", "{")


def _names(group: Group) -> list[Node]:
    return [item.sides[0] for item in group.items if isinstance(item, Relation) and is_name(item.sides[0])]


def _compare_items(left: Group, right: Group) -> bool | None:
    if len(left.items) != len(right.items):
        return False
    return _all([is_same(*items) for items in zip(left.items, right.items, strict=True)])


def _match_items(left: tuple[Node, ...], right: tuple[Node, ...]) -> bool | None:
    """Whether each item has its partner, whatever the order."""
    if len(left) != len(right):
        return False
    rest = list(right)
    for item in left:
        verdicts = [is_same(item, other) for other in rest]
        if True not in verdicts:
            return None if None in verdicts else False
        del rest[verdicts.index(True)]
    return True


def _compare_group_with_other(left: Node, right: Node) -> bool | None:
    group, other = (left, right) if isinstance(left, Group) else (right, left)
    assert isinstance(group, Group)
    if isinstance(other, Matrix) and (vector := _as_vector(other)) is not None:
        return _compare_items(vector, group) if (group.opening, group.closing) in (("(", ")"), ("[", "]")) else False
    if isinstance(other, Apply) and other.function == "setminus":
        return None
    if isinstance(other, Symbol) and other.name == "\\mathbb{R}":
        return group == _interval(None, None, "")
    if isinstance(other, Symbol) and other.name == "\\emptyset":
        return not group.items
    if _is_loose(group) and len(group.items) == 1:
        return is_same(group.items[0], other)
    if isinstance(other, Words):
        return [_letters(item) for item in group.items] == [other.text]
    return False


def _gather_intervals(node: Node) -> Node:
    """A list of inequalities of one variable as the union, or the common part, of their intervals."""
    if not isinstance(node, Group) or node.opening != "," or not all(isinstance(item, Relation) for item in node.items):
        return node
    relations = [item for item in node.items if isinstance(item, Relation)]
    intervals = [_as_interval(relation) for relation in relations]
    if None in intervals or len({_variable(relation) for relation in relations}) != 1:
        return node
    groups = [interval for interval in intervals if isinstance(interval, Group)]
    if len(groups) == 2 and (common := _overlap(*groups)) is not None:
        return common
    return Group("u", tuple(groups), "u")


def _overlap(left: Group, right: Group) -> Group | None:
    """What x > a and x < b have in common when a < b; None when they are apart."""
    if left.items[0] == _MINUS_INFINITY:
        left, right = right, left
    if left.items[1] != _INFINITY or right.items[0] != _MINUS_INFINITY:
        return None
    low, high = approximate(left.items[0]), approximate(right.items[1])
    if low is None or high is None or low >= high:
        return None
    return Group(left.opening, (left.items[0], right.items[1]), right.closing)


# -- matrices


def _compare_matrices(left: Node, right: Node) -> bool | None:
    if not isinstance(left, Matrix) or not isinstance(right, Matrix):
        return None if _holds_matrix(left) and _holds_matrix(right) else False
    if [len(row) for row in left.rows] != [len(row) for row in right.rows]:
        return False
    pairs = [pair for rows in zip(left.rows, right.rows, strict=True) for pair in zip(*rows, strict=True)]
    return _all([is_same(*pair) for pair in pairs])


def _holds_matrix(node: Node) -> bool:
    return isinstance(node, Matrix) or (isinstance(node, Apply) and any(map(_holds_matrix, node.arguments)))


def _as_vector(matrix: Matrix) -> Group | None:
    if len(matrix.rows) == 1:
        return Group("(", matrix.rows[0], ")")
    if all(len(row) == 1 for row in matrix.rows):
        return Group("(", tuple(row[0] for row in matrix.rows), ")")
    return None
