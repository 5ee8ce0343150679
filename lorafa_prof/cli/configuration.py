"""`--config FILE`: what other tools' configuration files say counts where the command line says nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lorafa_prof.cli.program import say
from lorafa_prof.errors import UnsupportedError

if TYPE_CHECKING:
    from lorafa_prof.configs import Reading
    from lorafa_prof.configs.applied import Applied

#: Where a context keeps what the files say.
_KEY = "lorafa_prof.configuration"
#: Parameters that are not called as their option is.
_PARAMETERS = {"method": ("methods",), "model": ("model", "models")}


def _read(ctx: click.Context, param: click.Parameter, paths: tuple[str, ...]) -> None:
    """Make what the files say the defaults of the other options; a click callback that runs before theirs."""
    if not paths or ctx.resilient_parsing:
        return
    from lorafa_prof.configs import read_configs

    reading = read_configs(paths)
    ctx.meta[_KEY] = reading
    known = {parameter.name: parameter for parameter in ctx.command.params if isinstance(parameter, click.Option)}
    defaults = dict[str, Any](ctx.default_map or {})
    for option, value in reading.options.items():
        for name in _PARAMETERS.get(option, (option,)):
            if name in known:
                defaults[name] = _default(known[name], value)
    ctx.default_map = defaults


def _default(option: click.Option, value: object) -> object:
    """Return a value as the option would be given it: several options take a list of texts, or a text."""
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if option.multiple:
        return (text,)
    return text if option.type is click.STRING else value


config_option: Callable[[Any], Any] = click.option(
    "--config", multiple=True, metavar="FILE", is_eager=True, expose_value=False, callback=_read,
    help="Take options from a file of axolotl, LLaMA-Factory, torchtune, TRL, PEFT, accelerate or DeepSpeed; may be "
    "repeated. Other options here override it.",
)  # fmt: skip


def require_model(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse to go on without a model, whether it is named here or in a configuration file; a click callback.

    Raises:
        click.MissingParameter: there is none.
        UnsupportedError: the file names one that cannot be taken from it.
    """
    if value or ctx.resilient_parsing:
        return value
    reading: Reading | None = ctx.meta.get(_KEY)
    if reading is not None and "model" in reading.refused:
        raise UnsupportedError(reading.refused["model"])
    raise click.MissingParameter(ctx=ctx, param=param, message="" if reading is None else "The files name no model.")


def configuration() -> Applied:
    """Return what the files of --config add to the results of the command that runs, and say it on stderr.

    Raises:
        UnsupportedError: a file has for an option what no engine models, and the command line does not override it.
    """
    from lorafa_prof.configs.applied import applied
    from lorafa_prof.configs.reading import OPTIONS

    ctx = click.get_current_context()
    files = applied(ctx.meta.get(_KEY), [option for option in OPTIONS if _is_given(ctx, option)])
    for line in (*files.lines, *(f"not modelled: {line}" for line in files.unmodelled)):
        say(line)
    return files


def _is_given(ctx: click.Context, option: str) -> bool:
    """Say whether the command line gives an option, or for a grid denies it."""
    if f"--{option}" in ctx.meta:
        return True
    names = _PARAMETERS.get(option, (option,))
    return any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in names)
