"""The documentation holds: links resolve, commands are read by the real command line and their settings compose,
options exist and are described, examples run, and quoted messages are ours. Links to other sites are not tried.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import irpo_nemo
from irpo_nemo.cli import _make_parser
from irpo_nemo.config import IRPOConfig, walk_fields
from irpo_nemo.config_files import CONFIG_GROUPS, config_names, load_config
from tests.test_conf_files import NEEDED
from tools.options_page import PAGE, field_documentation, make_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

KEYS = {key for key, _, _ in walk_fields(IRPOConfig)}
SECTIONS = {key.rsplit(".", 1)[0] for key in KEYS if "." in key}

PLACEHOLDERS = {
    "CONFIG": "quickstart",
    "RUN_DIR": "runs/quickstart",
    "RUN_ROOT": "runs",
    "runs/NAME": "runs/quickstart",
    "NAME": "sample",
    "TABLE": "paper",
    "INPUT": "in.jsonl",
    "OUTPUT": "out.jsonl",
    "--task T": "--task gsm8k",
    "iteration=T": "iteration=0",
    "shard=I/N": "shard=0/2",
    "seed=S": "seed=1",
    "quickstart-S": "quickstart-1",
    "name=...": "name=other",
    "to-megatron|to-hf ...": "to-megatron in out",
}
"""What a command in the text leaves open, and a value for it."""


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def blocks_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def spans_of(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_code(text))


def commands_of(text: str) -> Iterator[str]:
    """Lines of unnamed blocks, and code in sentences, that call irpo or a tool; explanations beside them left out."""
    lines = [line for block in blocks_of(text, "") for line in block.splitlines()]
    for command in [*lines, *(span for span in spans_of(text) if not re.fullmatch(r"irpo \w+", span))]:
        if re.match(r"irpo \w|tools/\w+\.(sh|py)\b", command):
            yield re.split(r"\s{2,}|\s#", command)[0]


COMMANDS = sorted({(name, c) for name, page in zip(NAMES, PAGES, strict=True) for c in commands_of(page.read_text())})


def fill_in(command: str) -> list[str]:
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    command = re.sub(r"\[(?:key=value )?\.\.\.\]", "", command)
    return shlex.split(re.sub(r"(?<= )\[([^\]]+)\]", r"\1", command))  # what may be left out is tried, too


def needed_of(config: str, given: list[str]) -> list[str]:
    """What a person must add to `config`, unless the command does."""
    keys = {override.split("=", 1)[0] for override in given}
    return [override for override in NEEDED.get(config, ()) if override.split("=", 1)[0] not in keys]


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 30
    assert {command.split()[1] for _, command in COMMANDS if command.startswith("irpo ")} >= {
        "run",
        "plan",
        "status",
        "report",
        "track",
        "stage",
        "grade",
        "doctor",
        "convert",
    }


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_read_and_its_settings_compose(page: str, command: str) -> None:  # noqa: ARG001
    program, *arguments = fill_in(command)
    if program.endswith(".py"):
        source = (ROOT / program).read_text(encoding="utf-8")
        assert all(f'"{argument}"' in source for argument in arguments if argument.startswith("--"))
    elif program.endswith(".sh"):
        assert (ROOT / program).is_file()
        if program.endswith("quickstart.sh"):
            load_config("quickstart", arguments)
    else:
        parsed = _make_parser().parse_args(arguments)
        own = ("iteration=", "shard=", "seeds=", "folder=")
        overrides = [override for override in getattr(parsed, "overrides", []) if not override.startswith(own)]
        assert not hasattr(parsed, "table") or (ROOT / "conf" / "tables" / f"{parsed.table}.yaml").exists()
        config = getattr(parsed, "config", "quickstart")
        if config.endswith(".yaml"):
            config = "quickstart"  # the reader's own file; the page's example of one is tried below
        load_config(config, [*needed_of(config, overrides), *overrides])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(aim), f"{page.name}: {target}"


def anchors_of(page: Path) -> set[str]:
    """The ids that a page's headings get: lower case, hyphens for spaces, punctuation left out."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_page_can_be_reached(page: Path) -> None:
    others = "".join(other.read_text(encoding="utf-8") for other in PAGES if other != page)
    assert page.name == "README.md" or f"{page.name})" in others


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_option_named_exists(page: Path) -> None:
    for span in spans_of(page.read_text(encoding="utf-8")):
        for word in span.split():
            name = re.fullmatch(r"([a-z_0-9]+(?:\.[a-z_0-9]+)+)\.?(?:=.*)?", word)
            if name and name[1].split(".")[0] in SECTIONS and not name[1].endswith((".json", ".py")):
                assert name[1] in KEYS | SECTIONS, f"{page.name}: {span}"
            choice = re.fullmatch(r"([a-z]+)=(\w+)", word)
            if choice and choice[1] in CONFIG_GROUPS:
                assert (ROOT / "conf" / choice[1] / f"{choice[2]}.yaml").exists(), f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_example_runs(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for source in blocks_of(text, "python"):
        exec(source, {})
    for source in blocks_of(text, "yaml"):
        path = tmp_path / "mine.yaml"
        path.write_text(source)
        assert load_config(str(path)).name == "mine"


def test_every_configuration_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in config_names())


def test_every_command_is_in_the_readme() -> None:
    usage = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"), "")
    (block,) = [block for block in usage if "irpo plan CONFIG" in block]
    (commands,) = [a.choices for a in _make_parser()._actions if isinstance(a.choices, dict)]
    assert {line.split()[1] for line in block.splitlines()} == set(commands)


def test_every_message_in_troubleshooting_is_one_of_ours() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    strings = list(strings_of_the_package())
    quoted = [q for heading in re.findall(r"^### (`.+`)$", text, re.MULTILINE) for q in heading[1:-1].split("`, `")]
    assert len(quoted) > 20
    for message in quoted:
        for part in filter(None, (piece.strip() for piece in message.split("..."))):
            assert any(part in string for string in strings), message


def strings_of_the_package() -> Iterator[str]:
    """Every text in the code; what an f-string fills in separates two of them."""
    for path in Path(irpo_nemo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize(("key", "schema"), [(key, schema) for key, _, schema in walk_fields(IRPOConfig)])
def test_every_option_says_what_it_does(key: str, schema: type) -> None:
    assert field_documentation(schema).get(key.rsplit(".", 1)[-1]), f"{key}: add a docstring below it in config.py"


def test_the_page_of_options_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run: python tools/options_page.py"
