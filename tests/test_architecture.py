"""The floors of the house: imports go down only, never sideways between rooms of one floor, never up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import irpo_nemo

PACKAGE = Path(irpo_nemo.__file__).resolve().parent

FLOORS = {
    "errors": 0,
    "records": 0,
    "supervision": 0.5,
    "config": 1,
    "config_checks": 1.2,
    "config_files": 1.3,
    "run_folder": 1,
    "artifacts": 1,
    "model_shape": 1.5,
    "grading": 2,
    "planning": 2,
    "pairing": 2,
    "metrics": 2,
    "tokenization": 2,
    "tasks": 2.5,
    "sampling": 3,
    "selection": 2.7,
    "training": 3,
    "reporting": 3,
    "model_zero": 3,
    "grade_file": 3,
    "pipeline": 3,
    "reuse": 3.5,
    "tracking": 3.5,
    "stages": 4,
    "launch": 4,
    "table": 4.5,
    "cli": 5,
    "__main__": 6,
}
"""Half floors: a room that stands on its neighbour's shoulders. The package itself, `irpo_nemo`, is on the ground."""

ONLY_IMPORTERS = {
    "megatron": "training",
    "nemo": "training",
    "lightning": "training",
    "tensorrt_llm": "sampling",
    "matplotlib": "reporting",
    "wandb": "tracking",
    "mlflow": "tracking",
}

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def find_imports(path: Path) -> Iterator[str]:
    """Yield the absolute name of every import of a module, those inside functions and TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room_of(module: str) -> str:
    return Path(module).parts[0].removesuffix(".py")


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(module) for module in MODULES} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    room = room_of(module)
    for name in find_imports(PACKAGE / module):
        parts = name.split(".")
        if parts[0] != "irpo_nemo" or len(parts) == 1 or parts[1] not in FLOORS or parts[1] == room:
            continue
        assert room in FLOORS, f"{module} imports {name}, but the package itself stands on nothing"
        assert FLOORS[parts[1]] < FLOORS[room], f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_stay_in_their_room(module: str) -> None:
    for name in find_imports(PACKAGE / module):
        owner = ONLY_IMPORTERS.get(name.split(".")[0])
        assert owner in (None, room_of(module)), f"{module} imports {name}; only {owner} may"


@pytest.mark.parametrize("module", MODULES)
def test_the_package_does_not_lean_on_tools_or_tests(module: str) -> None:
    assert not {name.split(".")[0] for name in find_imports(PACKAGE / module)} & {
        "tools",
        "tests",
        "conftest",
        "pytest",
    }
