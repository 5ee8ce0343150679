"""Predictions as tables: methods side by side, where every byte goes, and one flat row a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorafa_prof.ledger import Category, MemoryItem
from lorafa_prof.reports.table import Cell, Column, Scalar, Table
from lorafa_prof.results import PART_FIELDS, Axis, Fit, Prediction
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.units import format_count, format_gib, gib

Row = tuple[Cell | Scalar, ...]

#: What people call the parts of the peak.
PART_NAMES = {
    "weights_bytes": "base weights",
    "adapter_bytes": "adapters",
    "gradients_bytes": "gradients",
    "optimizer_bytes": "optimizer states",
    "activations_bytes": "saved activations",
    "logits_bytes": "logits and loss",
    "temporaries_bytes": "temporaries",
    "workspace_bytes": "workspaces",
}
_METHOD_NAMES = {
    "full": "Full-FT", "lora": "LoRA", "lora-fa": "LoRA-FA", "lora-fa-peft": "LoRA-FA (PEFT)", "lora-fb": "LoRA-FB",
    "lora-qv": "LoRA-QV", "qlora": "QLoRA", "qlora-fa": "QLoRA-FA", "vera": "VeRA", "dora": "DoRA", "pissa": "PiSSA",
    "lora-plus": "LoRA+", "adalora": "AdaLoRA", "lora-ga": "LoRA-GA", "lora-pro": "LoRA-Pro",
}  # fmt: skip


def method_name(name: str) -> str:
    """Return a method's name as papers write it."""
    return _METHOD_NAMES.get(name, name)


def comparison_table(predictions: Sequence[Prediction]) -> Table:
    """Return one table with the methods as columns and the parts of the peak as rows, in GiB."""
    rows: list[Row] = [_row(name, predictions, _part(field)) for field, name in PART_NAMES.items()]
    sections = [len(rows)]
    rows.append(_row("peak allocated", predictions, lambda p: _size(p.memory.peak_allocated_bytes, strong=True)))
    if any(p.memory.peak_blocks_bytes not in (None, p.memory.peak_allocated_bytes) for p in predictions):
        rows.append(_row("  in PyTorch's blocks", predictions, lambda p: _size(p.memory.peak_blocks_bytes)))
    rows.append(_row("reached in", predictions, lambda p: moment_cell(p.memory.peak_moment)))
    if any(p.memory.peak_reserved_bytes is not None for p in predictions):
        rows.append(_row("peak reserved", predictions, lambda p: _size(p.memory.peak_reserved_bytes, strong=True)))
        rows.append(_row("  beyond allocated", predictions, lambda p: _size(p.memory.fragmentation_bytes)))
    if any(p.lengths is not None for p in predictions):
        sections.append(len(rows))
        rows.extend(_epoch_rows(predictions))
    sections.append(len(rows))
    rows.append(_row("saved after forward", predictions, lambda p: _size(p.memory.saved_activations_bytes)))
    rows.append(_row("gradients at step", predictions, lambda p: _size(p.memory.trained_gradients_bytes)))
    sections.append(len(rows))
    rows.append(_row("trained values", predictions, _trainable))
    rows.append(_row("  of all", predictions, _share))
    if any(p.throughput.model_flops is not None for p in predictions):
        rows.append(_row("model GFLOP/token", predictions, lambda p: _per_token(p, p.throughput.model_flops)))
        rows.append(_row("executed GFLOP/token", predictions, lambda p: _per_token(p, p.throughput.executed_flops)))
    sent = dict.fromkeys(kind for p in predictions for kind in p.communication_bytes or ())
    if sent:
        sections.append(len(rows))
        rows.extend(_row(f"sent: {kind.replace('_', '-')}", predictions, _sent(kind)) for kind in sent)
    for number in range(len(predictions[0].fit)):
        sections.append(len(rows))
        rows.extend(_fit_rows(predictions, number))
    return Table(
        title=run_title(predictions[0].run),
        columns=(Column(name="GiB"), *_method_columns(predictions)),
        rows=tuple(rows),
        sections=tuple(sections),
        notes=_notes(predictions),
    )


def grid_table(predictions: Sequence[Prediction], axes: Sequence[str]) -> Table:
    """Return a row a prediction: what varies between them, the peaks in GiB, and the verdict of each card."""
    devices = [fit.device for fit in predictions[0].fit] if predictions else []
    rows = [
        (
            method_name(p.run.method.name),
            *(_along(p.run, axis) for axis in axes),
            _size(p.memory.peak_allocated_bytes, strong=True),
            _size(p.memory.peak_reserved_bytes),
            *map(_verdict, p.fit),
        )
        for p in predictions
    ]
    columns = (
        Column(name="method"),
        *(Column(name=axis.replace("_", " "), justify="right", key=axis) for axis in axes),
        Column(name="peak allocated", justify="right", key="peak_allocated_bytes"),
        Column(name="peak reserved", justify="right", key="peak_reserved_bytes"),
        *(Column(name=device) for device in devices),
    )
    title = f"{predictions[0].run.model.name}: {len(predictions)} predictions, GiB" if predictions else "no prediction"
    return Table(title=title, columns=columns, rows=tuple(rows), keys=1 + len(axes))


def _along(run: RunSpec, option: str) -> Scalar:
    """Return the value of an option that varies, by the name that it is asked for."""
    named = {"rank": run.method.rank, "dropout": run.method.dropout, "world_size": run.gpus}
    value: Scalar = named[option] if option in named else getattr(run, option)
    return str(value) if isinstance(value, float) else value


def run_title(run: RunSpec, without: Axis | None = None) -> str:
    """Return the configuration in one line, the method left out, and what is varied along an axis."""
    sizes = {"bs": f"batch {run.bs}", "seq": f"{run.seq:,} tokens"}
    shape = " x ".join(text for axis, text in sizes.items() if axis != without)
    parts = [
        f"{run.model.name}: {shape}{' with padding' if run.padded else ''}",
        run.dtype + (" with autocast" if run.amp else ""),
        f"{run.attn} attention",
    ]
    if run.recomputation:
        parts.append(run.recomputation)
    method: MethodSpec = run.method
    rank = "adapters" if without == "rank" else f"rank {method.rank}"
    parts.append(f"{rank} on {', '.join(method.targets)}{in_layers(run)}")
    if run.loss != "hf":
        parts.append(f"{run.loss} loss")
    if run.accumulation > 1:
        parts.append(f"{run.accumulation} micro-batches")
    if run.clip:
        parts.append("clipped gradients")
    if method.dropout:
        parts.append(f"adapter dropout {method.dropout:g}")
    if run.gpus > 1 or run.shard != "none":
        parts.append(f"each of {run.gpus} GPUs, {run.shard}")
    return ", ".join(parts)


def in_layers(run: RunSpec) -> str:
    """Return in words which layers have adapters, to be said after what is adapted there; nothing where all have."""
    return "" if run.method.layers is None else f" in layers {run.adapted_layers}"


def explain_table(prediction: Prediction, limit: int = 40) -> Table:
    """Return what is alive at one prediction's peak, largest first, each with its shape and formula."""
    assert prediction.ledger is not None, "a prediction of this engine has a ledger"
    run = prediction.run
    items = prediction.ledger.largest()
    rows: list[Row] = []
    sections = []
    for category in Category:
        inside = [item for item in items if item.category is category and item.nbytes]
        if not inside:
            continue
        sections.append(len(rows))
        total = sum(item.nbytes for item in inside)
        rows.append((_size(total, strong=True, digits=3), _heading(category), "", ""))
        shown, rest = inside[:limit], inside[limit:]
        rows.extend(_item_row(item) for item in shown)
        if rest:
            amount = sum(item.nbytes for item in rest)
            rows.append((_size(amount, digits=3), f"and {len(rest)} smaller", "", ""))
    return Table(
        title=f"{method_name(run.method.name)}: alive at the peak, in {prediction.memory.peak_moment}",
        columns=(
            Column(name="GiB", justify="right", key="bytes"),
            Column(name="tensor"),
            Column(name="shape and dtype"),
            Column(name="bytes", key="formula"),
        ),
        rows=tuple(rows),
        sections=tuple(sections[1:]),
        notes=_explain_notes(prediction),
        keys=2,
    )


def _explain_notes(prediction: Prediction) -> tuple[str, ...]:
    """Return how the explanation is to be read: closed forms have formulas, a simulation has sizes and blocks."""
    run = prediction.run
    alike = "* stands for the layer's number, xN for how many there are."
    if prediction.engine == "simulate":
        return (
            f"For batch {run.bs} x {run.seq} tokens; {alike}",
            "Bytes are what one tensor asks for; GiB are the allocator's blocks, rounded up to 512 B or further.",
            "What has no name of its own is named by the operator that made it, and the pass in which it did.",
        )
    return (f"b = {run.bs}, s = {run.seq}; {alike}", "Each tensor is rounded up to 512 B.")


def _heading(category: Category) -> Cell:
    return Cell(text=category.value.upper(), value=category.value, tone="strong")


def _item_row(item: MemoryItem) -> Row:
    times = f" x{item.count}" if item.count != 1 else ""
    shape = f"{item.shape} {item.dtype}" if item.shape else item.dtype
    where = f"{item.module}: {item.tensor}" if item.module else item.tensor
    return (_size(item.nbytes, digits=3), where, shape, f"{item.formula}{times}")


#: Columns of a flat table of predictions, in their order.
RECORD_COLUMNS = (
    "model", "method", "engine", "bs", "seq", "rank", "dtype", "adapter_dtype", "attn", "checkpointing",
    "optimizer", "quant", "layers", "gpus", "shard", *PART_FIELDS, "peak_allocated_bytes", "peak_requested_bytes",
    "peak_reserved_bytes", "fragmentation_bytes", "peak_device_bytes", "peak_moment", "saved_activations_bytes",
    "model_flops", "executed_flops", "parameters_total", "parameters_trainable", "communication_bytes",
    "device", "capacity_bytes", "fits", "context_bytes", "headroom_bytes", "max_bs",
)  # fmt: skip
#: Columns that follow them where step times are predicted.
TIME_COLUMNS = ("step_s", "tokens_per_s", "mfu", "mfu_6n", "hfu", "profile")


def records_table(predictions: Sequence[Prediction]) -> Table:
    """Return a flat table: one row a prediction and device (or one a prediction, where no device was asked for)."""
    rows = [record(p, fit) for p in predictions for fit in (p.fit or (None,))]
    names = (*RECORD_COLUMNS, *TIME_COLUMNS)
    columns = tuple(Column(name=name, key=name) for name in names)
    return Table(title="predictions", columns=columns, rows=tuple(tuple(row[n] for n in names) for row in rows))


def record(p: Prediction, fit: Fit | None) -> dict[str, Scalar]:
    """Return the values of `RECORD_COLUMNS` and `TIME_COLUMNS` for a prediction, held against one device."""
    figures = {name: getattr(p.memory, name) for name in RECORD_COLUMNS if hasattr(p.memory, name)}
    return {
        **run_record(p.run), "engine": p.engine, **figures,
        "model_flops": p.throughput.model_flops, "executed_flops": p.throughput.executed_flops,
        "parameters_total": p.parameters["total"], "parameters_trainable": p.parameters["trainable"],
        "communication_bytes": None if p.communication_bytes is None else sum(p.communication_bytes.values()),
        **device_record(fit),
    }  # fmt: skip


def run_record(run: RunSpec) -> dict[str, Scalar]:
    """Return the columns that say which run it is, with what is left to each method decided."""
    return {
        "model": run.model.name, "method": run.method.name, "bs": run.bs, "seq": run.seq, "rank": run.method.rank,
        "dtype": run.dtype, "adapter_dtype": run.resolved_adapter_dtype, "attn": run.attn,
        "checkpointing": run.checkpointing, "optimizer": run.resolved_optimizer, "quant": run.resolved_quant,
        "layers": run.adapted_layers, "gpus": run.gpus, "shard": run.shard,
    }  # fmt: skip


def device_record(fit: Fit | None) -> dict[str, Scalar]:
    """Return the columns about a device; all None where there is none."""
    names = (*RECORD_COLUMNS[RECORD_COLUMNS.index("device") :], *TIME_COLUMNS)
    return {name: getattr(fit, name, None) for name in names}


# -- cells -----------------------------------------------------------------------------------------------------------


def _method_columns(predictions: Sequence[Prediction]) -> tuple[Column, ...]:
    return tuple(Column(name=method_name(p.run.method.name), justify="right") for p in predictions)


def _row(name: str, predictions: Sequence[Prediction], cell: Callable[[Prediction], Cell | Scalar]) -> Row:
    return (name, *(cell(p) for p in predictions))


def _part(field: str) -> Callable[[Prediction], Cell | Scalar]:
    return lambda p: _size(getattr(p.memory, field))


def _sent(kind: str) -> Callable[[Prediction], Cell | Scalar]:
    return lambda p: _size((p.communication_bytes or {}).get(kind))


def _size(nbytes: int | None, *, strong: bool = False, digits: int = 2) -> Cell:
    return Cell(text=format_gib(nbytes, digits), value=nbytes, tone="strong" if strong else "plain")


def moment_cell(moment: str) -> Cell:
    """Return the phase and module of a peak, the module by the last part of its name."""
    phase, _, module = moment.partition(": ")
    return Cell(text=phase if module in ("", "loss") else f"{phase} {module.rsplit('.', 1)[-1]}", value=moment)


def _epoch_rows(predictions: Sequence[Prediction]) -> list[Row]:
    """Return the rows about batches of different lengths."""

    def quantile(name: str) -> Callable[[Prediction], Cell | Scalar]:
        return lambda p: _size(None if p.lengths is None else p.lengths.peak_allocated_bytes.get(name))

    told = {"p50": "half of the batches", "p95": "95% of the batches", "p99": "99% of the batches"}
    return [
        _row("largest batch is", predictions, _worst_batch),
        *(_row(f"  {words} within", predictions, quantile(name)) for name, words in told.items()),
        _row("padding", predictions, _padding),
    ]


def _worst_batch(p: Prediction) -> Cell:
    said = p.lengths
    if said is None:
        return Cell(text="-")
    return Cell(text=f"{said.worst_bs} x {said.worst_seq:,}", value=f"{said.worst_bs}x{said.worst_seq}")


def _padding(p: Prediction) -> Cell:
    share = None if p.lengths is None else p.lengths.padding_share
    return Cell(text="-" if share is None else f"{share:.1%}", value=share)


def _trainable(p: Prediction) -> Cell:
    return Cell(text=format_count(p.parameters["trainable"]), value=p.parameters["trainable"])


def _share(p: Prediction) -> Cell:
    share = p.parameters["trainable"] / p.parameters["total"]
    return Cell(text=f"{share:.2%}", value=share)


def _per_token(p: Prediction, flops: int | None) -> Cell:
    if flops is None:
        return Cell(text="-")
    each = flops / p.tokens / 1e9
    return Cell(text=f"{each:,.2f}", value=each)


def _fit_rows(predictions: Sequence[Prediction], number: int) -> list[Row]:
    fits = [p.fit[number] for p in predictions]
    device = fits[0]
    return [
        (f"{device.device}", *(_verdict(f) for f in fits)),
        (f"{gib(device.capacity_bytes):.2f} GiB", *(_headroom(f) for f in fits)),
        ("CUDA context", *(_context(f) for f in fits)),
        ("largest batch", *(_largest(f) for f in fits)),
        *(time_rows(fits) if any(f.step_s is not None for f in fits) else ()),
    ]


def time_rows(fits: Sequence[Fit]) -> list[Row]:
    """Return the rows about the time of a step on one device."""
    waiting = [None if f.time_by_kind is None else f.time_by_kind["waiting"] / (f.step_s or 1) for f in fits]
    return [
        ("step time, s", *(_seconds(f.step_s) for f in fits)),
        ("tokens/s", *(_rate(f.tokens_per_s) for f in fits)),
        ("MFU", *(_percent(f.mfu) for f in fits)),
        ("  by 6 N", *(_percent(f.mfu_6n) for f in fits)),
        ("HFU", *(_percent(f.hfu) for f in fits)),
        ("waits for the host", *(_percent(share) for share in waiting)),
    ]


def _seconds(seconds: float | None) -> Cell:
    return Cell(text="-" if seconds is None else f"{seconds:.3g}", value=seconds)


def _rate(rate: float | None) -> Cell:
    return Cell(text="-" if rate is None else f"{rate:,.0f}", value=rate)


def _percent(share: float | None) -> Cell:
    return Cell(text="-" if share is None else f"{share:.1%}", value=share)


def _verdict(fit: Fit) -> Cell:
    return Cell(text="fits" if fit.fits else "does not fit", value=fit.fits, tone="good" if fit.fits else "bad")


def _headroom(fit: Fit) -> Cell:
    side = "left" if fit.fits else "over"
    return Cell(text=f"{format_gib(abs(fit.headroom_bytes))} {side}", value=fit.headroom_bytes)


def _context(fit: Fit) -> Cell:
    known = fit.context_bytes is not None
    return Cell(text=format_gib(fit.context_bytes) if known else "unknown", value=fit.context_bytes)


def _largest(fit: Fit) -> Cell:
    return Cell(text="-" if fit.max_bs is None else str(fit.max_bs), value=fit.max_bs)


def _notes(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    first = predictions[0]
    used = {name: version for p in predictions for name, version in p.versions.items() if name != "engine"}
    versions = ", ".join(f"{name} {version}" for name, version in used.items())
    return (
        f"Engine {first.engine}, for {versions}.",
        f"Assumed: {_joined(predictions, lambda p: p.assumptions)}.",
        f"Not modelled: {_joined(predictions, lambda p: p.unmodelled)}.",
    )


def _joined(predictions: Sequence[Prediction], lines: Callable[[Prediction], Sequence[str]]) -> str:
    return joined_lines([(method_name(p.run.method.name), lines(p)) for p in predictions])


def joined_lines(told: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return all lines once, those that hold for some methods only with these methods' names.

    Args:
        told: methods, each with its lines; one may be there several times.
    """
    held: dict[str, dict[str, None]] = {}
    for name, lines in told:
        for line in lines:
            held.setdefault(line, {})[name] = None
    everyone = {name for name, _ in told}
    shared = [line for line, names in held.items() if len(names) == len(everyone)]
    own = [f"{line} ({', '.join(names)})" for line, names in held.items() if len(names) < len(everyone)]
    return "; ".join([*shared, *own])
