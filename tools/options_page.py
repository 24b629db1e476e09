"""Write docs/options.md, every option with its default and meaning, from the dataclasses of irpo_nemo/config.py.

    python tools/options_page.py

A test (tests/test_docs.py) holds that the page is current.
"""

import ast
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import irpo_nemo.config
from irpo_nemo.config import IRPOConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"

_HEAD = """# Every option

Set one on the command line (`irpo run quickstart seed=1 sampling.num_candidates=20`) or in a YAML file. This page is
written by `tools/options_page.py` from [`irpo_nemo/config.py`](../irpo_nemo/config.py), where the defaults stand; the
files in [`conf/`](../conf) hold what differs. What takes a list takes `[a,b]`; what takes `null` may be left unset.
"""


def make_page() -> str:
    """The page as Markdown."""
    sections = list(_walk_sections(IRPOConfig, ""))
    home = {schema: prefix for prefix, schema in reversed(sections)}
    return "\n".join([_HEAD, *(_make_section(prefix, schema, home) for prefix, schema in sections)])


def _walk_sections(schema: type, prefix: str) -> Iterator[tuple[str, type]]:
    """The dotted prefix and the dataclass of each section."""
    yield prefix, schema
    for name, hint in typing.get_type_hints(schema).items():
        is_own = name in vars(schema).get("__annotations__", {})
        if dataclasses.is_dataclass(hint) and is_own:
            yield from _walk_sections(typing.cast(type, hint), f"{prefix}{name}.")


def _make_section(prefix: str, schema: type, home: dict[type, str]) -> str:
    """One table; what another section has already, the same dataclass or the one it extends, is a reference to it."""
    hints = typing.get_type_hints(schema)
    items = [item for item in dataclasses.fields(schema) if not dataclasses.is_dataclass(hints[item.name])]
    lines = [f"## {prefix.rstrip('.') or 'The run'}", "", _escape(_first_paragraph(schema)), ""]
    source = schema if home[schema] != prefix else schema.__mro__[1]
    if source in home:
        known = {item.name: _default(item) for item in dataclasses.fields(source)}
        items = [item for item in items if item.name not in known or known[item.name] != _default(item)]
        other = home[source].rstrip(".")
        anchor = other.replace(".", "")
        lines += [
            f"The options of [`{other}`](#{anchor}), with `{prefix}` for `{other}.`{', and:' if items else '.'}",
            "",
        ]
    if items:
        documentation = field_documentation(schema)
        lines += ["| option | default | takes | meaning |", "|---|---|---|---|"]
        lines += [_row(prefix, item, hints[item.name], documentation.get(item.name, "")) for item in items]
        lines.append("")
    return "\n".join(lines)


def _row(prefix: str, item: "dataclasses.Field[Any]", hint: Any, meaning: str) -> str:
    cells = (f"`{prefix}{item.name}`", f"`{_show(_default(item))}`", _takes(item, hint), _escape(meaning))
    return f"| {' | '.join(cells)} |"


def field_documentation(schema: type) -> dict[str, str]:
    """The text below each field of `schema`, those of its bases included."""
    texts: dict[str, str] = {}
    classes = {node.name: node for node in ast.parse(inspect.getsource(irpo_nemo.config)).body if _is_class(node)}
    for name in (each.__name__ for each in reversed(schema.__mro__) if each.__name__ in classes):
        body = classes[name].body
        for node, following in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
                assert isinstance(node.target, ast.Name)
                texts[node.target.id] = inspect.cleandoc(ast.literal_eval(following.value)).replace("\n", " ")
    return texts


def _is_class(node: ast.stmt) -> typing.TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef)


def _first_paragraph(schema: type) -> str:
    return inspect.cleandoc(schema.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _default(item: "dataclasses.Field[Any]") -> Any:
    factory = item.default_factory
    return item.default if factory is dataclasses.MISSING else factory()


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _takes(item: "dataclasses.Field[Any]", hint: Any) -> str:
    """The type in words, with the choices or the bounds."""
    if choices := item.metadata.get("choices"):
        names = [f"`{choice}`" for choice in choices] + (["null"] if type(None) in typing.get_args(hint) else [])
        return ", ".join(names)
    bounds = [
        f"{sign} {item.metadata[key]:g}"
        for key, sign in (("minimum", "&ge;"), ("above", "&gt;"), ("maximum", "&le;"))
        if item.metadata.get(key) is not None
    ]
    return ", ".join([_name_type(hint), *bounds])


def _name_type(hint: Any) -> str:
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    if typing.get_origin(hint) is list:
        return f"list of {_name_type(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return "mapping"
    if arguments:
        return f"{_name_type(arguments[0])} or null"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[hint.__name__]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
