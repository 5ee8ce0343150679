"""The methods that a command answers for: those that were named, or the default ones as far as they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from lorafa_prof.cli.options import DEFAULT_METHODS, name_list
from lorafa_prof.errors import ContradictionError, MissingComponentError, UnsupportedError
from lorafa_prof.specs import METHODS, require_choice

#: What leaves one of the default methods out: the engine does not model it, its library is not installed, or other
#: options exclude it.
REFUSALS = (UnsupportedError, MissingComponentError, ContradictionError)
_Refusal = UnsupportedError | MissingComponentError | ContradictionError

Answer = TypeVar("Answer")


def asked_methods(values: Sequence[str]) -> list[str]:
    """Return the methods that --method names, each once; the default ones where it names none.

    Raises:
        BadInputError: an empty name, or one that is no method's.
    """
    names = name_list(values, "--method") or list(DEFAULT_METHODS)
    for name in names:
        require_choice("method", name, METHODS)
    return names


def for_each_method(asked: Sequence[str], answer: Callable[[str], Answer]) -> list[Answer]:
    """Return the answer for each method that was asked for; for the default methods what can be had of them.

    Raises:
        LorafaProfError: what a method that was named is refused for, or all default ones are.
    """
    return [answer(name) for name in asked] if asked else _all_that_can(answer)


def _all_that_can(answer: Callable[[str], Answer]) -> list[Answer]:
    """Return the default methods' answers; those that cannot be had are left out, and said to be.

    Where none can be had that is the error; one that excludes a single method would be no help.
    """

    def attempt(name: str) -> Answer | _Refusal:
        try:
            return answer(name)
        except REFUSALS as error:
            return error

    answers = {name: attempt(name) for name in DEFAULT_METHODS}
    refusals = {name: each for name, each in answers.items() if isinstance(each, REFUSALS)}
    if len(refusals) == len(answers):
        raise min(refusals.values(), key=lambda refusal: isinstance(refusal, ContradictionError))
    for name, refusal in refusals.items():
        click.echo(f"lorafa-prof: {name} is left out: {refusal}", err=True)
    return [each for each in answers.values() if not isinstance(each, REFUSALS)]
