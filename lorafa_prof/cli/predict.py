"""`lorafa-prof predict`: memory and arithmetic of one training step, method beside method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorafa_prof.cli.emit import check_output, emit, output_options
from lorafa_prof.cli.methods import for_each_method
from lorafa_prof.cli.options import (
    allocator_conf,
    allocator_options,
    cards_option,
    methods_option,
    name_list,
    run_options,
    run_spec,
)
from lorafa_prof.errors import BadInputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lorafa_prof.reports.table import Table
    from lorafa_prof.results import Prediction
    from lorafa_prof.specs import DeviceSpec, RunSpec
    from lorafa_prof.speed.profile import DeviceProfile

ENGINES = ("analytic", "simulate")


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
    help="Profile that calibrate wrote, for step times on its device (engine simulate).  [default: that of the card]",
)
@click.option("--explain", is_flag=True, help="Show every tensor that is alive at the peak.")
@click.option("--check", is_flag=True, help="Exit with 1 when a run does not fit on a card that was named.")
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
    """Predict the memory of one training step, part by part, whether it fits, and how long it takes.

    Step times are by --engine simulate, for each --gpu.

    \b
    Examples:
      lorafa-prof predict --model llama2-7b --bs 8 --seq 1024
      lorafa-prof predict --model qwen3-8b --bs 4 --gpu rtx4090 --gpu a100-80gb
      lorafa-prof predict --model ./my-model --method lora-fa --explain
      lorafa-prof predict --model llama3-8b --format json -o run.json
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    if engine == "analytic" and (snapshot or alloc_conf or expandable_segments or profile):
        raise BadInputError("--snapshot, --alloc-conf, --expandable-segments and --profile go with --engine simulate")
    if snapshot == "-" and output is None:
        raise BadInputError("--snapshot - takes stdout: send the prediction to a file with -o FILE")
    if check and not gpus_asked:
        raise BadInputError("--check needs a card to check against: name one with --gpu")
    from lorafa_prof import catalog
    from lorafa_prof.cli.engines import model_for, simulating

    model = model_for(engine, options.pop("model"), trust=options.pop("trust_remote_code"))
    devices = [catalog.load_device(name) for name in name_list(gpus_asked)]
    measured = None if profile is None else _profile(profile, devices)

    def run_of(name: str) -> RunSpec:
        return run_spec(model, name, **options)

    if engine == "analytic":
        from lorafa_prof.analytic import predict

        predictions = for_each_method(name_list(methods), lambda name: predict(run_of(name), devices))
    else:
        if snapshot and len(name_list(methods)) != 1:
            raise BadInputError("--snapshot is of one method: name it with --method")
        conf = allocator_conf(alloc_conf, expandable_segments)
        if measured is not None and measured.kind == "cpu":
            predict_one = _on_cpu(measured, conf or snapshot)
        else:
            predict_one = simulating(devices, conf, snapshot, measured)
        predictions = for_each_method(name_list(methods), lambda name: predict_one(run_of(name)))
    _emit(predictions, explain, format, output)
    if check and not all(fit.fits for p in predictions for fit in p.fit):
        ctx.exit(1)


def _profile(path: str, devices: list[DeviceSpec]) -> DeviceProfile:
    """Return the profile in a file; the card that it is of joins the devices where none was named.

    Raises:
        BadInputError: a profile of none of the devices, or of a card that the catalog does not know.
    """
    from lorafa_prof.catalog import load_device
    from lorafa_prof.speed.profile_file import read_profile

    found = read_profile(path)
    if found.kind == "cpu":
        if devices:
            raise BadInputError(f"{path}: a profile of a CPU ({found.full_name}), which goes without --gpu")
    elif not devices:
        try:
            devices.append(load_device(found.name))
        except UnknownNameError as error:
            raise BadInputError(f"{path}: {error}; describe it in a JSON file of that name, for --gpu") from error
    elif found.name not in [device.name for device in devices]:
        named = ", ".join(device.name for device in devices)
        raise BadInputError(f"{path}: a profile of {found.name}, which --gpu does not name ({named})")
    return found


def _on_cpu(profile: DeviceProfile, cards_alone: str | None) -> Callable[[RunSpec], Prediction]:
    """Return a function that predicts a run on the CPU that was measured."""
    if cards_alone:
        raise BadInputError("--snapshot and allocator settings are a card's; the profile is of a CPU")
    from lorafa_prof.cli.engines import simulate_on_cpu

    threads = profile.environment.get("threads")
    return lambda run: simulate_on_cpu(run, threads if isinstance(threads, int) else 1, profile)


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
