"""The options of commands that take a file of lengths, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorafa_prof.errors import BadInputError

if TYPE_CHECKING:
    from lorafa_prof.lengths import Lengths

Function = TypeVar("Function", bound=Callable[..., object])

#: Options that say how batches are made, and the parameter of each.
_HOW = {"--batching": "batching", "--batching-seed": "batching_seed", "--pad-to-multiple-of": "pad_to_multiple_of"}


def lengths_options(function: Function) -> Function:
    """Add `--lengths` and how batches are made of them; the command hands all to `pop_lengths`."""
    options = (
        click.option(
            "--lengths", metavar="FILE",
            help="Lengths of the data set's sequences, of which batches are made: an integer a line, CSV with a column "
            "length, JSON (Lines) with length or input_ids. --seq is then what they are truncated to.",
        ),
        click.option(
            "--batching", metavar="RULE",
            help="random, sorted, grouped (the Trainer's group_by_length), file, tokens:N (so many tokens a batch, "
            "padding counted) or packed (each row --seq tokens).  [default: random]",
        ),
        click.option(
            "--batching-seed", type=int, metavar="N", help="Seed of the shuffle.  [default: 42, the Trainer's]"
        ),
        click.option("--pad-to-multiple-of", type=int, metavar="N", help="As collators have it.  [default: 1]"),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def pop_lengths(options: dict[str, Any]) -> Lengths | None:
    """Take the options of `lengths_options` out of a command's, and return what they stand for; None: no file.

    Raises:
        BadInputError: a file that cannot be read, a rule that there is not, or a rule without a file; `--padded`.
    """
    path = options.pop("lengths")
    how = {flag: options.pop(name) for flag, name in _HOW.items()}
    if path is None:
        given = next((flag for flag, value in how.items() if value is not None), None)
        if given is not None:
            raise BadInputError(f"{given} says how batches are made of lengths: name a file with --lengths")
        return None
    if options["padded"]:
        raise BadInputError("--padded is of one batch: with --lengths the lengths say which batches have padding")
    from lorafa_prof.lengths import Batching, Lengths, read_lengths

    chosen = {"seed": how["--batching-seed"], "pad_to_multiple_of": how["--pad-to-multiple-of"]}
    batching = Batching.parse(
        "random" if how["--batching"] is None else how["--batching"],
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return Lengths(source=Path(path).name, lengths=read_lengths(path), batching=batching)
