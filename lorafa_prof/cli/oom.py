"""`lorafa-prof oom`: the largest batch, sequence or rank that fits a card, and what would make the next one fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from lorafa_prof.cli.configuration import configuration
from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.cli.lengths import lengths_options, pop_lengths
from lorafa_prof.cli.options import (
    allocator_conf,
    allocator_options,
    cards_option,
    limit_options,
    link_option,
    methods_option,
    profile_option,
    run_options,
)
from lorafa_prof.cli.program import say
from lorafa_prof.cli.progress import Progress, describe
from lorafa_prof.engines import model_for, simulations
from lorafa_prof.errors import BadInputError
from lorafa_prof.results import Axis
from lorafa_prof.runs import name_list, run_spec
from lorafa_prof.thresholds_asked import Question, cards, length_to_begin_with, profiled_cards, timer_by
from lorafa_prof.units import parse_bytes

if TYPE_CHECKING:
    from lorafa_prof.analytic.thresholds import ClosedForms
    from lorafa_prof.lengths import Lengths
    from lorafa_prof.results import Threshold
    from lorafa_prof.specs import DeviceSpec
    from lorafa_prof.speed.profile import DeviceProfile

ENGINES = ("analytic", "simulate", "measure")


@click.command()
@run_options
@methods_option()
@click.option(
    "--axis", type=click.Choice(get_args(Axis)), default="bs", show_default=True,
    help="What is raised until it does not fit: batch, sequence length or rank.",
)  # fmt: skip
@click.option("--engine", type=click.Choice(ENGINES), default="analytic", show_default=True, help="Who judges.")
@cards_option("Card", "; all: every card of the catalog.")
@profile_option("step times on its card")
@link_option
@click.option(
    "--advice/--no-advice", default=None,
    help="Say what would make the next one fit, and its cost.  [default: yes; not for measure, where each is a run]",
)  # fmt: skip
@lengths_options
@allocator_options
@click.option("--device", metavar="D", help="Where to measure: cuda, cuda:1, ... or cpu.  [default: cuda]")
@limit_options("a trial (engine measure)")
@click.option("--restart", is_flag=True, help="Measure again what an earlier search into FILE has tried.")
@output_options
def command(
    methods: tuple[str, ...],
    axis: Axis,
    engine: str,
    gpus_asked: tuple[str, ...],
    profile: str | None,
    link: str | None,
    advice: bool | None,
    cap: str | None,
    expandable_segments: bool,
    alloc_conf: str | None,
    device: str | None,
    timeout_s: float | None,
    restart: bool,
    format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Find the largest batch, sequence or rank that fits a card, and what would make the next one fit.

    \b
    Examples:
      lorafa-prof oom --model llama2-7b --seq 1024 --gpu rtx4090
      lorafa-prof oom --model llama2-7b --axis seq --gpu rtx4090 --gpu a100-40gb --method lora,lora-fa
      lorafa-prof oom --model llama3-8b --gpu a100-80gb --seq 4096 --lengths lengths.csv --batching grouped
      lorafa-prof oom --model qwen3-8b --cap 24GiB --axis rank --method qlora --format json
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    _refuse_processes()
    if engine != "simulate" and (alloc_conf or expandable_segments):
        raise BadInputError("--alloc-conf and --expandable-segments go with --engine simulate")
    if engine != "measure" and (device is not None or timeout_s is not None or restart):
        raise BadInputError("--device, --timeout and --restart go with --engine measure")
    lengths = pop_lengths(options)
    if lengths is not None and (engine == "measure" or advice):
        raise BadInputError("--lengths goes with --engine analytic and simulate, and not with --advice")
    files = configuration()
    for option, given in (("--profile", profile), ("--link", link)):
        if given is not None and (engine == "measure" or lengths is not None):
            raise BadInputError(
                f"{option} is for predicted step times, which --engine measure and --lengths do without"
            )
    names, cap_bytes = name_list(gpus_asked), None if cap is None else parse_bytes(cap)
    devices, measured = _cards(engine, names, cap_bytes, profile)
    wants_advice = engine != "measure" and lengths is None if advice is None else advice
    model = model_for(engine, options.pop("model"), trust=options.pop("trust_remote_code"))
    options["seq"] = length_to_begin_with(axis, options["seq"], model)
    question = Question(
        forms=_closed_forms(lengths), axis=axis, methods=name_list(methods), advice=wants_advice,
        timer=None if lengths is not None else timer_by(measured, link),
        run_of=lambda method: run_spec(model, method, **options), tell=say,
    )  # fmt: skip
    if engine == "analytic":
        found = question.ask(question.forms, devices)
    elif engine == "simulate":
        of_cuda = _of_nvidia(devices) if "all" in names else devices
        found = _simulated(question, of_cuda, allocator_conf(alloc_conf, expandable_segments), lengths)
    else:
        found = _measured(question, names, cap_bytes, device or "cuda", timeout_s, restart, output)
    _emit(files.on(found), format, output)


def _cards(
    engine: str, names: list[str], cap: int | None, profile: str | None
) -> tuple[list[DeviceSpec], DeviceProfile | None]:
    """Return the cards that are named, and whose profile there is; which are measured on is known where they are."""
    return ([], None) if engine == "measure" else profiled_cards(profile, names, cap)


def _refuse_processes() -> None:
    """Refuse to search in several processes: each would search for itself, on a device that all share.

    Raises:
        BadInputError: torchrun, or another launcher, has started this process beside others.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes.isdecimal() and int(processes) > 1:
        raise BadInputError(
            f"oom searches in one process, and WORLD_SIZE says that {processes} were started: start it without "
            "torchrun, which goes with lorafa-prof measure"
        )


def _closed_forms(lengths: Lengths | None) -> ClosedForms:
    from lorafa_prof.analytic.thresholds import ClosedForms

    if lengths is None:
        return ClosedForms()
    from lorafa_prof.analytic.lengths import EpochForms

    return EpochForms(lengths)


def _simulated(
    question: Question, devices: Sequence[DeviceSpec], conf: str | None, lengths: Lengths | None
) -> list[Threshold]:
    progress = Progress(None, "simulating")
    judge = simulations(
        conf, question.forms.guess, lambda run, device: progress.begin(f"{describe(run)} on {device.name}"), lengths
    )
    try:
        return question.ask(judge, devices)
    finally:
        progress.clear()


def _measured(
    question: Question,
    names: Sequence[str],
    cap: int | None,
    device: str,
    timeout_s: float | None,
    restart: bool,
    output: str | None,
) -> list[Threshold]:
    """Search on the device that is there; with -o the trials are kept beside the result."""
    from lorafa_prof.cli.measurement_file import MeasurementFile
    from lorafa_prof.cli.oom_measure import Trials, devices_at
    from lorafa_prof.measure.isolate import find_place
    from lorafa_prof.measure.stop import Stop

    progress = Progress(None)
    kept = None if output is None or _is_special(output) else Path(output).with_suffix(".trials.json")
    file = None if kept is None else MeasurementFile(str(kept), progress.say)
    with Stop() as stop:
        place = find_place({"device": device, "cap_bytes": None}, stop)
        if place is None:
            raise KeyboardInterrupt
        devices = devices_at(place, cards(names, cap) if names else [], cap)
        trials = Trials(
            device=device, place=place, stop=stop, guess=question.forms.guess, timeout_s=timeout_s, file=file,
            restart=restart, progress=progress,
        )  # fmt: skip
        return question.ask(trials, devices)


def _is_special(output: str) -> bool:
    return output == "-" or (Path(output).exists() and not Path(output).is_file())


def _of_nvidia(devices: Sequence[DeviceSpec]) -> list[DeviceSpec]:
    """Return the cards that the simulation knows; of all of the catalog the others are left out, and said to be."""
    others = [device.name for device in devices if device.vendor != "nvidia"]
    if others:
        say(f"{', '.join(others)} left out: the simulation knows CUDA alone")
    return [device for device in devices if device.vendor == "nvidia"]


def _emit(thresholds: list[Threshold], format: str | None, output: str | None) -> None:
    from lorafa_prof.reports import oom as tables
    from lorafa_prof.results import thresholds_to_json

    emit(
        tables=lambda: tables.all_tables(thresholds),
        records=lambda: tables.records_table(thresholds),
        document=lambda: thresholds_to_json(thresholds),
        format=format,
        output=output,
    )
