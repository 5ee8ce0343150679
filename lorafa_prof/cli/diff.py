"""`lorafa-prof diff`: the same run in two environments, and the operations that allocate other bytes in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lorafa_prof.cli.configuration import configuration
from lorafa_prof.cli.emit import check_output, emit, output_options, render_json, write_stdout
from lorafa_prof.cli.options import (
    allocator_conf,
    allocator_options,
    methods_option,
    optional_run_options,
    run_parameters,
)
from lorafa_prof.cli.program import say
from lorafa_prof.errors import BadInputError
from lorafa_prof.runs import name_list, run_spec

if TYPE_CHECKING:
    from lorafa_prof.compare import Tolerance
    from lorafa_prof.results.difference import Difference
    from lorafa_prof.results.step_record import StepRecord
    from lorafa_prof.specs import RunSpec

#: Sides that are compared.
_SIDES = 2


def _check_record(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return value if value == "-" else check_output(ctx, param, value)


@click.command()
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option(
    "--python", "pythons", multiple=True, metavar="PYTHON",
    help="Interpreter of another environment; given twice, before and after.  [default: this environment]",
)  # fmt: skip
@click.option(
    "--record", metavar="FILE", callback=_check_record,
    help="Record the run in one environment for a later diff, and compare nothing; - is stdout.",
)  # fmt: skip
@optional_run_options
@methods_option("Method", default=("lora",))
@click.option("--gpu", metavar="G", help="Card whose kernels are simulated.  [default: one before Hopper]")
@allocator_options
@click.option("--top", type=click.IntRange(1), default=15, show_default=True, help="Operations shown in a table.")
@click.option(
    "--tolerance", metavar="T",
    help="Exit with 1 when a peak changes by more: 2% of what it was before, or bytes as 0, 512B, 1MiB.",
)  # fmt: skip
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    pythons: tuple[str, ...],
    record: str | None,
    methods: tuple[str, ...],
    gpu: str | None,
    expandable_segments: bool,
    alloc_conf: str | None,
    top: int,
    tolerance: str | None,
    format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Simulate a run in two environments and say which operations allocate other bytes, at the peak and over the step.

    Each FILE is what --record wrote. With two, they are compared; with one, its run is simulated again here (or with
    --python) and compared with it; with none, the run of the options is simulated with --python and here.

    \b
    Examples:
      lorafa-prof diff --python ../transformers-4.48/bin/python --model llama3-8b --bs 4 --seq 2048
      lorafa-prof diff --record before.json --model llama3-8b --bs 4 --seq 2048
      lorafa-prof diff before.json --tolerance 0
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.compare import Tolerance

    allowed = None if tolerance is None else Tolerance.parse(tolerance)
    if len(files) + len(pythons) > _SIDES or (record is not None and (files or len(pythons) > 1)):
        raise BadInputError("two sides are compared, and one is recorded: fewer FILEs, or fewer --python")
    from lorafa_prof.saved_results import read_step_record

    records = [read_step_record(file) for file in files]
    if records:
        _refuse_options(ctx, files)
    if len(records) < _SIDES:
        conf = allocator_conf(alloc_conf, expandable_segments)
        run = records[0].run if records else _asked(methods, options)
        card = gpu or (records[0].device if records else None)
        wanted = 1 if record is not None else _SIDES - len(records)
        if not records and record is None and not pythons:
            raise BadInputError("compared with what? Name another environment with --python, or a FILE of --record")
        # Before is what is elsewhere, after is here, unless both are elsewhere.
        places = [*pythons, *[None] * _SIDES][:wanted]
        records += [_recorded(place, run, card, conf) for place in places]
    if record is not None:
        _save(records[0], record)
        return
    from lorafa_prof.diff import diff

    difference = diff(*records)
    _emit(difference, top, format, output)
    if allowed is not None and not _holds(difference, allowed):
        ctx.exit(1)


def _refuse_options(ctx: click.Context, files: tuple[str, ...]) -> None:
    """Refuse options that would say what a file says already.

    Raises:
        BadInputError: the text names them.
    """
    names = run_parameters() | ({"gpu", "alloc_conf", "expandable_segments"} if len(files) == _SIDES else frozenset())
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name in names and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given or ctx.default_map:
        raise BadInputError(f"the run is that of {files[0]}: {', '.join(given) or '--config'} says another")


def _asked(methods: tuple[str, ...], options: dict[str, Any]) -> RunSpec:
    from lorafa_prof.engines import model_for

    name, trust = options.pop("model"), options.pop("trust_remote_code")
    if name is None:
        raise BadInputError("which run? Name a model with --model, or a FILE of --record")
    names = name_list(methods)
    if len(names) != 1:
        raise BadInputError("the step of one method is compared: name it with --method")
    configuration()
    return run_spec(model_for("simulate", name, trust=trust), names[0], **options)


def _recorded(python: str | None, run: RunSpec, card: str | None, conf: str | None) -> StepRecord:
    from lorafa_prof.catalog import load_device

    device = None if card is None else load_device(card)
    if python is not None:
        from lorafa_prof.elsewhere.asking import recorded_elsewhere

        return recorded_elsewhere(python, run, card, conf)
    from lorafa_prof.engines import recorded_step

    return recorded_step(run, device, conf)


def _save(record: StepRecord, path: str) -> None:
    from lorafa_prof.reports.output import write_atomically
    from lorafa_prof.results.step_record import step_records_to_json

    text = render_json(step_records_to_json([record]))
    write_stdout(text) if path == "-" else write_atomically(path, text)


def _emit(difference: Difference, top: int, format: str | None, output: str | None) -> None:
    from lorafa_prof.reports import diff as tables

    emit(
        tables=lambda: tables.difference_tables(difference, top),
        records=lambda: tables.records_table(difference),
        document=lambda: {"differences": [difference.to_json()]},
        format=format,
        output=output,
    )


def _holds(difference: Difference, tolerance: Tolerance) -> bool:
    """Say on stderr which peak changes by more than the tolerance."""
    before, after = difference.before.memory, difference.after.memory
    holds = True
    for name, words in (("peak_allocated_bytes", "peak allocated"), ("peak_reserved_bytes", "peak reserved")):
        one, other = getattr(before, name), getattr(after, name)
        if one is not None and other is not None and not tolerance.allows(one, other):
            holds = False
            say(f"{words} {one} bytes before, {other} after: {other - one:+}")
    return holds
