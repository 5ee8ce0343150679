"""A measurement and the predictions of its run, figure by figure, and where they part ways.

The parts of the peak are compared one by one; what their errors leave of the error of the peak is a row of its own, the
unexplained rest. The ledgers, where both sides have one, say which tensors the errors are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Category, Ledger, MemoryItem
from lorafa_prof.results import (
    PART_FIELDS,
    Comparison,
    ItemDifference,
    Measurement,
    Memory,
    Prediction,
    Row,
    Section,
    Side,
    Unit,
    Verdict,
    VersionDifference,
)
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import parse_bytes

#: Differences of the ledgers that are kept; the rest is counted.
MOST_ITEMS = 20

_MEMORIES = (
    "peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "fragmentation_bytes", "context_bytes",
    "peak_device_bytes",
)  # fmt: skip
_SIZES = ("saved_activations_bytes", "trained_gradients_bytes")
_TIME: Mapping[str, Unit] = {
    "step_s": "seconds", "tokens_per_s": "tokens/s", "model_flops": "flops", "executed_flops": "flops",
    "model_flops_6n": "flops", "mfu": "share", "mfu_6n": "share", "hfu": "share",
}  # fmt: skip

#: Engines that run the real modules, so that their ledgers call things as an observation does. Closed forms have names
#: of their own, and are compared by their parts.
_SAME_NAMES = ("simulate",)


def compare(measurement: Measurement, predictions: Sequence[Prediction], remarks: Sequence[str] = ()) -> Comparison:
    """Hold predictions of a run against its measurement.

    Args:
        measurement: of any outcome; what it lacks has no error.
        predictions: of the same run, one an engine.
        remarks: what the reader has to know beside the figures.

    Raises:
        BadInputError: a prediction is of another run.
    """
    for prediction in predictions:
        if not is_of(prediction, measurement):
            raise BadInputError(f"the prediction by {prediction.engine} is of another run than the measurement")
    memory = measurement.memory
    return Comparison(
        outcome=measurement.outcome,
        versions=measurement.versions,
        environment=measurement.environment,
        run=measurement.run,
        command=measurement.command,
        error=measurement.error,
        rank=measurement.rank,
        world_size=measurement.world_size,
        peak_moment=(memory.peak_moment or None) if memory is not None else None,
        rows=tuple(_rows(measurement, predictions)),
        sides=tuple(_side(measurement, prediction) for prediction in predictions),
        assumptions=measurement.assumptions,
        unmodelled=measurement.unmodelled,
        remarks=tuple(remarks),
    )


def is_of(prediction: Prediction, measurement: Measurement) -> bool:
    """Return whether a prediction is of the run that was measured, whatever the model is called in it."""
    return measurement.run is not None and _spelled_out(prediction.run) == _spelled_out(measurement.run)


def _spelled_out(run: RunSpec) -> RunSpec:
    """Return the run with its automatic choices made, and its model without a name."""
    return run.replace(
        model=replace(run.model, name="", parameters=None), adapter_dtype=run.resolved_adapter_dtype,
        optimizer=run.resolved_optimizer, quant=run.resolved_quant,
    )  # fmt: skip


# -- figures ---------------------------------------------------------------------------------------------------------


def _rows(measurement: Measurement, predictions: Sequence[Prediction]) -> Iterator[Row]:
    memories = [measurement.memory, *(p.memory for p in predictions)]

    def of_memory(names: Iterable[str], section: Section) -> Iterator[Row]:
        for name in names:
            yield _row(name, section, "bytes", [None if m is None else getattr(m, name) for m in memories])

    yield from of_memory(PART_FIELDS, "parts")
    yield from of_memory(_MEMORIES, "memories")
    yield from _phases(measurement, predictions)
    yield from of_memory(_SIZES, "sizes")
    parameters = [measurement.parameters or {}, *(p.parameters for p in predictions)]
    for name in ("total", "trainable"):
        yield _row(name, "sizes", "elements", [each.get(name) for each in parameters])
    throughputs = [measurement.throughput, *(p.throughput for p in predictions)]
    for name, unit in _TIME.items():
        yield _row(name, "time", unit, [getattr(each, name) for each in throughputs])


def _row(name: str, section: Section, unit: Unit, values: Sequence[float | None]) -> Row:
    return Row(name=name, section=section, unit=unit, observed=values[0], predicted=tuple(values[1:]))


def _phases(measurement: Measurement, predictions: Sequence[Prediction]) -> Iterator[Row]:
    seen = {p.phase: p.peak_allocated_bytes for p in measurement.phases if p.peak_allocated_bytes is not None}
    observed = seen | dict(measurement.memory.moments if measurement.memory is not None else {})
    moments = _recomputation_alike([observed, *(dict(p.memory.moments) for p in predictions)])
    for name in dict.fromkeys(name for each in moments for name in each):
        yield _row(name, "phases", "bytes", [each.get(name) for each in moments])


def _recomputation_alike(moments: list[dict[str, int]]) -> list[dict[str, int]]:
    """Return the phases with recomputation as part of the backward, where not all sides tell the two apart."""
    apart = ["recompute" in each for each in moments if each]
    if all(apart) or not any(apart):
        return moments
    return [_with_recomputation(each) for each in moments]


def _with_recomputation(moments: dict[str, int]) -> dict[str, int]:
    merged = {name: size for name, size in moments.items() if name != "recompute"}
    both = [moments[name] for name in ("backward", "recompute") if name in moments]
    return merged | ({"backward": max(both)} if both else {})


# -- one engine ------------------------------------------------------------------------------------------------------


def _side(measurement: Measurement, prediction: Prediction) -> Side:
    items = _item_differences(measurement.ledger, prediction.ledger) if prediction.engine in _SAME_NAMES else []
    return Side(
        engine=prediction.engine,
        versions=prediction.versions,
        peak_moment=prediction.memory.peak_moment,
        same_phase=_same_phase(measurement.memory, prediction.memory),
        unexplained_bytes=_unexplained(measurement.memory, prediction.memory),
        version_differences=_version_differences(measurement.versions, prediction.versions),
        items=tuple(items[:MOST_ITEMS]),
        items_left_out=len(items[MOST_ITEMS:]),
        verdict=_verdict(measurement, prediction),
        assumptions=prediction.assumptions,
        unmodelled=prediction.unmodelled,
    )


def _same_phase(observed: Memory | None, predicted: Memory) -> bool | None:
    if observed is None or not observed.peak_moment:
        return None
    return observed.peak_moment.partition(":")[0] == predicted.peak_moment.partition(":")[0]


def _unexplained(observed: Memory | None, predicted: Memory) -> int | None:
    """Return the error of the peak less those of its parts.

    error(peak) = sum of error(part) over the parts that both sides have + the rest, also where the two peaks are
    different moments. Where a side lacks a part, the other side's bytes of it are in the rest.
    """
    if observed is None:
        return None
    rest = _error(observed.peak_allocated_bytes, predicted.peak_allocated_bytes)
    if rest is None:
        return None
    errors = (_error(getattr(observed, name), getattr(predicted, name)) for name in PART_FIELDS)
    return rest - sum(error for error in errors if error is not None)


def _error(observed: int | None, predicted: int | None) -> int | None:
    return None if observed is None or predicted is None else predicted - observed


def _version_differences(observed: Mapping[str, str], predicted: Mapping[str, str]) -> tuple[VersionDifference, ...]:
    """Return the libraries whose releases differ; a build ("+cu126") is not a release."""
    return tuple(
        VersionDifference(name=name, observed=observed[name], predicted=version)
        for name, version in predicted.items()
        if name in observed and name != "engine" and not _same_release(observed[name], version)
    )


def _same_release(observed: str, predicted: str) -> bool:
    """Return whether they are the same, or the prediction is for any release that begins so (2.13 and 2.13.1)."""
    plain, stated = observed.partition("+")[0], predicted.partition("+")[0]
    return plain == stated or plain.startswith(f"{stated}.")


# -- does it fit -----------------------------------------------------------------------------------------------------


def capacity(environment: Mapping[str, Any], context_bytes: int | None) -> int | None:
    """Return the bytes of the card that a run could use, CUDA context included; None where they are not known.

    A cap ("cap_bytes") is refused to the allocator alone, so that the context comes on top of it; no more than the
    card has ("total_bytes").
    """
    total, cap = (environment.get(name) for name in ("total_bytes", "cap_bytes"))
    limits = []
    if isinstance(total, int):
        limits.append(total)
    if isinstance(cap, int):
        limits.append(cap + (context_bytes or 0))
    return min(limits, default=None)


def _verdict(measurement: Measurement, prediction: Prediction) -> Verdict | None:
    """Return the engine's own verdict where it was asked about this much memory, else what its peaks decide."""
    environment = measurement.environment
    for fit in prediction.fit:
        if fit.capacity_bytes == capacity(environment, fit.context_bytes):
            return _judged(measurement, fit.capacity_bytes, fit.fits)
    context = prediction.memory.context_bytes or 0
    limit = capacity(environment, context)
    if limit is None:
        return None
    return _judged(measurement, limit, _fits(prediction.memory, limit - context))


def _fits(memory: Memory, limit: int) -> bool | None:
    """Return whether peaks stay within `limit`; between allocated and reserved it depends on what can be freed."""
    allocated, reserved = memory.peak_allocated_bytes, memory.peak_reserved_bytes
    if allocated is None:
        return None
    if allocated > limit:
        return False
    return True if reserved is None or reserved <= limit else None


def _judged(measurement: Measurement, limit: int, fits: bool | None) -> Verdict:
    seen = {"ok": True, "oom": False}.get(measurement.outcome)
    return Verdict(capacity_bytes=limit, fits=fits, agrees=None if seen is None or fits is None else seen == fits)


# -- ledgers ---------------------------------------------------------------------------------------------------------

Place = tuple[str, str]
"""(category, module)"""


def _item_differences(observed: Ledger | None, predicted: Ledger | None) -> list[ItemDifference]:
    """Return where the ledgers differ, the largest difference first.

    A category with the same bytes on both sides leaves nothing to explain, nor does a module within it, whatever its
    tensors are called: not every device tells which operator made a block. Where a module's names have nothing in
    common, it is compared as a whole.
    """
    if observed is None or predicted is None:
        return []
    differ = {category.value for category in Category if observed.total(category) != predicted.total(category)}
    seen, said = (
        _by_place(item for item in ledger.items if item.category.value in differ) for ledger in (observed, predicted)
    )
    found: list[ItemDifference] = []
    for place in dict.fromkeys([*seen, *said]):
        left, right = seen.get(place, {}), said.get(place, {})
        if sum(left.values()) == sum(right.values()):
            continue
        if left and right and not left.keys() & right.keys():
            left, right = {"": sum(left.values())}, {"": sum(right.values())}
        found += [
            ItemDifference(
                category=place[0], module=place[1], tensor=tensor, observed_bytes=left.get(tensor, 0),
                predicted_bytes=right.get(tensor, 0),
            )
            for tensor in dict.fromkeys([*left, *right])
            if left.get(tensor, 0) != right.get(tensor, 0)
        ]  # fmt: skip
    return sorted(found, key=lambda item: (-abs(item.error_bytes), item.category, item.module, item.tensor))


def _by_place(items: Iterable[MemoryItem]) -> dict[Place, dict[str, int]]:
    """Return the bytes of each tensor by category and module, layers together, PEFT's wrapped layers as themselves."""
    places: dict[Place, dict[str, int]] = {}
    for item in items:
        if item.category.in_allocator:
            module = ".".join("*" if part.isdigit() else part for part in item.module.split("."))
            tensors = places.setdefault((item.category.value, module.removesuffix(".base_layer")), {})
            tensors[item.tensor] = tensors.get(item.tensor, 0) + item.nbytes
    return places


# -- tolerance -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far a prediction may miss: by a share of what was observed, or by bytes."""

    amount: Fraction
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Read "2%", "0.5%", "0", "512B", "1MiB".

        Raises:
            BadInputError: neither a percentage nor a size.
        """
        number = text.strip().removesuffix("%").strip()
        if text.strip().endswith("%"):
            if not number.replace(".", "", 1).isdecimal() or not number.isascii() or len(number) > 20:
                raise BadInputError(f"not a percentage: {text[:40]!r} (write for example 2% or 0.5%)")
            return cls(Fraction(number) / 100, relative=True)
        try:
            return cls(Fraction(parse_bytes(text)), relative=False)
        except BadInputError:
            raise BadInputError(f"not a tolerance: {text[:40]!r} (write for example 2%, 0, 512B or 1MiB)") from None

    def allows(self, observed: int, predicted: int) -> bool:
        """Return whether a prediction is near enough; exact, without rounding."""
        limit = self.amount * observed if self.relative else self.amount
        return abs(predicted - observed) <= limit


#: The figures that a tolerance is about, and what people call them.
_HELD = {"peak_allocated_bytes": "peak allocated", "peak_reserved_bytes": "peak reserved"}


def misses(comparison: Comparison, tolerance: Tolerance) -> list[str]:
    """Return a line for each engine and peak beyond the tolerance, and for each verdict that did not come true."""
    lines = []
    for number, side in enumerate(comparison.sides):
        if side.verdict is not None and side.verdict.agrees is False:
            said = "fits" if side.verdict.fits else "does not fit"
            lines.append(f"{side.engine}: said that it {said}, and the run ended: {comparison.outcome}")
        for name, words in _HELD.items():
            observed, predicted = _bytes_of(comparison, name, number)
            if observed is None or predicted is None or tolerance.allows(observed, predicted):
                continue
            share = f" ({(predicted - observed) / observed:+.3%})" if observed else ""
            said = f"{words} {predicted} bytes, observed {observed}: {predicted - observed:+}{share}"
            lines.append(f"{side.engine}: {said}")
    return lines


def is_held(comparison: Comparison) -> bool:
    """Return whether anything was compared that a tolerance is about: a peak, or whether it fits."""
    peaks = (_bytes_of(comparison, "peak_allocated_bytes", number) for number in range(len(comparison.sides)))
    verdicts = (side.verdict for side in comparison.sides if side.verdict is not None)
    return any(None not in pair for pair in peaks) or any(verdict.agrees is not None for verdict in verdicts)


def _bytes_of(comparison: Comparison, name: str, side: int) -> tuple[int | None, int | None]:
    """Return a memory as observed, and as one engine has it."""
    row = comparison.row(name, "memories")
    values = (None, None) if row is None else (row.observed, row.predicted[side])
    observed, predicted = (None if value is None else int(value) for value in values)
    return observed, predicted
