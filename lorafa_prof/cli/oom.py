"""`lorafa-prof oom`: the largest batch, sequence or rank that fits a card, and what would make the next one fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import click

from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.cli.engines import simulations
from lorafa_prof.cli.methods import for_each_method
from lorafa_prof.cli.options import allocator_conf, allocator_options, name_list, run_options, run_spec
from lorafa_prof.cli.progress import Progress, describe
from lorafa_prof.errors import BadInputError
from lorafa_prof.results.threshold import Axis
from lorafa_prof.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from lorafa_prof.results import Threshold
    from lorafa_prof.specs import DeviceSpec
    from lorafa_prof.thresholds import Engine

ENGINES = ("analytic", "simulate", "measure")


@click.command()
@run_options
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="M",
    help="Method; may be repeated or a comma list.  [default: full, lora, lora-fa, qlora, vera]",
)
@click.option(
    "--axis", type=click.Choice(get_args(Axis)), default="bs", show_default=True,
    help="What is raised until it does not fit: batch, sequence length or rank.",
)  # fmt: skip
@click.option("--engine", type=click.Choice(ENGINES), default="analytic", show_default=True, help="Who judges.")
@click.option(
    "--gpu",
    "gpus_asked",
    multiple=True,
    metavar="G",
    help="Card (alias or JSON file); may be repeated or a comma list; all: every card of the catalog.",
)
@click.option(
    "--advice/--no-advice", default=True, show_default=True, help="Say what would make the next one fit, and its cost."
)
@click.option("--cap", metavar="SIZE", help="Memory of a smaller card to emulate, for example 24GiB.")
@allocator_options
@output_options
def command(
    methods: tuple[str, ...],
    axis: Axis,
    engine: str,
    gpus_asked: tuple[str, ...],
    advice: bool,
    cap: str | None,
    expandable_segments: bool,
    alloc_conf: str | None,
    format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Find the largest batch, sequence or rank that fits a card, and what would make the next one fit.

    \b
    Examples:
      lorafa-prof oom --model llama2-7b --seq 1024 --gpu rtx4090
      lorafa-prof oom --model llama2-7b --axis seq --gpu rtx4090 --gpu a100-40gb --method lora,lora-fa
      lorafa-prof oom --model qwen3-8b --cap 24GiB --axis rank --method qlora --format json
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.advice import with_advice
    from lorafa_prof.analytic.thresholds import ClosedForms
    from lorafa_prof.catalog import load_model
    from lorafa_prof.thresholds import find_threshold

    if engine != "simulate" and (alloc_conf or expandable_segments):
        raise BadInputError("--alloc-conf and --expandable-segments go with --engine simulate")
    devices = _devices(name_list(gpus_asked), None if cap is None else parse_bytes(cap))
    model = load_model(options.pop("model"))
    forms = ClosedForms()
    progress = Progress(None, "simulating")
    judge: Engine = forms
    if engine == "simulate":
        judge = simulations(
            allocator_conf(alloc_conf, expandable_segments), forms.guess,
            lambda run, device: progress.begin(f"{describe(run)} on {device.name}"),
        )  # fmt: skip

    def of_method(name: str) -> list[Threshold]:
        run = run_spec(model, name, **options)
        found = [find_threshold(judge, run, axis, device) for device in devices]
        if not advice:
            return found
        return [with_advice(judge, t, device, forms.executed_flops) for t, device in zip(found, devices, strict=True)]

    try:
        per_method = for_each_method(name_list(methods), of_method)
    finally:
        progress.clear()
    _emit([threshold for of_device in zip(*per_method, strict=True) for threshold in of_device], format, output)


def _devices(names: Sequence[str], cap: int | None) -> list[DeviceSpec]:
    """Return the cards that were named, with no more memory than the cap leaves them; or one of the cap alone.

    Raises:
        BadInputError: neither a card nor a cap; a name that is not known.
    """
    from lorafa_prof.catalog import device_names, load_device
    from lorafa_prof.specs import DeviceSpec

    if not names and cap is None:
        raise BadInputError(
            "on which card? Name one with --gpu (rtx4090, a100-80gb, ...: lorafa-prof list gpus), take --gpu all, or a "
            "size with --cap 24GiB"
        )
    if cap is not None and not names:
        return [
            DeviceSpec(
                name=f"{format_bytes(cap)} card", full_name=f"a card of {format_bytes(cap)}", vendor="nvidia",
                architecture="", compute_capability=None, total_bytes=cap, bandwidth=None, peak_flops={},
            )
        ]  # fmt: skip
    found = [load_device(name) for name in dict.fromkeys(device_names() if "all" in names else names)]
    return found if cap is None else [_capped(device, cap) for device in found]


def _capped(device: DeviceSpec, cap: int) -> DeviceSpec:
    """Return the card with so many bytes for the allocator, and the CUDA context on top, as `measure --cap` has it."""
    from lorafa_prof.compare import capacity

    room = capacity({"total_bytes": device.total_bytes, "cap_bytes": cap}, device.context_bytes)
    return replace(device, total_bytes=room or cap)


def _emit(thresholds: list[Threshold], format: str | None, output: str | None) -> None:
    from lorafa_prof.reports import oom as tables
    from lorafa_prof.results import thresholds_to_json

    emit(
        tables=lambda: [tables.threshold_table(thresholds), *tables.advice_tables(thresholds)],
        records=lambda: tables.records_table(thresholds),
        document=lambda: thresholds_to_json(thresholds),
        format=format,
        output=output,
    )
