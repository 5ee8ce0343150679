"""What would make the first configuration that does not fit one that does: changes, each judged by the same engine.

A change that the engine refuses is left out, and so is one that saves nothing. What a change costs is time: seconds a
token against those of the configuration as it is, where the card's speed is known; else executed FLOPs a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

from lorafa_prof.errors import LorafaProfError
from lorafa_prof.results import Axis, Change, Threshold, value_along
from lorafa_prof.specs import DeviceSpec, ModelSpec, RunSpec
from lorafa_prof.thresholds import Engine

#: The first cards with PyTorch's flash attention: Ampere.
_FLASH_SINCE = (8, 0)
#: Methods whose A can be frozen instead, and which that is.
_FROZEN = {"lora": "lora-fa", "lora-plus": "lora-fa", "pissa": "lora-fa", "dora": "lora-fa", "qlora": "qlora-fa"}

#: Numbers of cards that are tried where one is not enough.
CARDS = (2, 8)
_MORE_CARDS = "--gpus"

#: Times a token that differ by less than this share are equal, to judge by what the timeline is known to miss; and
#: numbers of operations, which only round.
_AS_FAST, _AS_LITTLE = 0.02, 0.001

Flops = Callable[[RunSpec], int | None]
"""Executed FLOPs of a step; None where they are not known."""
TimeRatio = Callable[[RunSpec, RunSpec, DeviceSpec], float | None]
"""Seconds a token of the first run over those of the second on a card; None where they are not known."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A change that may help."""

    what: str
    options: str
    apply: Callable[[RunSpec], RunSpec]
    alters: str | None = None
    note: str | None = None


def advise(
    engine: Engine, threshold: Threshold, device: DeviceSpec, flops: Flops, time_ratio: TimeRatio
) -> tuple[Change, ...]:
    """Return the changes that make `first_oom` fit, least time first, and after them those that only help.

    Where no single change is enough, the first is a combination that is, if there is one.
    """
    if threshold.first_oom is None:
        return ()
    return tuple(_Advice(engine, threshold, threshold.at(threshold.first_oom), device, flops, time_ratio).changes())


def with_advice(
    engine: Engine, threshold: Threshold, device: DeviceSpec, flops: Flops, time_ratio: TimeRatio
) -> Threshold:
    """Return the threshold with its advice."""
    return replace(threshold, advice=advise(engine, threshold, device, flops, time_ratio))


# -- candidates ------------------------------------------------------------------------------------------------------


def candidates(run: RunSpec, device: DeviceSpec) -> Iterator[Candidate]:
    """Yield the changes of options that might save memory for this run on this card."""
    yield from _of_code(run, device)
    yield from _of_precision(run)
    yield from _of_method(run)
    yield from _of_cards(run)


def _of_code(run: RunSpec, device: DeviceSpec) -> Iterator[Candidate]:
    """Yield what computes the same in another way."""
    if run.checkpointing == "none":
        note = "each layer's forward runs once more in the backward"
        yield _set("full activation checkpointing", "--checkpointing full", note=note, checkpointing="full")
        note = "products and attention are kept; the rest of each layer runs once more, which no FLOP shows"
        yield _set(
            "selective activation checkpointing", "--checkpointing selective", note=note, checkpointing="selective"
        )  # fmt: skip
    if run.attn == "eager":
        yield _set("sdpa instead of eager attention", "--attn sdpa", attn="sdpa")
    if run.attn != "flash" and (device.compute_capability is None or device.compute_capability >= _FLASH_SINCE):
        yield _set(f"flash instead of {run.attn} attention", "--attn flash", attn="flash")
    if run.loss == "hf":
        yield _set("fused loss", "--loss fused", loss="fused")
    if run.resolved_optimizer == "adamw":
        yield _set("fused instead of foreach AdamW", "--optimizer adamw-fused", optimizer="adamw-fused")


def _of_precision(run: RunSpec) -> Iterator[Candidate]:
    """Yield what keeps or computes something in fewer bits."""
    base = "bf16" if run.dtype == "fp32" else run.dtype
    if run.dtype == "fp32":
        yield _set("base weights in bf16", "--dtype bf16", "weights in bf16 instead of fp32", dtype="bf16")
    if run.method.name != "full" and run.resolved_adapter_dtype == "fp32" and run.dtype != "fp32":
        alters = f"adapters and their states in {base}: small updates are lost to rounding"
        yield _set(f"adapters in {base}", f"--adapter-dtype {base}", alters, adapter_dtype=base)
        if base == "bf16" and not run.amp:
            yield _set("bf16 autocast", "--amp", "the adapters' products in bf16 instead of fp32", amp=True)
    if run.resolved_optimizer in ("adamw", "adamw-fused"):
        alters = "optimizer states in 8 bits"
        yield _set("8-bit AdamW", "--optimizer adamw-8bit", alters, optimizer="adamw-8bit")
    if run.resolved_optimizer == "lora-pro-full":
        alters = "moments of the adjusted gradients, not of the weights' equivalent gradients"
        yield _set("LoRA-Pro's moments of the adapters' size", "--optimizer lora-pro", alters, optimizer="lora-pro")
    if run.method.name != "full" and run.resolved_quant == "none":
        alters = "base weights in 4 bits"
        note = "dequantising moves memory, which no FLOP shows"
        yield _set("4-bit base weights", "--quant nf4", alters, note=note, quant="nf4")


def _of_method(run: RunSpec) -> Iterator[Candidate]:
    name = run.method.name
    others = ["lora", "lora-fa"] if name == "full" else [_FROZEN[name]] if name in _FROZEN else []
    if isinstance(run.model, ModelSpec) and run.model.moe is not None:  # ours does not adapt fused experts
        others = [{"lora-fa": "lora-fa-peft"}.get(other, other) for other in others]
    for other in others:
        alters = "another method: adapters instead of all weights" if name == "full" else "another method: A is frozen"

        def apply(run: RunSpec, other: str = other) -> RunSpec:
            return run.replace(method=replace(run.method, name=other))

        yield Candidate(what=f"{other} instead of {name}", options=f"--method {other}", apply=apply, alters=alters)


def _of_cards(run: RunSpec) -> Iterator[Candidate]:
    """Yield what spreads the model over more cards, or over those that there are."""
    if run.shard == "ddp" and run.gpus > 1:
        note = "weights are gathered over the cards' links, twice a step"
        yield _set("FSDP2 instead of DDP", "--shard fsdp", note=note, shard="fsdp")
    if run.gpus > 1 or run.shard != "none":
        return
    for gpus in CARDS:
        yield _set(
            f"FSDP2 over {gpus} cards", f"{_MORE_CARDS} {gpus} --shard fsdp", f"{gpus} cards instead of one",
            "each card has a batch as large; weights are gathered over the cards' links, twice a step",
            gpus=gpus, shard="fsdp",
        )  # fmt: skip


def _set(what: str, options: str, alters: str | None = None, note: str | None = None, **fields: object) -> Candidate:
    return Candidate(
        what=what, options=options, apply=lambda run: run.replace(**fields), alters=alters, note=note
    )  # fmt: skip


# -- judged ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Advice:
    engine: Engine
    threshold: Threshold
    run: RunSpec
    """The first that does not fit."""
    device: DeviceSpec
    flops: Flops
    time_ratio: TimeRatio

    def changes(self) -> list[Change]:
        """Return all that helps, best first."""
        tried = [*candidates(self.run, self.device), *self._smaller()]
        judged = [(candidate, change) for candidate in tried if (change := self._judged(candidate)) is not None]
        found = [change for _, change in judged]
        if judged and not any(change.fits and not _more_cards(change) for change in found):
            found += self._together(judged)
        return sorted(found, key=partial(_rank, by_time=any(change.time_ratio is not None for change in found)))

    def _judged(self, candidate: Candidate) -> Change | None:
        """Return what a change brings; None where it is refused, or saves nothing."""
        try:
            changed = candidate.apply(self.run)
            if changed == self.run:
                return None
            room = self.engine.headroom(changed, self.device)
            before = self._before()
            saved = None if room is None or before is None else room - before
            if room is None or (saved is not None and saved <= 0):
                return None
            return Change(
                what=candidate.what, options=candidate.options, alters=candidate.alters, saved_bytes=saved,
                fits=room >= 0, max=self._new_max(changed) if room >= 0 else None,
                flops_ratio=self._flops_ratio(changed), time_ratio=self.time_ratio(changed, self.run, self.device),
                note=candidate.note,
            )  # fmt: skip
        except LorafaProfError:
            return None

    def _before(self) -> int | None:
        edge = self.threshold.at_first_oom
        return None if edge is None else edge.headroom_bytes

    def _new_max(self, changed: RunSpec) -> int | None:
        """Return the threshold with the change, where that is quickly found; None if it changes the value itself."""
        axis = self.threshold.axis
        if not self.engine.is_quick or value_along(changed, axis) != self.threshold.first_oom:
            return None
        return self.engine.largest(changed, axis, self.device, self.threshold.limit)

    def _flops_ratio(self, changed: RunSpec) -> float | None:
        before, after = self.flops(self.run), self.flops(changed)
        if not before or not after:
            return None
        return (after / changed.tokens) / (before / self.run.tokens)

    # -- smaller steps ------------------------------------------------------------------------------------------------

    def _smaller(self) -> Iterator[Candidate]:
        """Yield the same work in smaller steps, and less work a step; looked for where that is quickly done."""
        if self.run.bs > 1:
            fitting = self._fitting("bs", self.run.bs - 1)
            if fitting and self.engine.is_quick:  # with the gradients of an earlier micro-batch beside it
                fitting = self._fitting_accumulated(fitting)
            if fitting:
                yield _accumulated(self.run, fitting)
        if self.threshold.axis != "seq" and self.run.seq > 1 and self.engine.is_quick:
            fitting = self._fitting("seq", self.run.seq - 1)
            if fitting:
                yield _set(
                    f"sequences of {fitting:,}", f"--seq {fitting}", f"{fitting:,} instead of {self.run.seq:,} tokens",
                    seq=fitting,
                )  # fmt: skip

    def _fitting(self, axis: Axis, most: int) -> int:
        if axis == self.threshold.axis:
            return self.threshold.max
        if not self.engine.is_quick:
            return 0
        return self.engine.largest(self.run, axis, self.device, most)

    def _fitting_accumulated(self, most: int) -> int:
        """Return the largest micro-batch that fits where gradients add up; 0 where the engine refuses that they do."""
        try:
            return self.engine.largest(self.run.replace(accumulation=2), "bs", self.device, most)
        except LorafaProfError:
            return 0

    # -- several at once ----------------------------------------------------------------------------------------------

    def _together(self, judged: Sequence[tuple[Candidate, Change]]) -> list[Change]:
        """Return the smallest combination found: what alters nothing comes first, then what saves most; of these what
        it does not need is taken out again.
        """
        # cards are no option of a program: what needs more of them stands for itself
        judged = [each for each in judged if not _more_cards(each[1])]
        order = sorted(judged, key=lambda each: (each[1].alters is not None, -(each[1].saved_bytes or 0)))
        taken: list[Candidate] = []
        for candidate, _ in order:
            if not any(_share_an_option(candidate, other) for other in taken):
                taken.append(candidate)
            if len(taken) > 1 and self._fits(taken):
                break
        else:
            return []
        for candidate in reversed(taken[:-1]):
            fewer = [each for each in taken if each is not candidate]
            if self._fits(fewer):
                taken = fewer
        change = self._judged(_combined(taken))
        return [] if change is None else [change]

    def _fits(self, taken: Sequence[Candidate]) -> bool:
        change = self._judged(_combined(taken))
        return change is not None and change.fits


def _rank(change: Change, *, by_time: bool) -> tuple[bool, int, float, bool, int]:
    """What fits comes first, by the time that it adds (`_AS_FAST` is none); of equals, what alters nothing.

    Where a time is known of no change, by the arithmetic that it adds (to a thousandth).

    What needs more cards comes after what one is enough for.
    """
    if not change.fits:
        return True, _more_cards(change), 0.0, False, -(change.saved_bytes or 0)
    ratio = change.time_ratio if by_time else change.flops_ratio
    near = _AS_FAST if by_time else _AS_LITTLE
    cost = float("inf") if ratio is None else max(0.0, (ratio - 1) // near)
    return False, _more_cards(change), cost, change.alters is not None, -(change.saved_bytes or 0)


def _more_cards(change: Change) -> int:
    """Return how many cards a change needs where it needs more than there are; else 0."""
    option, number, *_ = [*change.options.split(), ""]
    return int(number) if option == _MORE_CARDS else 0


def _accumulated(run: RunSpec, fitting: int) -> Candidate:
    """The same batch in as few micro-batches as have to be, as even as they can be."""
    parts = -(-run.bs // fitting)
    micro = -(-run.bs // parts)
    passes = parts * run.accumulation
    return _set(
        f"gradient accumulation: {passes} micro-batches of {micro} at most", f"--bs {micro} --accumulation {passes}",
        note=f"one step of {run.bs * run.accumulation:,} sequences in {passes} passes", bs=micro, accumulation=passes,
    )  # fmt: skip


def _share_an_option(one: Candidate, other: Candidate) -> bool:
    return one.options.split()[0] == other.options.split()[0]


def _combined(taken: Sequence[Candidate]) -> Candidate:
    def together(values: Sequence[str | None], joint: str) -> str | None:
        return joint.join(value for value in values if value is not None) or None

    return Candidate(
        what=" and ".join(each.what for each in taken), options=" ".join(each.options for each in taken),
        apply=lambda run: reduce(lambda changed, each: each.apply(changed), taken, run),
        alters=together([each.alters for each in taken], "; "), note=together([each.note for each in taken], "; "),
    )  # fmt: skip
