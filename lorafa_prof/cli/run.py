"""`lorafa-prof run`: a training script of the user's own, profiled while it runs unchanged."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from lorafa_prof.cli.emit import PLAIN_WIDTH, output_options
from lorafa_prof.cli.measurement_file import emit_measurements, is_results_file
from lorafa_prof.cli.options import step_options
from lorafa_prof.cli.program import say
from lorafa_prof.cli.script_file import ScriptFile
from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.measurement import measurement_table, outcome_line
from lorafa_prof.results import Measurement, Outcome

if TYPE_CHECKING:
    from lorafa_prof.measure.script.launch import Ending
    from lorafa_prof.measure.script.observer import Observer
    from lorafa_prof.measure.script.plan import Plan


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-m", "as_module", is_flag=True, help="TARGET is a module, as for python -m.")
@step_options(fewest=0)
@output_options
@click.argument("target", metavar="TARGET")
@click.argument("args", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(
    as_module: bool,
    warmup: int,
    steps: int,
    trace: bool,
    format: str | None,
    output: str | None,
    target: str,
    args: tuple[str, ...],
) -> int:
    """Profile a training script of your own, unchanged: memory by part and phase, step time, tokens per second.

    TARGET is run as Python would run it, with all ARGS behind it: its output, its traceback and its exit code are its
    own. The first steps of its training warm up, the next are timed, one is traced; then it is left alone. Without -o
    the result is a table on stderr. Under torchrun FILE has the measurement of every process.

    \b
    Examples:
      lorafa-prof run -o run.json train.py --bs 3
      lorafa-prof run --steps 20 -m my_package.train
      torchrun --nproc-per-node 2 -m lorafa_prof run -o run.json train.py
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.measure.script.launch import find_program, run_program
    from lorafa_prof.measure.script.plan import Plan

    output = None if output == "-" else output
    if output is None and format not in (None, "table"):
        raise BadInputError(f"stdout is the script's own: name a file for {format} with -o")
    program = find_program(target, args, as_module=as_module)
    session = _Session(
        (*(["-m"] if as_module else []), target, *args), Plan(warmup=warmup, steps=steps, trace=trace), format, output
    )  # fmt: skip
    session.begin()
    try:
        ending = run_program(program)
    except BaseException:
        session.abandon()
        raise
    return session.end(ending)


class _Session:
    """Looks at the script as soon as it has imported torch, and keeps what is seen.

    Args:
        words: the command, as it is named in the measurement.
        plan: which steps are looked at.
        format: of the file.
        output: the file.
    """

    def __init__(self, words: tuple[str, ...], plan: Plan, format: str | None, output: str | None) -> None:
        self._words, self._plan, self._format = words, plan, format
        self._output = None if output is None else os.path.abspath(output)
        self._is_first = os.environ.get("RANK", "0") == "0"
        self._file = None
        if output is not None and is_results_file(format, output):
            self._file = ScriptFile(output, _say)
        elif output is not None and os.environ.get("WORLD_SIZE", "1") != "1":
            raise BadInputError("several processes write one file together as JSON alone: -o run.json")
        self._process = os.getpid()
        self._observer: Observer | None = None
        self._failure = ""
        self._leave: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Wait for the script to import torch."""
        from lorafa_prof.measure.script.after_import import when_imported

        self._leave = when_imported("torch", self._look)

    def _look(self) -> None:
        try:
            from lorafa_prof.measure.script.observer import Observer

            self._observer = Observer(self._plan, self._words, self._keep)
            self._observer.begin()
        except Exception as error:  # noqa: BLE001 - the script goes on whatever keeps us from looking at it
            self._observer = None
            self._failure = f"the script was not looked at: {type(error).__name__}: {error}"

    def _keep(self, seen: Measurement) -> None:
        """Keep what has been seen so far."""
        if self._file is not None and os.getpid() == self._process:
            self._file.keep_so_far(seen)

    def abandon(self) -> None:
        """Stop looking, where nothing could be run."""
        self._leave()
        if self._observer is not None:
            self._observer.finish("error")

    def end(self, ending: Ending) -> int:
        """Keep and tell the result; return the exit code, which is the script's."""
        self._leave()
        if os.getpid() != self._process:  # a fork of the script has come to its end here
            return ending.exit_code
        seen = self._measurement(ending)
        try:
            self._hand_out(seen)
        except BadInputError:
            if ending.exit_code == 0:
                raise
            _say("the result could not be written as asked")
        return ending.exit_code

    def _measurement(self, ending: Ending) -> Measurement:
        outcome, error = _outcome(ending)
        code = ending.exit_code or None
        if self._observer is not None:
            return self._observer.finish(outcome, error, code)
        return Measurement(
            outcome=outcome, error=error, exit_code=code, command=self._words,
            versions={"python": platform.python_version()}, environment={},
            unmodelled=(self._failure or "the script did not import torch: there was nothing to look at",),
        )  # fmt: skip

    def _hand_out(self, seen: Measurement) -> None:
        if self._file is not None:
            self._file.keep(seen)
            if self._is_first:
                _say(f"{outcome_line(seen)}; in {self._file.path}")
        elif self._output is not None:
            emit_measurements([seen], self._format, self._output)
        elif self._is_first:
            from lorafa_prof.reports.text import render_text

            click.echo(render_text(measurement_table([seen]), PLAIN_WIDTH, False), err=True)
        for line in seen.unmodelled if self._is_first else ():
            if self._output is not None:
                _say(line)


def _outcome(ending: Ending) -> tuple[Outcome, str | None]:
    from lorafa_prof.measure.endings import outcome_of, said

    if isinstance(ending.error, KeyboardInterrupt):
        return "interrupted", "interrupted"
    if ending.error is not None:
        return outcome_of(ending.error), said(ending.error)
    if ending.exit_code:
        return "error", f"the script ended itself with exit code {ending.exit_code}"
    return "ok", None


def _say(line: str) -> None:
    from lorafa_prof.reports.table import clean

    say(clean(line))
