"""`lorafa-prof sweep`: predictions of every combination of options, one row each."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from lorafa_prof import __version__
from lorafa_prof.cli.configuration import configuration, require_model
from lorafa_prof.cli.emit import check_output, write_stdout_bytes
from lorafa_prof.cli.options import grid_options, link_option, profile_option, trust_option
from lorafa_prof.cli.progress import Bar
from lorafa_prof.cli.sweep_export import definition_in, differing, export, require_parquet
from lorafa_prof.cli.sweep_file import WAYS_OUT, SweepFile, refused_in
from lorafa_prof.cli.sweep_grid import Figures, SweepGrid
from lorafa_prof.cli.sweep_rows import Task
from lorafa_prof.cli.sweep_workers import Workers, here, rows_of
from lorafa_prof.engines import ENGINES, card_profile_in, model_for
from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.table import csv_line
from lorafa_prof.runs import DEFAULT_METHODS, asked_methods, name_list
from lorafa_prof.specs import DeviceSpec, ModelSpec, RunnableModel
from lorafa_prof.speed.links import Link, read_link
from lorafa_prof.speed.profile import DeviceProfile

Spec = TypeVar("Spec", ModelSpec | RunnableModel, DeviceSpec)
FORMATS = ("csv", "parquet", "json")
SUFFIX_FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".json": "json"}
#: Configurations in a task: those that the closed forms take at once; one simulation takes seconds.
CHUNK = {"analytic": 8192, "simulate": 1}
#: The same where steps are timed, one by one.
TIMED_CHUNK = {"analytic": 32, "simulate": 1}
#: Processes that are started unless told otherwise, at most: each takes about 1 GB of memory.
MOST_JOBS = 8


@click.command()
@click.option(
    "--model", "models", multiple=True, metavar="M,...", callback=require_model,
    help="Alias, hub id, or path to a config.json or model folder.  [required]",
)  # fmt: skip
@click.option(
    "--method", "methods", multiple=True, metavar="M,...", help=f"Method.  [default: {', '.join(DEFAULT_METHODS)}]"
)
@grid_options
@trust_option
@click.option("--gpu", "gpus_asked", multiple=True, metavar="G,...", help="Card to hold each run against: a row each.")
@click.option("--engine", type=click.Choice(ENGINES), default="analytic", show_default=True, help="How to predict.")
@click.option("--max-bs", is_flag=True, help="Add the largest batch that fits on the card, as max_bs.")
@click.option("--timed", is_flag=True, help="Add the step's time on the card, tokens per second, MFU and HFU.")
@profile_option("the step times of its card; goes with --timed")
@link_option
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N",
    help=f"Processes.  [default: one for simulate a core, up to {MOST_JOBS}; none beside this one for analytic]",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Give up the rows that FILE has.")
@click.option(
    "--format", type=click.Choice(FORMATS), help="How to write the rows.  [default: by FILE's suffix, else csv]"
)
@click.option("-o", "--output", metavar="FILE", callback=check_output, help="Where the rows go.  [default: stdout]")
def command(
    models: tuple[str, ...],
    methods: tuple[str, ...],
    gpus_asked: tuple[str, ...],
    engine: str,
    max_bs: bool,
    timed: bool,
    profile: str | None,
    link: str | None,
    jobs: int | None,
    restart: bool,
    format: str | None,
    output: str | None,
    trust_remote_code: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Predict every combination of options: one row each, in FILE as CSV, Parquet or JSON.

    Every option takes a comma list, and those of integers ranges: 1:64, 1:64:4 (every 4th), 1:64:*2 (doubling). The
    same command goes on where it was interrupted. A configuration that cannot be predicted is a row that says why.

    \b
    Examples:
      lorafa-prof sweep --model llama2-7b --bs 1:64 --seq 512,1024,2048 --gpu rtx4090 -o sweep.csv
      lorafa-prof sweep --model llama3-8b,qwen3-8b --rank 8:256:*2 --checkpointing none,full -o ranks.parquet
      lorafa-prof sweep --engine simulate --model qwen3-0.6b --bs 1:8 --gpu rtx4090,a100-80gb -o real.csv
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.catalog import load_device

    configuration()
    if engine == "analytic":
        # Before numpy is loaded: its products here are too small for a second thread to do more than wait for them.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    devices = list(_distinct(load_device(name) for name in name_list(gpus_asked, "--gpu")))
    asked = Figures(
        max_bs=max_bs, timed=timed, profile=_profile(profile, devices, timed=timed), link=_link(link, timed=timed)
    )
    grid = SweepGrid(
        models=_distinct(model_for(engine, name, trust=trust_remote_code) for name in name_list(models, "--model")),
        methods=tuple(asked_methods(methods)), engine=engine, axes=axes,
        devices=tuple(devices) or (None,),
    )  # fmt: skip
    grid.refuse_too_many()
    if max_bs and grid.devices == (None,):
        raise BadInputError("--max-bs is the largest batch on a card: name one with --gpu")
    if timed and grid.devices == (None,):
        raise BadInputError("--timed is for step times on a card: name one with --gpu")
    sweep = _Sweep(grid=grid, versions=_versions(engine), asked=asked, jobs=jobs, restart=restart)
    kind = format or SUFFIX_FORMATS.get(Path(output or "").suffix.lower(), "csv")
    if kind == "csv":
        sweep.to_csv(output)
    else:
        sweep.to_document(kind, output)


def _profile(path: str | None, devices: list[DeviceSpec], *, timed: bool) -> DeviceProfile | None:
    """Return the profile in a file, whose card is the one that is asked about where none is named.

    Raises:
        BadInputError: no profile, or one of another card or of a CPU; no times are asked for.
    """
    if path is None:
        return None
    if not timed:
        raise BadInputError("--profile is for step times: add --timed")
    return card_profile_in(path, devices)


def _link(rate: str | None, *, timed: bool) -> Link | None:
    """Return what the user says that links the cards.

    Raises:
        BadInputError: not a rate; no times are asked for.
    """
    if rate is None:
        return None
    if not timed:
        raise BadInputError("--link is for step times: add --timed")
    return read_link(rate)


def _distinct(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """Return models or devices, each once.

    Raises:
        BadInputError: two that differ have one name, by which their rows would be the same; a name of several lines.
    """
    found: dict[str, Spec] = {}
    for spec in specs:
        if not spec.name.isprintable():
            raise BadInputError(f"a name with a line break or the like cannot stand in a row: {spec.name[:60]!r}")
        if found.setdefault(spec.name, spec) != spec:
            raise BadInputError(f"two that differ are both called {spec.name[:60]!r}: a row could be of either")
    return tuple(found.values())


def _versions(engine: str) -> Mapping[str, str]:
    """Return what predictions are for.

    Raises:
        MissingComponentError: the engine needs what is not installed; the text holds the command.
    """
    if engine == "analytic":
        from lorafa_prof.analytic.engine import MODELLED_VERSIONS

        return {"lorafa-prof": __version__, **MODELLED_VERSIONS}
    from lorafa_prof.workload.versions import installed_versions

    return {"lorafa-prof": __version__, **installed_versions()}


class _Rows(Protocol):
    """Where rows go: a file that is taken up again, or a stream."""

    refused: int

    def take_up(self, keys: Iterable[str], *, together: int, restart: bool) -> int:
        """Return how many rows are there."""

    def last(self) -> bytes:
        """Return the lines of the last configuration that is there."""

    def write(self, lines: bytes) -> None:
        """Add lines."""


class _Stream:
    """Rows that go to stdout, a pipe or a device, and cannot be taken up again."""

    def __init__(self, write: Callable[[bytes], object], header: Sequence[str]) -> None:
        self._write, self._header = write, csv_line(list(header)).encode()
        self.refused = 0

    def take_up(self, keys: Iterable[str], *, together: int, restart: bool) -> int:
        """Begin."""
        self.write(self._header)
        self.refused = 0
        return 0

    def last(self) -> bytes:
        """Return nothing: nothing was there."""
        return b""

    def write(self, lines: bytes) -> None:
        """Add lines.

        Raises:
            BadInputError: the stream cannot be written.
            BrokenPipeError: its reader went away.
        """
        self._write(lines)
        self.refused += refused_in(lines)


@dataclass(kw_only=True)
class _Sweep:
    """Computes the rows that are missing, in order."""

    grid: SweepGrid
    versions: Mapping[str, str]
    asked: Figures
    jobs: int | None
    restart: bool

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        return self.asked.columns

    def to_csv(self, output: str | None) -> None:
        """Write the rows to a file, or to a stream.

        Raises:
            BadInputError: it cannot be written, or holds something else.
            KeyboardInterrupt: the end was requested.
        """
        if output is None:
            self._fill(_Stream(write_stdout_bytes, self._columns), "stdout")
        elif Path(output).exists() and not Path(output).is_file():  # a pipe, a device
            with open(output, "wb", buffering=0) as stream:
                self._fill(_Stream(stream.write, self._columns), output)
        else:
            with SweepFile(output, self._columns) as file:
                self._fill(file, output)

    def to_document(self, kind: str, output: str | None) -> None:
        """Write the rows as one document, at the end; until then they are lines of CSV beside it.

        Raises:
            as `to_csv`.
            MissingComponentError: what writes Parquet is not installed; the text holds the command.
        """
        if output is None:
            raise BadInputError(f"{kind} is written when a sweep is done: name a file with -o")
        if kind == "parquet":
            require_parquet()
        if Path(output).exists() and self._is_there(kind, output):
            Bar(1, 1).say(f"{output!r} holds this sweep already")
            return
        partial = f"{output}.partial.csv"
        with SweepFile(partial, self._columns) as file:
            self._fill(file, partial, output, finish=lambda: self._export(kind, partial, output))

    def _export(self, kind: str, partial: str, output: str) -> None:
        """Make the document of its lines, which then are done with.

        Raises:
            BadInputError: it cannot be written; the lines are kept.
        """
        try:
            export(kind, partial, output, self._definition())
        except BadInputError as error:
            raise BadInputError(f"{error}; its rows stay in {partial!r}, and the same command goes on") from error
        os.unlink(partial)

    def _is_there(self, kind: str, output: str) -> bool:
        """Return whether a file holds the sweep already; what holds something else is refused."""
        there, wanted = definition_in(kind, output), self._definition()
        if not isinstance(there, dict):
            raise BadInputError(f"{output!r} is there already and is not a sweep's: name another file with -o")
        names = differing(there, wanted)
        if names and not self.restart:
            raise BadInputError(f"{output!r} was made with other options ({', '.join(names)}): {WAYS_OUT}")
        return not self.restart

    def _definition(self) -> dict[str, Any]:
        return {**self.grid.definition(), **self.asked.definition(), "versions": dict(self.versions)}

    def _fill(
        self, file: _Rows, name: str, result: str | None = None, finish: Callable[[], None] = lambda: None
    ) -> None:
        """Add the rows that are missing to a file of this name, which `finish` makes the result of."""
        from lorafa_prof.measure.stop import Stop

        total = self.grid.rows
        keys = itertools.chain.from_iterable(block.keys() for block in self.grid.blocks())
        done = file.take_up(keys, together=len(self.grid.devices), restart=self.restart)
        bar = Bar(total, done)
        with Stop() as stop:
            with self._lines(done, lambda: stop.requested) as lines:
                if done and done < total:
                    _refuse_changed(next(lines, None), file.last(), name)
                for text in lines:
                    file.write(text)
                    done += text.count(b"\n")
                    bar.show(done)
        if done < total:
            bar.say(f"{name} has {done:,} of {total:,} rows; the same command goes on")
            raise KeyboardInterrupt
        finish()
        refused = f", {file.refused:,} of them refused: see the column error" if file.refused else ""
        bar.say(f"{result or name}: {total:,} rows{refused}")

    @contextlib.contextmanager
    def _lines(self, done: int, stopped: Callable[[], bool]) -> Iterator[Iterator[bytes]]:
        """Give the lines of what `tasks` says is left after `done` rows."""
        left = tasks(self.grid, done, (TIMED_CHUNK if self.asked.timed else CHUNK)[self.grid.engine])
        if self.grid.engine == "analytic" and (self.jobs or 1) == 1:
            yield here(left, rows_of("analytic", self.asked), stopped)
            return
        jobs = min(self.jobs or min(_cores(), MOST_JOBS), self.grid.rows)
        with Workers(jobs, self.grid.engine, self.asked) as workers:
            yield workers.lines(left, stopped)


def tasks(grid: SweepGrid, done: int, chunk: int) -> Iterator[Task]:
    """Yield what is left of a sweep after `done` rows, in its order, in tasks of up to `chunk` configurations.

    Where something is done, the last configuration of that comes first, alone: to see whether it still is what it was.
    """
    skipped = done // len(grid.devices)
    for block in grid.blocks():
        first = min(skipped, block.configurations)
        if 0 < skipped <= block.configurations and done < grid.rows:
            yield Task(block=block, start=skipped - 1, stop=skipped)
        skipped -= first
        for start in range(first, block.configurations, chunk):
            yield Task(block=block, start=start, stop=min(start + chunk, block.configurations))


def _refuse_changed(again: bytes | None, there: bytes, name: str) -> None:
    """Refuse to add rows to those of another installation.

    Raises:
        BadInputError: the last row is not what it would be now.
    """
    if again is not None and again != there:
        raise BadInputError(
            f"the last row of {name!r} is not what this installation makes of it: the libraries, lorafa-prof or the "
            f"model's file are others than they were. Name another file with -o, or give up its rows with --restart"
        )


def _cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
