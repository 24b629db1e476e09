"""From a YAML file and overrides to one checked configuration, and back.

`compose` uses Hydra's compose API: a configuration names others in its `defaults` list (groups: model, task, sampler,
launcher, cluster, loss), and `key=value` overrides follow Hydra's grammar. Every mistake is collected and reported
together.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_nemo.config import IRPOConfig, walk_fields
from irpo_nemo.config_checks import check_bounds, check_relations
from irpo_nemo.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_GROUPS = ("model", "task", "sampler", "launcher", "cluster", "loss")


def config_root() -> Path:
    """The folder conf/: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def load_config(
    config: str,
    overrides: Sequence[str] = (),
    *,
    also_check: Callable[[IRPOConfig], Iterable[str]] | None = None,
) -> IRPOConfig:
    """Compose and check the configuration that `irpo` commands name.

    Args:
        config: A name in conf/, or the path of a YAML file.
        overrides: `key=value` in Hydra's grammar; `group=name` picks a file of a group.
        also_check: Yields mistakes that show only in files, to be reported with the others.

    Raises:
        ConfigError: With every mistake found, one a line.
    """
    composed = compose(config, overrides)
    mistakes: list[str] = []
    value: IRPOConfig = _read_section(composed, IRPOConfig, "", mistakes)
    mistakes += check_bounds(value)
    if not mistakes:
        mistakes += check_relations(value)
        mistakes += also_check(value) if also_check is not None else ()
    if mistakes:
        raise ConfigError("\n".join(f"{config}: {mistake}" for mistake in mistakes))
    return value


def compose(config: str, overrides: Sequence[str] = ()) -> "DictConfig":
    """Merge the YAML file, the group files it names, and the overrides, without checking keys or values.

    Raises:
        ConfigError: A file is missing, is not YAML, or an override does not parse.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = _find_config(config)
    arguments = [f"hydra.searchpath=[{_quote(f'file://{config_root()}')}]", *map(_as_addition, overrides)]
    try:
        with initialize_config_dir(config_dir=str(path.parent.resolve()), version_base="1.3"):
            composed: DictConfig = hydra_compose(path.stem, overrides=arguments)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{config}: {reason}") from error
    return composed


def _quote(text: str) -> str:
    """A value in the grammar of overrides: a backslash there means itself, unless a quotation mark follows."""
    return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + end[2].replace("'", "\\'"), text) + "'"


def _find_config(config: str) -> Path:
    if config.endswith((".yaml", ".yml")):
        if not Path(config).is_file():
            raise ConfigError(f"{config}: no such file. Give a path, or one of: {', '.join(config_names())}.")
        return Path(config)
    if config not in config_names():
        near = difflib.get_close_matches(config, config_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{config}: no such configuration.{hint} Known: {', '.join(config_names())}.")
    return config_root() / f"{config}.yaml"


def config_names() -> list[str]:
    """The runs that conf/ holds."""
    return sorted(path.stem for path in config_root().glob("*.yaml"))


def _as_addition(override: str) -> str:
    """Let Hydra accept any `a.b=value`, so that unknown keys are reported by us, together with all other mistakes."""
    key = override.split("=", 1)[0]
    is_group_choice = key in CONFIG_GROUPS
    has_prefix = key.startswith(("+", "~"))
    if "=" not in override and not has_prefix:
        raise ConfigError(f"{override}: is not an override; wanted key=value, for example seed=1.")
    return override if is_group_choice or has_prefix else f"++{override}"


def _read_section(section: Any, schema: type, prefix: str, mistakes: list[str]) -> Any:
    """Read a mapping into the dataclass `schema`; append what is wrong to `mistakes`, each with its dotted path."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    hints = typing.get_type_hints(schema)
    values: dict[str, Any] = {}
    if not isinstance(section, DictConfig):
        mistakes.append(f"{prefix.rstrip('.')}: is {section!r}, but a section with keys is wanted")
        return schema()
    node = OmegaConf.structured(schema)  # knows how values are converted to the fields' types
    for key in section:
        path = f"{prefix}{key!s}"
        if key not in hints:
            mistakes.append(_unknown_key(path, str(key)))
        elif dataclasses.is_dataclass(hints[str(key)]):
            values[str(key)] = _read_section(section[key], typing.cast(type, hints[str(key)]), f"{path}.", mistakes)
        else:
            try:
                node[key] = section[key]
                values[str(key)] = OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            except OmegaConfBaseException:
                mistakes.append(f"{path}: is {section[key]!r}, but {_type_name(hints[str(key)])} is wanted")
    return schema(**values)


def _type_name(hint: Any) -> str:
    return (
        hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("NoneType", "null")
    )


def _unknown_key(path: str, key: str) -> str:
    leaves = [name for name, _, _ in walk_fields(IRPOConfig)]
    known = sorted({*leaves, *(name.rsplit(".", 1)[0] for name in leaves if "." in name)})
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.7) or [
        name for name in known if name.rsplit(".", 1)[-1] in difflib.get_close_matches(key, [name.rsplit(".", 1)[-1]])
    ]
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{path}: no such key.{hint}"


def dump_config(config: IRPOConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
