"""`lorafa-prof planner`: one HTML page in which the analytic engine's answers move with its controls."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from lorafa_prof.cli.emit import check_output, write_stdout
from lorafa_prof.cli.options import cards_option, methods_option
from lorafa_prof.cli.program import say
from lorafa_prof.runs import asked_methods, name_list

if TYPE_CHECKING:
    from lorafa_prof.analytic.export import Answer, Task

DEFAULT_MODELS = ("llama3.1-8b", "llama3.2-1b", "llama2-7b", "qwen3-8b", "qwen2.5-7b", "mistral-7b-v0.3")
#: The card that the page opens with, where it is among those asked for.
FIRST_CARD = "rtx4090"


@click.command()
@click.option(
    "--model", "models", multiple=True, metavar="M",
    help=f"Model of the page (alias, hub id or path); may be repeated.  [default: {', '.join(DEFAULT_MODELS)}]",
)  # fmt: skip
@methods_option("Method of the page")
@cards_option("Card of the page", ".  [default: all that are known]")
@click.option(
    "-o", "--output", default="planner.html", show_default=True, metavar="FILE", callback=check_output,
    help="Write the page to FILE, whole or not at all; - is stdout.",
)  # fmt: skip
def command(models: tuple[str, ...], methods: tuple[str, ...], gpus_asked: tuple[str, ...], output: str | None) -> None:
    """Write a self-contained page that plans memory: model, method, card and options are its controls.

    The page needs no network and no installation, and its numbers are those of `predict --engine analytic`.

    \b
    Examples:
      lorafa-prof planner
      lorafa-prof planner --model qwen3-8b --gpu rtx4090,h100 -o team.html
      lorafa-prof planner --model ./my-model --method lora,lora-fa,full
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.analytic.export import export
    from lorafa_prof.catalog import load_device, load_model
    from lorafa_prof.catalog.devices import device_names
    from lorafa_prof.reports.planner import planner_page

    chosen = asked_methods(methods)
    # Two names of one model or card (an alias, a hub id) are one.
    specs = list({spec.name: spec for spec in map(load_model, name_list(models, "--model") or DEFAULT_MODELS)}.values())
    cards = list({card.name: card for card in map(load_device, name_list(gpus_asked) or device_names())}.values())
    if not gpus_asked:
        cards.sort(key=lambda card: (card.total_bytes, card.name))
    plans = export(specs, chosen, cards, mapped=in_processes)
    page = planner_page(plans, opening(plans))
    if output is None:
        write_stdout(page)
        return
    from lorafa_prof.reports.output import write_atomically

    write_atomically(output, page)
    say(f"{output}: {len(page.encode()) / 1e6:.1f} MB")


def opening(plans: dict[str, Any]) -> dict[str, Any]:
    """Return the run that the page opens with: the command line's defaults, with the first names of the page."""
    model = plans["models"][0]
    methods = list(model["methods"])
    cards = [device["name"] for device in plans["devices"]]
    return {
        "model": model["name"],
        "method": "lora-fa" if "lora-fa" in methods else methods[0],
        "gpu": FIRST_CARD if FIRST_CARD in cards else cards[0],
        "bs": 1, "seq": min(1024, model["max_positions"] or 1024), "rank": 64,
        **{name: values[0] for name, values in plans["options"]},
    }  # fmt: skip


def in_processes(function: Callable[[Task], list[Answer]], tasks: list[Task]) -> Iterator[list[Answer]]:
    """Apply the function to the tasks with all processors, and say on stderr how far it is."""
    with contextlib.ExitStack() as stack:
        mapped: Callable[..., Iterator[list[Answer]]] = map
        workers = min(len(tasks), os.cpu_count() or 1)
        if workers > 1:
            # Not fork: this process may have threads by now (a caller's, a library's).
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            mapped = stack.enter_context(pool).map
        for number, ((model, method, _), answers) in enumerate(zip(tasks, mapped(function, tasks), strict=True), 1):
            say(f"{number}/{len(tasks)} {model.name}, {method}")
            yield answers
