"""What can be held of the Dockerfile without an engine: its targets, what it copies, and its shell."""

import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    joined = TEXT.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_there_are_two_targets() -> None:
    assert [line.split(" AS ")[1] for line in instructions("FROM")] == ["trainer", "sampler"]


def test_what_is_copied_exists_and_is_all_that_the_package_is_built_from() -> None:
    copied = {word for line in instructions("COPY") for word in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hatch = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *hatch["packages"], *hatch["force-include"]}
    assert needed <= copied


def test_the_extras_that_are_installed_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for extras in re.findall(r'"\.\[([a-z,]+)\]"', TEXT) for extra in extras.split(",")}
    assert named == {"train", "report", "data"}
    assert named <= set(project["optional-dependencies"])


def test_the_commands_are_shell() -> None:
    for command in instructions("RUN"):
        assert subprocess.run(["sh", "-n", "-c", command], capture_output=True).returncode == 0, command
