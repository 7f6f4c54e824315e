"""What the commands of all stages share: settings from a file, errors in one sentence, options."""

import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from rcnnpipe.errors import RcnnpipeError, SettingError
from rcnnpipe.settings_file import SECTION, read_section

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_HDF5 = b"\x89HDF\r\n\x1a\n"  # how each HDF5 file begins
# Options that say how a run is done or shown; the result is the same whatever they are.
_PLUMBING = frozenset({"workers", "verbose", "quiet", "json", "as_json", "curves", "compression"})


class StageCommand(click.Command):
    """A stage's command: takes settings from a YAML section, turns our errors into one sentence.

    The order of precedence is flag, section of ``--params``, the option's default.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add the options that every stage has."""
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("show_default", True)
        self.params += [
            click.Option(
                ["--params"],
                metavar="FILE:SECTION",
                is_eager=True,
                expose_value=False,
                callback=read_section,
                help="Take settings from a section of a YAML file, e.g. params.yaml:pretrain.",
            ),
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                help="Say more.",
                show_default=False,
            ),
            click.Option(
                ["-q", "--quiet"],
                count=True,
                expose_value=False,
                help="Say only what goes wrong.",
                show_default=False,
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the file and section when a bad value came from there."""
        _set_up_messages(_count(args, "v", "--verbose") - _count(args, "q", "--quiet"))
        try:
            rest = super().parse_args(ctx, args)
            for parameter in self.params:
                value = ctx.params.get(parameter.name or "")
                if isinstance(value, float) and not math.isfinite(value):
                    raise click.BadParameter(f"{value} is no finite number", ctx, parameter)
            return rest
        except click.BadParameter as error:
            name = error.param.name if error.param else None
            source = ctx.get_parameter_source(name) if name else None
            if SECTION not in ctx.meta or source is not ParameterSource.DEFAULT_MAP:
                raise
            message = f"{error.message} (from {ctx.meta[SECTION]})"
            raise click.BadParameter(message, ctx, error.param) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the stage; a mistake of the user's becomes one sentence and exit code 1."""
        try:
            _refuse_to_replace_input(ctx)
            return super().invoke(ctx)
        except (KeyboardInterrupt, SystemError) as error:
            if not _is_interrupt(error):
                raise
            raise click.ClickException(
                "stopped; the same command goes on from what it has saved, if anything"
            ) from None
        except RcnnpipeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            # Full disks, missing rights, folders that are files: the system's words, and the file.
            if isinstance(error, BrokenPipeError):
                raise
            told, out = error.strerror or str(error), ctx.params.get("out")
            if error.filename:
                told = f"{error.filename}: {told}"
            elif out:  # a failed write does not say where
                told = f"{told}, in making {out}"
            raise click.ClickException(told) from error
        except MemoryError as error:
            raise click.ClickException(
                f"out of memory ({error}); lower --workers or the batch size"
            ) from error


def _is_interrupt(error: BaseException | None) -> bool:
    """Compiled code turns an interrupt into a SystemError that was caused by it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _refuse_to_replace_input(ctx: click.Context) -> None:
    """No file is written over one that is read; nor over a device, a pipe or the like."""
    out: Any = ctx.params.get("out")
    if not isinstance(out, Path):
        return
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise SettingError(f"--out {out} is no ordinary file; name another one")
    for parameter in ctx.command.params:
        given = ctx.params.get(parameter.name or "")
        if parameter.name == "out" or not isinstance(parameter.type, click.Path):
            continue
        for path in given if isinstance(given, tuple) else (given,):
            if path is not None and Path(path).resolve() == out.resolve():
                name = parameter.opts[0] if isinstance(parameter, click.Option) else "read"
                raise SettingError(f"--out {out} is also {name} and would be lost; name another")


def _count(args: list[str], letter: str, word: str) -> int:
    letters = (arg for arg in args if arg.startswith("-") and not arg.startswith("--"))
    return args.count(word) + sum(
        arg.count(letter) for arg in letters if set(arg[1:]) <= {"v", "q"}
    )


def _set_up_messages(verbosity: int) -> None:
    level = {-1: logging.ERROR, 0: logging.INFO}.get(max(verbosity, -1), logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logger = logging.getLogger("rcnnpipe")
    logger.handlers[:] = [handler]
    logger.propagate = False
    # Of several torchrun ranks only the first speaks, the others only when something is wrong.
    logger.setLevel(level if os.environ.get("RANK", "0") == "0" else logging.ERROR)


class _Plain(logging.Formatter):
    """Information is told as it is, everything else says what it is first."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def say(message: str) -> None:
    """Tell the user something on stderr, unless --quiet."""
    logging.getLogger("rcnnpipe").info(message)


def stage_settings(
    ctx: click.Context, leave_out: Collection[str] = (), off: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The options in force that can change a stage's result, by their names on the command line.

    Files, and options that only say how to run, are left out: an equal result must record equal
    settings wherever and however it was made.

    Args:
        ctx: of the stage.
        leave_out: names of options that are left out as well.
        off: name -> the value with which an option asks for nothing, and is left out.
    """
    off = off or {}
    settings: dict[str, Any] = {}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name not in ctx.params or name in _PLUMBING or name in leave_out:
            continue
        if isinstance(parameter.type, click.Path) or isinstance(parameter, click.Argument):
            continue
        value = ctx.params[name]
        if name in off and value == off[name]:
            continue
        settings[name.replace("_", "-")] = list(value) if isinstance(value, tuple) else value
    return settings


def refuse_given(ctx: click.Context, names: Collection[str], why: str) -> None:
    """Refuse options and arguments that are given, by a flag or in ``--params``, without a use.

    Args:
        ctx: of the stage.
        names: of its parameters.
        why: ends the sentence "--scales has no meaning ...".

    Raises:
        SettingError: names the first one.
    """
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in names and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            opposite = parameter.secondary_opts if ctx.params.get(name) is False else []
            flags = [*opposite, *parameter.opts]
            flag = flags[0] if isinstance(parameter, click.Option) else name.upper()
            raise SettingError(f"{flag} has no meaning {why}; leave it out")


class CommaList(click.ParamType[tuple[str, ...]]):
    """Several values in one word, separated by commas; in YAML a list works as well."""

    name = "a,b,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """A tuple of words without blanks around them."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            parts = [parts]
        words = tuple(str(part).strip() for part in parts)
        if not all(words):
            self.fail(f"{value!r} has an empty item", param, ctx)
        return words


class NumberList(CommaList):
    """Several whole numbers above 0 in one word, separated by commas."""

    name = "n,m,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of numbers."""
        words = super().convert(value, param, ctx)
        if not all(word.isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is no list of whole numbers above 0", param, ctx)
        return tuple(map(int, words))


data_argument = click.argument("data", type=click.Path(path_type=Path))
split_option = click.option(
    "--split", metavar="NAME", help="Which part of the data set, e.g. train."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of every random choice."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    help="Arithmetic of the network; bf16 and fp16 are mixed precision.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=lambda: cores(),
    show_default="one a core",
    help="Processes or threads.",
)
scales_option = click.option(
    "--scales",
    type=NumberList(),
    help="Shorter sides of the image, for a network with a pyramid; by default the model's.",
    show_default=False,
)
# Changes the last bits at most, so that one at a time is not recorded.
ONE_IMAGE = {"images": 1}
images_option = click.option(
    "--images",
    type=click.IntRange(min=1),
    default=ONE_IMAGE["images"],
    help="Of the next so many images, a detector looks at those of one size at once.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the figures as JSON on stdout."
)


curves_option = click.option(
    "--curves",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=lambda ctx, param, value: _writable(value),
    help="CSV of the curves.",
)


def out_option(help: str, *, artifact: bool = True) -> Callable[[Decorated], Decorated]:
    """``--out FILE``, whose folder is made and must be writable before any work starts.

    Args:
        help: says what it is.
        artifact: whether it is HDF5; then no other file, a photograph say, is ever replaced.
    """
    return click.option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        callback=lambda ctx, param, value: _replaceable(_writable(value), artifact),
        help=help,
    )


def _writable(path: Path | None) -> Path | None:
    if path is None:
        return None
    if not path.name:
        raise click.BadParameter("an empty name is no file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise click.ClickException(f"cannot write {path}: no right to write in {path.parent}")
    return path


def _replaceable(path: Path | None, artifact: bool) -> Path | None:
    if artifact and path is not None and path.is_file():
        if path.stat().st_size and not is_hdf5(path):
            told = "exists and is no artifact of rcnnpipe, so it is not replaced"
            raise click.ClickException(f"{path} {told}; name another file")
    return path


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
