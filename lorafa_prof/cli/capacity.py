"""`lorafa-prof capacity`: the fastest batch that fits, an epoch's time and cost, and what more cards bring."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lorafa_prof.cli.configuration import configuration
from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.cli.methods import for_each_method
from lorafa_prof.cli.options import cards_option, link_option, methods_option, profile_option, run_options
from lorafa_prof.errors import BadInputError
from lorafa_prof.runs import name_list, run_spec

if TYPE_CHECKING:
    from lorafa_prof.capacity import Cards
    from lorafa_prof.results.capacity import Capacity
    from lorafa_prof.specs import RunSpec

_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_TOKENS = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmbt]?)\s*", re.IGNORECASE)
#: No fleet and no epoch beyond these is asked about.
MOST_CARDS, MOST_TOKENS, MOST_PRICE = 1024, 10**16, 1e6


@click.command()
@run_options
@methods_option()
@cards_option("Card")
@click.option(
    "--cards", "numbers", default="1", show_default=True, metavar="N[,N...]",
    help="Numbers of cards to plan for; several share a step as --shard says (ddp where it says nothing).",
)  # fmt: skip
@click.option("--tokens", metavar="N", help="Tokens of an epoch (500M, 1.5B): its time is told.")
@click.option("--price", metavar="P", help="Price of a card and hour, in any currency: the epoch's cost is told.")
@link_option
@profile_option("step times on its card")
@output_options
def command(
    methods: tuple[str, ...],
    gpus_asked: tuple[str, ...],
    numbers: str,
    tokens: str | None,
    price: str | None,
    link: str | None,
    profile: str | None,
    format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Find the batch that trains fastest within a card's memory, an epoch's time and cost, and what more cards bring.

    \b
    Examples:
      lorafa-prof capacity --model llama2-7b --gpu a100-80gb --method lora,lora-fa
      lorafa-prof capacity --model llama3-8b --gpu h100 --tokens 1B --price 2.50
      lorafa-prof capacity --model mistral-7b --gpu a100-80gb --method full --cards 2,4,8 --shard fsdp
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    files = configuration()
    from lorafa_prof.capacity import Epoch, Planner
    from lorafa_prof.engines import model_for

    counts, shard = _counts(numbers), options.pop("shard")
    if options.pop("gpus") > 1:
        raise BadInputError("how many cards? capacity takes them from --cards, several at once: --cards 1,2,4,8")
    if price is not None and tokens is None:
        raise BadInputError("--price is of an epoch: say how many tokens it has with --tokens 1B")
    epoch = Epoch(
        tokens=None if tokens is None else read_tokens(tokens),
        price_per_hour=None if price is None else _positive("--price", price, MOST_PRICE),
    )
    model = model_for("analytic", options.pop("model"), trust=options.pop("trust_remote_code"))
    planner, kinds = Planner(), _cards(gpus_asked, link, profile)
    shared = "ddp" if shard == "none" else shard

    def of_method(name: str) -> list[list[Capacity]]:
        run: RunSpec = run_spec(model, name, gpus=1, shard="none", **options)
        return [planner.plans(run, cards, counts, shared, epoch) for cards in kinds]

    answers = for_each_method(name_list(methods), of_method)
    found = [each for same_card in zip(*answers, strict=True) for plans in same_card for each in plans]
    _emit(files.on(found), format, output)


def read_tokens(text: str) -> int:
    """Read a number of tokens: "500M", "1.5B" or "1000000".

    Raises:
        BadInputError: no such number.
    """
    match = _TOKENS.fullmatch(text)
    number = round(float(match[1]) * _SCALES[match[2].lower()]) if match else 0
    if not 0 < number <= MOST_TOKENS:
        raise BadInputError(f"--tokens {text[:40]!r} is no number of tokens: write for example 500M, 1.5B or 1000000")
    return number


def _positive(option: str, text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= most:
        raise BadInputError(f"{option} {text[:40]!r} must be a number above 0 and of at most {most:,.0f}")
    return number


def _counts(text: str) -> list[int]:
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = []
    if not found or not all(1 <= number <= MOST_CARDS for number in found):
        raise BadInputError(f"--cards {text[:40]!r}: numbers from 1 to {MOST_CARDS:,}, as in 1,2,4,8")
    return found


def _cards(asked: Sequence[str], link: str | None, profile: str | None) -> list[Cards]:
    from lorafa_prof.capacity import Cards
    from lorafa_prof.catalog import load_device
    from lorafa_prof.engines import card_profile_in
    from lorafa_prof.speed.defaults import default_profile
    from lorafa_prof.speed.links import LINKS, read_link

    devices = [load_device(name) for name in name_list(asked)]
    measured = None if profile is None else card_profile_in(profile, devices)
    if not devices:
        raise BadInputError("on which card? Name one with --gpu (rtx4090, a100-80gb, ...: lorafa-prof list gpus)")
    named = None if link is None else read_link(link)
    return [
        Cards(
            device=device, profile=measured if measured and measured.name == device.name else default_profile(device),
            link=named or LINKS.get(device.name),
        )
        for device in devices
    ]  # fmt: skip


def _emit(found: list[Capacity], format: str | None, output: str | None) -> None:
    from lorafa_prof.reports import capacity as tables
    from lorafa_prof.results.capacity import capacities_to_json

    emit(
        tables=lambda: [tables.capacity_table(found)],
        records=lambda: tables.records_table(found),
        document=lambda: capacities_to_json(found),
        format=format,
        output=output,
    )
