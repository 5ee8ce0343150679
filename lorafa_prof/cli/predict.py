"""`lorafa-prof predict`: memory and arithmetic of one training step, method beside method."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from lorafa_prof.cli.configuration import configuration
from lorafa_prof.cli.emit import check_output, emit, output_options
from lorafa_prof.cli.lengths import lengths_options, pop_lengths
from lorafa_prof.cli.methods import for_each_method
from lorafa_prof.cli.options import (
    allocator_conf,
    allocator_options,
    cards_option,
    methods_option,
    run_options,
)
from lorafa_prof.engines import ENGINES
from lorafa_prof.errors import BadInputError
from lorafa_prof.runs import name_list, run_spec

if TYPE_CHECKING:
    from lorafa_prof.reports.table import Table
    from lorafa_prof.results import Prediction

#: A table is there at once: it counts the allocator's blocks where they could add more than this share of the peak.
SHOWN_FROM = 0.03


def _check_snapshot(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return value if value == "-" else check_output(ctx, param, value)


@click.command()
@run_options
@methods_option()
@click.option("--engine", type=click.Choice(ENGINES), default="analytic", show_default=True, help="How to predict.")
@cards_option("Card to hold it against", ".")
@click.option(
    "--profile",
    metavar="FILE",
    help="Profile that calibrate wrote, for step times on its device.  [default: published shares of the card's peaks]",
)
@click.option("--explain", is_flag=True, help="Show every tensor that is alive at the peak.")
@click.option("--check", is_flag=True, help="Exit with 1 when a run does not fit on a card that was named.")
@lengths_options
@allocator_options
@click.option(
    "--snapshot",
    metavar="FILE",
    callback=_check_snapshot,
    help="Also write a memory snapshot for PyTorch's memory_viz page (engine simulate, one method); - is stdout.",
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    methods: tuple[str, ...],
    engine: str,
    gpus_asked: tuple[str, ...],
    profile: str | None,
    explain: bool,
    check: bool,
    expandable_segments: bool,
    alloc_conf: str | None,
    snapshot: str | None,
    format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Predict the memory of one training step, part by part, whether it fits each --gpu, and how long it takes there.

    \b
    Examples:
      lorafa-prof predict --model llama2-7b --bs 8 --seq 1024
      lorafa-prof predict --model qwen3-8b --bs 4 --gpu rtx4090 --gpu a100-80gb
      lorafa-prof predict --model ./my-model --method lora-fa --explain
      lorafa-prof predict --model llama3-8b --format json -o run.json
      lorafa-prof predict --model llama3-8b --bs 8 --seq 2048 --lengths lengths.csv --batching grouped
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    if engine == "analytic" and (snapshot or alloc_conf or expandable_segments):
        raise BadInputError("--snapshot, --alloc-conf and --expandable-segments go with --engine simulate")
    if snapshot == "-" and output is None:
        raise BadInputError("--snapshot - takes stdout: send the prediction to a file with -o FILE")
    if check and not gpus_asked:
        raise BadInputError("--check needs a card to check against: name one with --gpu")
    files = configuration()
    from lorafa_prof import catalog
    from lorafa_prof.engines import model_for, predictor, profile_in

    lengths = pop_lengths(options)
    if lengths is not None and profile:
        raise BadInputError("--profile is for step times, which are not predicted with --lengths")
    names = name_list(methods)
    model = model_for(engine, options.pop("model"), trust=options.pop("trust_remote_code"))
    devices = [catalog.load_device(name) for name in name_list(gpus_asked)]
    if snapshot and len(names) != 1:
        raise BadInputError("--snapshot is of one method: name it with --method")
    conf = allocator_conf(alloc_conf, expandable_segments)
    taken = None if snapshot is None else partial(_write_snapshot, snapshot)
    measured = None if profile is None else profile_in(profile, devices)
    at_a_glance = output is None and format in (None, "table") and not explain
    blocks = SHOWN_FROM if at_a_glance else 0.0
    predict = predictor(engine, devices, conf, taken, measured, lengths, blocks)
    predictions = for_each_method(names, lambda name: predict(run_spec(model, name, **options)))
    predictions = files.on(predictions)
    _emit(predictions, explain, format, output)
    if check and not all(fit.fits for p in predictions for fit in p.fit):
        ctx.exit(1)


def _write_snapshot(path: str, data: bytes) -> None:
    from lorafa_prof.cli.emit import write_stdout_bytes
    from lorafa_prof.reports.output import write_bytes_atomically

    write_stdout_bytes(data) if path == "-" else write_bytes_atomically(path, data)


def _emit(predictions: list[Prediction], explain: bool, format: str | None, output: str | None) -> None:
    from lorafa_prof.reports import prediction as tables

    def shown() -> list[Table]:
        explained = [tables.explain_table(p) for p in predictions] if explain else []
        return [tables.comparison_table(predictions), *explained]

    emit(
        tables=shown,
        records=lambda: tables.records_table(predictions),
        document=lambda: {"predictions": [p.to_json() for p in predictions]},
        format=format,
        output=output,
    )
