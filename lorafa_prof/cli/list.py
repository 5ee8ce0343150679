"""`lorafa-prof list`: the models, GPUs and methods that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click

from lorafa_prof.catalog import device_names, load_device, load_model, model_entry, model_names
from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.reports.table import Cell, Column, Table
from lorafa_prof.specs import METHODS
from lorafa_prof.units import format_bytes, format_count, format_gib


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """One list: what JSON holds, and the same as a table."""

    entries: list[dict[str, object]]
    table: Table


#: What each method trains, and what sets it apart.
METHOD_LINES: dict[str, tuple[str, str]] = {
    "full": ("every parameter", "full fine-tuning"),
    "lora": ("A and B", "a low-rank update beside each adapted linear layer"),
    "lora-fa": ("B", "A stays as initialised, so a layer's input need not be kept; gradients of B are corrected"),
    "lora-fa-peft": ("B", "LoRA-FA as the peft package has it"),
    "lora-fb": ("A", "the mirror image of LoRA-FA: B stays, and the input must be kept"),
    "lora-qv": ("A and B", "LoRA on the query and value projections alone"),
    "qlora": ("A and B", "LoRA over a base quantised to 4-bit NF4"),
    "qlora-fa": ("B", "LoRA-FA over a base quantised to 4-bit NF4"),
    "vera": ("two vectors a layer", "one frozen random pair of matrices for all layers, scaled by vectors"),
    "dora": ("A, B and a magnitude vector", "direction and magnitude of the weight adapted apart"),
    "pissa": ("A and B", "LoRA that starts from the weight's largest singular values"),
    "lora-plus": ("A and B", "LoRA with a larger learning rate for B"),
    "adalora": ("A, B and singular values", "ranks shared out between the layers during training"),
    "lora-ga": ("A and B", "LoRA that starts from the full gradient's singular vectors"),
    "lora-pro": ("A and B", "LoRA whose gradients are adjusted so that a step comes nearest to full fine-tuning's"),
}


@click.command()
@click.argument("what", type=click.Choice(["models", "gpus", "methods"]))
@output_options
def command(what: str, format: str | None, output: str | None) -> None:
    """List the models, GPUs or methods that other commands know by name.

    Unknown figures are shown as "-". JSON also tells where the figures come from.

    \b
    Examples:
      lorafa-prof list models
      lorafa-prof list gpus --format json
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    listing = _LISTINGS[what]()
    emit(
        tables=lambda: [listing.table],
        records=lambda: listing.table,
        document=lambda: {what: listing.entries},
        format=format,
        output=output,
    )


def _models() -> _Listing:
    entries: list[dict[str, object]] = []
    rows = []
    for name in model_names():
        entry, spec = model_entry(name), load_model(name)
        entries.append(
            {
                "name": name,
                "hub_id": entry.get("hub_id"),
                "aliases": list(entry.get("aliases") or ()),
                "parameters": spec.parameters,
                "parameters_source": entry.get("parameters_source"),
                "architecture": spec.architecture,
                "task": spec.task,
                "hidden_size": spec.hidden_size,
                "num_layers": spec.num_layers,
                "num_decoder_layers": spec.num_decoder_layers,
                "max_positions": spec.max_positions,
                "source": entry.get("source"),
            }
        )
        parameters = Cell(text=format_count(spec.parameters), value=spec.parameters)
        layers = f"{spec.num_layers} + {spec.num_decoder_layers}" if spec.num_decoder_layers else str(spec.num_layers)
        depth = Cell(text=layers, value=spec.num_layers + spec.num_decoder_layers)
        rows.append(
            (name, parameters, spec.architecture, spec.hidden_size, depth, spec.max_positions, entry.get("hub_id"))
        )
    table = Table(
        title=f"{len(rows)} models",
        columns=(
            Column(name="model", key="name"),
            Column(name="parameters", justify="right"),
            Column(name="architecture"),
            Column(name="hidden", justify="right", key="hidden_size"),
            Column(name="layers", justify="right"),
            Column(name="positions", justify="right", key="max_positions"),
            Column(name="hub id", key="hub_id"),
        ),
        rows=tuple(rows),
        notes=("Any other model of these architectures: give its hub id, or the path of its config.json.",),
    )
    return _Listing(entries=entries, table=table)


def _gpus() -> _Listing:
    entries: list[dict[str, object]] = []
    rows = []
    for name in device_names():
        device = load_device(name)
        bf16 = device.peak_flops.get("bf16")
        entries.append(
            {
                "name": name,
                "full_name": device.full_name,
                "vendor": device.vendor,
                "architecture": device.architecture,
                "total_bytes": device.total_bytes,
                "bandwidth_bytes_per_s": device.bandwidth,
                "peak_flops": dict(device.peak_flops),
                "context_bytes": device.context_bytes,
                "sources": dict(device.sources),
            }
        )
        rows.append(
            (
                name,
                device.full_name,
                Cell(text=format_gib(device.total_bytes), value=device.total_bytes),
                Cell(text=_tera(bf16, 1), value=bf16),
                Cell(text=_tera(device.bandwidth, 2), value=device.bandwidth),
                Cell(text=format_bytes(device.context_bytes), value=device.context_bytes),
            )
        )
    table = Table(
        title=f"{len(rows)} GPUs",
        columns=(
            Column(name="gpu", key="name"),
            Column(name="full name", key="full_name"),
            Column(name="memory GiB", justify="right", key="total_bytes"),
            Column(name="bf16 TFLOP/s", justify="right", key="peak_flops_bf16"),
            Column(name="bandwidth TB/s", justify="right", key="bandwidth_bytes_per_s"),
            Column(name="CUDA context", justify="right", key="context_bytes"),
        ),
        rows=tuple(rows),
        notes=("Memory is what torch sees; TFLOP/s are dense, accumulated in fp32. Sources: --format json.",),
    )
    return _Listing(entries=entries, table=table)


def _tera(figure: float | None, digits: int) -> str:
    """Return a rate in 10^12 a second."""
    return "-" if figure is None else f"{figure / 1e12:,.{digits}f}"


def _methods() -> _Listing:
    rows = tuple((name, *METHOD_LINES[name]) for name in METHODS)
    table = Table(
        title=f"{len(rows)} methods",
        columns=(
            Column(name="method", key="name"),
            Column(name="trains"),
            Column(name="what it is", key="description"),
        ),
        rows=rows,
        notes=("An adapted layer computes xW + s(xA)B: A narrows to the rank, B widens again, W is frozen.",),
    )
    entries: list[dict[str, object]] = [
        {"name": name, "trains": trains, "description": description} for name, trains, description in rows
    ]
    return _Listing(entries=entries, table=table)


_LISTINGS: dict[str, Callable[[], _Listing]] = {"models": _models, "gpus": _gpus, "methods": _methods}
