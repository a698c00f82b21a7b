"""Options that every command has: ``--config FILE`` and ``--quiet``."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from vistok.cli.complete import completer_of
from vistok.progress import busy

_quiet = False


def say(text: object) -> None:
    """Prints what a command did, unless it was asked to be quiet; results are printed as they always are."""
    if not _quiet:
        print(text)


@contextmanager
def hushed():
    """Prints no remarks and no progress while it is open."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        with open(os.devnull, "w") as nothing, redirect_stderr(nothing):
            yield
    finally:
        _quiet = before


def read_config(context: typer.Context, file: Path | None) -> None:
    """Takes options from a YAML file; those of the command line count more.

    Raises:
        VistokError: the file cannot be read, or names what is no option of the command.
    """
    if file is None:
        return
    import yaml

    from vistok.errors import VistokError, unknown_name

    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise VistokError(f"cannot read the options in '{file}': {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VistokError(f"'{file}' is not YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(entries, dict):
        raise VistokError(f"'{file}' holds no options: write one a line, such as seed: 3.")
    known = {}
    for parameter in context.command.params:
        for name in (parameter.name, *(each.lstrip("-") for each in parameter.opts)):
            known[name.replace("-", "_")] = parameter
    found: dict[str, Any] = {}
    for name, value in entries.items():
        parameter = known.get(str(name).replace("-", "_"))
        if parameter is None or parameter.name in ("config", "help"):
            raise unknown_name(f"option in '{file}'", str(name), sorted(set(known) - {"config", "help"}))
        many = parameter.multiple if hasattr(parameter, "multiple") else False
        many = many or parameter.nargs != 1
        if isinstance(value, dict) or (isinstance(value, list) and not many):
            raise VistokError(f"'{name}' in '{file}' takes one value, got {value!r}.")
        if value is not None:
            found[parameter.name] = value if not many or isinstance(value, list) else [value]
    context.default_map = {**(context.default_map or {}), **found}


def refuse_given(context: typer.Context, why: str, *names: str) -> None:
    """Refuses options that were given though nothing would read them.

    Args:
        context: of the command.
        why: what they are for, and why there is none of it here.
        names: of parameters.

    Raises:
        VistokError: the command line, or the file of ``--config``, has one of them.
    """
    from vistok.errors import VistokError

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name) if parameter.name in names else None
        if source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP"):
            raise VistokError(f"{max(parameter.opts, key=len)} {why}: leave it out.")


def check_drawing(temperature: float, top_p: float) -> None:
    """Refuses how text is drawn where it is out of range, or cuts a law that nothing is drawn from.

    Raises:
        VistokError: it does.
    """
    from vistok.errors import VistokError
    from vistok.samplers.params import SamplingParams

    SamplingParams(temperature=temperature, top_p=top_p)
    if temperature == 0 and top_p != 1:
        raise VistokError("--top-p cuts what is drawn from, and --temperature 0 draws nothing: give a --temperature.")


def check_text(name: str, value: Any) -> None:
    """Refuses words that are no text: bytes that are not UTF-8 come as lone surrogates, which no tokenizer reads and
    no file of JSON holds. Names of files may hold them.

    Args:
        name: of the option, as Python calls it.
        value: of it, one or several.

    Raises:
        VistokError: one is no text.
    """
    from vistok.errors import VistokError

    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, str) and not _is_text(word) and not os.path.lexists(word):
            raise VistokError(f"the {name.replace('_', ' ')} is no text in UTF-8: convert it first, as iconv does.")


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=read_config,
        help="YAML file of options, one a line, such as seed: 3; the command line counts more.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results and errors only, no remarks and no progress.")]


def shared(function: Callable[..., None], name: str) -> Callable[..., None]:
    """Returns a command with the options that every command has, under its ``name``.

    It says when it is busy, refuses a ``--seed`` of more than 64 bits and words that are no text, and the shell
    completes the names that its options take.
    """

    @functools.wraps(function)
    def command(*args: Any, quiet: bool = False, config: Path | None = None, **options: Any) -> None:
        with hushed() if quiet else busy(name):  # ``config`` was read before all other options
            if options.get("seed"):
                from vistok.ops.noise import check_seed

                check_seed(options["seed"])
            for option, value in options.items():
                check_text(option, value)
            return function(*args, **options)

    own = inspect.signature(function, eval_str=True)
    for parameter in own.parameters.values():
        for told in get_args(parameter.annotation)[1:]:
            if (completer := completer_of(name, parameter.name)) is not None:
                told.autocompletion = completer
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter("config", keyword, default=None, annotation=Config),
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
    ]
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])
    command.__annotations__ = {**function.__annotations__, "config": Config, "quiet": Quiet}
    return command


def add_commands(app: typer.Typer, commands: dict[str, Callable[..., None]], **settings: Any) -> None:
    """Adds commands by name, each with the options that every command has."""
    for name, function in commands.items():
        app.command(name, **settings)(shared(function, name))
