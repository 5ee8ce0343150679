"""`lorafa-prof sweep`: predictions of every combination of options, one row each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import click

from lorafa_prof.cli.emit import check_output
from lorafa_prof.cli.options import grid_options, name_list
from lorafa_prof.cli.predict import DEFAULT_METHODS, ENGINES
from lorafa_prof.cli.sweep_file import SweepFile
from lorafa_prof.cli.sweep_grid import SweepGrid, columns
from lorafa_prof.cli.sweep_rows import AnalyticRows, Task
from lorafa_prof.specs import METHODS, require_choice

#: Configurations that the closed forms take at once.
CHUNK = 8192


@click.command()
@click.option(
    "--model", "models", required=True, multiple=True, metavar="M,...",
    help="Alias, hub id, or path to a config.json or model folder.",
)  # fmt: skip
@click.option(
    "--method", "methods", multiple=True, metavar="M,...", help=f"Method.  [default: {', '.join(DEFAULT_METHODS)}]"
)
@grid_options
@click.option("--gpu", "gpus_asked", multiple=True, metavar="G,...", help="Card to hold each run against: a row each.")
@click.option("--engine", type=click.Choice(ENGINES), default="analytic", show_default=True, help="How to predict.")
@click.option("--max-bs", is_flag=True, help="Add the largest batch that fits on the card, as max_bs.")
@click.option("--restart", is_flag=True, help="Give up the rows that FILE has.")
@click.option("-o", "--output", required=True, metavar="FILE", callback=check_output, help="Where the rows go.")
def command(
    models: tuple[str, ...],
    methods: tuple[str, ...],
    gpus_asked: tuple[str, ...],
    engine: str,
    max_bs: bool,
    restart: bool,
    output: str,
    **axes: tuple[Any, ...],
) -> None:
    """Predict every combination of options: one row each, in FILE as CSV.

    Every option takes a comma list, and those of integers ranges: 1:64, 1:64:4 (every 4th), 1:64:*2 (doubling). The
    same command goes on where it was interrupted. A configuration that cannot be predicted is a row that says why.

    \b
    Examples:
      lorafa-prof sweep --model llama2-7b --bs 1:64 --seq 512,1024,2048 --gpu rtx4090 -o sweep.csv
      lorafa-prof sweep --model llama3-8b,qwen3-8b --rank 8:256:*2 --checkpointing none,full -o ranks.csv
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.catalog import load_device, load_model

    names = name_list(methods) or list(DEFAULT_METHODS)
    for name in names:
        require_choice("method", name, METHODS)
    grid = SweepGrid(
        models=tuple(load_model(name) for name in name_list(models)), methods=tuple(names), engine=engine, axes=axes,
        devices=tuple(load_device(name) for name in name_list(gpus_asked)) or (None,),
    )  # fmt: skip
    grid.refuse_too_many()
    rows = AnalyticRows(max_bs=max_bs)
    with SweepFile(output, columns(max_bs=max_bs)) as file:
        keys = itertools.chain.from_iterable(block.keys() for block in grid.blocks())
        done = file.take_up(keys, together=len(grid.devices), restart=restart)
        for task in tasks(grid, done, CHUNK):
            file.write(rows(task).encode())


def tasks(grid: SweepGrid, done: int, chunk: int) -> Iterator[Task]:
    """Yield what is left of a sweep after `done` rows, in its order, in tasks of up to `chunk` configurations."""
    skipped = done // len(grid.devices)
    for block in grid.blocks():
        first = min(skipped, block.configurations)
        skipped -= first
        for start in range(first, block.configurations, chunk):
            yield Task(block=block, start=start, stop=min(start + chunk, block.configurations))
