"""`lorafa-prof calibrate`: the speed of the device at hand, measured, for predictions of step times."""

from __future__ import annotations

import click

from lorafa_prof.cli.emit import check_output, render_json, write_stdout
from lorafa_prof.cli.progress import Stages
from lorafa_prof.errors import MissingComponentError

_EXTRA = ("torch", "transformers", "peft")


@click.command()
@click.option("--device", default="cuda", show_default=True, metavar="D", help="cuda, cuda:1, ... or cpu.")
@click.option(
    "--budget-s",
    type=click.FloatRange(1, 3600),
    default=90,
    show_default=True,
    metavar="S",
    help="Seconds that measuring may take; the more, the more shapes and repetitions.",
)
@click.option(
    "-o", "--output", metavar="FILE", callback=check_output,
    help="Write the profile to FILE instead of stdout, whole or not at all.",
)  # fmt: skip
def command(device: str, budget_s: float, output: str | None) -> None:
    """Measure how fast this device is: matrix products, memory, attention, launches, the host.

    The profile is what predictions of step times rest on: `predict --profile FILE`. Nothing else should run on the
    device meanwhile.

    \b
    Examples:
      lorafa-prof calibrate -o my-gpu.json
      lorafa-prof calibrate --device cpu --budget-s 30 -o my-cpu.json
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    try:
        from lorafa_prof.calibrate.measuring import calibrate
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise MissingComponentError(f"calibrate needs {error.name}: pip install 'lorafa-prof[torch]'") from None
    stages = Stages()
    profile = calibrate(device, budget_s, stages.tell)
    text = render_json(profile.to_json())
    if output:
        from lorafa_prof.reports.output import write_atomically

        write_atomically(output, text)
        stages.say(f"{profile.full_name}: profile written to {output}")
    else:
        write_stdout(text)
