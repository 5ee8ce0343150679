"""What a shell is offered behind an option: names of the catalog, and files. Imported when a shell asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem


class _Names(click.types.StringParamType):
    """Names, the last of a comma list being completed; and files, where the option takes one in a name's place.

    Args:
        known: returns the names.
        or_file: offer files too.
    """

    def __init__(self, known: Callable[[], Iterable[str]], *, or_file: bool) -> None:
        self._known, self._or_file = known, or_file

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin like what is there."""
        before, comma, begun = incomplete.rpartition(",")
        found = [CompletionItem(before + comma + name) for name in self._known() if name.startswith(begun)]
        if self._or_file and not found:
            found.append(CompletionItem(incomplete, type="file"))
        return found


def _models() -> Iterable[str]:
    from lorafa_prof.catalog import model_names

    return model_names()


def _cards() -> Iterable[str]:
    from lorafa_prof.catalog import device_names

    return device_names()


def _methods() -> Iterable[str]:
    from lorafa_prof.specs import METHODS

    return METHODS


_MODEL, _CARD = _Names(_models, or_file=True), _Names(_cards, or_file=True)
_TYPES: dict[str, click.ParamType[Any]] = {
    **dict.fromkeys(("model", "models"), _MODEL),
    **dict.fromkeys(("gpu", "gpus_asked"), _CARD),
    "methods": _Names(_methods, or_file=False),
    "device": _Names(lambda: ("cuda", "cpu"), or_file=False),
    **dict.fromkeys(
        ("config", "files", "figure", "lengths", "output", "profile", "snapshot", "target"), click.Path()
    ),
}  # fmt: skip


def know_values(command: click.Command) -> None:
    """Let a command's parameters offer what they take; for completing alone, as nothing is checked by it."""
    for parameter in command.params:
        if parameter.type is click.STRING and parameter.name in _TYPES:
            parameter.type = _TYPES[parameter.name]
