"""Settings of a stage out of a section of a YAML file: ``--params FILE:SECTION``."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rcnnpipe.errors import one_line

SECTION = "rcnnpipe.params"  # where a context keeps what was read


def read_section(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Make the section named by ``--params`` the defaults of this stage's options."""
    if value is None:
        return
    file, section, node = _find_section(value)
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise click.BadParameter(f"section '{section}' of {file} is not a mapping of settings")
    names = {
        option.removeprefix("--"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--") and parameter.name not in ("params", "help")
    }
    defaults: dict[str, Any] = {}
    for key, setting in node.items():
        if str(key) not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            raise click.BadParameter(f"'{key}' in {value} is not an option of this stage{hint}")
        if setting is None:  # an empty value leaves the default
            continue
        parameter = names[str(key)]
        typed = _as_typed(f"'{key}' in {value}", setting)
        several = parameter.multiple and typed is not None
        defaults[parameter.name or ""] = str(typed).split(",") if several else typed
    ctx.meta[SECTION] = value
    ctx.default_map = defaults


def _as_typed(place: str, setting: Any) -> str | None:
    """A setting of a YAML file as it would stand on the command line, to be checked as there."""
    if isinstance(setting, list) and all(isinstance(item, str | int | float) for item in setting):
        return ",".join(map(str, setting))
    if isinstance(setting, Mapping | list):
        raise click.BadParameter(f"{place} is neither a value nor a list of values")
    return None if setting is None else str(setting)


def _find_section(value: str) -> tuple[str, str, Any]:
    import yaml

    from rcnnpipe.yaml_files import load_yaml

    file, _, section = value.partition(":")
    try:
        node = load_yaml(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}") from None
    except RecursionError:
        raise click.BadParameter(f"{file} is nested too deeply to hold settings") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{file} is not YAML: {one_line(error)}") from None
    for key in section.split(".") if section else ():
        if not isinstance(node, Mapping) or key not in node:
            raise click.BadParameter(f"{file} has no section '{section}'")
        node = node[key]
    return file, section, node
