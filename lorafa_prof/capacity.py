"""The batch that trains fastest under a card's memory, what an epoch then takes and costs, and what more cards bring.

Memory and time are the closed forms': the largest batch that fits, the operations of the step at that and at smaller
batches, and the timeline of these on the card. A method that needs less memory fits a larger batch, and whether that
makes it faster is what the timeline says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorafa_prof.analytic.engine import communicated, predict
from lorafa_prof.analytic.frontier import Plans
from lorafa_prof.analytic.optimizer_works import is_listed
from lorafa_prof.analytic.step_times import with_dtypes
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.works import StepWorks
from lorafa_prof.errors import ContradictionError, UnsupportedError
from lorafa_prof.results.capacity import Capacity, Tried
from lorafa_prof.specs import DeviceSpec, ModelSpec, RunSpec
from lorafa_prof.speed.links import Link, shared_step
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.speed.step import UNMODELLED, uncompared
from lorafa_prof.speed.timeline import StepTimeline, timeline
from lorafa_prof.thresholds import find_threshold

#: Batches are timed at every power of two, once in between, and at the largest that fits.
_STEPS = (2, 3)
#: Throughput beyond this share of the best is as good: the smallest such batch is taken, which leaves most memory.
_AS_GOOD = 0.995


#: What is true of every time of several cards.
_SEVERAL = "a comparison of the time of several cards: no run on more than one has been held to"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What there is to train, and what a card costs."""

    tokens: int | None = None
    price_per_hour: float | None = None
    """Of one card, in whatever currency."""


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Cards of one kind."""

    device: DeviceSpec
    profile: DeviceProfile
    link: Link | None
    """Between them; None: not known."""


class Planner:
    """Plans the capacity of runs; what was traced for one is kept for the next."""

    def __init__(self) -> None:
        self._forms = ClosedForms()
        self._plans = Plans()
        self._works: dict[tuple[RunSpec, bool], StepWorks] = {}

    def plans(self, run: RunSpec, cards: Cards, numbers: Sequence[int], shard: str, epoch: Epoch) -> list[Capacity]:
        """Return the capacity of each number of cards.

        Args:
            run: on one card; its batch is of no account.
            cards: of which kind.
            numbers: how many of them, each at least one.
            shard: how several share a step: "ddp", "fsdp", ...
            epoch: what there is to train.

        Raises:
            LorafaProfError: what the closed forms refuse of one card.
        """
        alone = self._best(run, cards, epoch)
        found = []
        for number in numbers:
            if number == 1:
                found.append(alone)
                continue
            try:
                shared = self._best(run.replace(gpus=number, shard=shard), cards, epoch)
            except (UnsupportedError, ContradictionError) as error:
                shared = Capacity(device=cards.device.name, gpus=number, run=run, max_bs=None, why_not=str(error))
            found.append(_scaled(shared, alone))
        return found

    def _best(self, run: RunSpec, cards: Cards, epoch: Epoch) -> Capacity:
        threshold = find_threshold(self._forms, run, "bs", cards.device)
        empty = Capacity(
            device=cards.device.name, gpus=run.gpus, run=run, max_bs=threshold.max, assumptions=threshold.assumptions,
            unmodelled=threshold.unmodelled,
        )  # fmt: skip
        if threshold.max == 0:
            return replace(empty, why_not="not even one sequence fits")
        try:
            tried = [self._timed(run.replace(bs=bs), cards) for bs in batches(threshold.max)]
        except UnsupportedError as error:
            return replace(empty, why_not=f"no step time: {error}")
        fastest = max(each.tokens_per_s for each in tried)
        best = next(each for each in tried if each.tokens_per_s >= _AS_GOOD * fastest)
        chosen = run.replace(bs=best.bs)
        seconds = None if epoch.tokens is None else epoch.tokens / best.tokens_per_s
        return replace(
            empty, run=chosen, headroom_bytes=self._forms.headroom(chosen, cards.device), best=best, tried=tuple(tried),
            mfu=self._mfu(chosen, cards, best), epoch_s=seconds, cost=_cost(seconds, run.gpus, epoch),
            assumptions=(*empty.assumptions, *_rests_on(run, cards)),
            unmodelled=(*_unmodelled(empty), UNMODELLED, *uncompared([cards.profile])),
        )  # fmt: skip

    def _timed(self, run: RunSpec, cards: Cards) -> Tried:
        """Time the step of one batch.

        Raises:
            UnsupportedError: no rate of the device, or no link.
        """
        found = self._timeline(run.replace(gpus=1, shard="none"), cards.profile)
        seconds = found.step_s
        if run.gpus > 1:
            if cards.link is None:
                raise UnsupportedError(
                    f"what links several {cards.device.name} is not known: name what each card sends with --link 25GB/s"
                )
            sent = communicated(self._plans.of(run)) or {}
            assert isinstance(run.model, ModelSpec), "closed forms are of models of the catalog"
            units = run.model.num_layers + run.model.num_decoder_layers
            seconds = shared_step(found.by_phase, sent, run.shard, run.gpus, units, cards.link)
        return Tried(bs=run.bs, step_s=seconds, tokens_per_s=run.gpus * run.tokens / seconds)

    def _timeline(self, run: RunSpec, profile: DeviceProfile) -> StepTimeline:
        key = (run.replace(bs=min(run.bs, 2)), run.bs == 1)
        if key not in self._works:
            self._works[key] = StepWorks(key[0])
        return timeline(with_dtypes(self._works[key].at(run.bs, run.seq), run), profile)

    def _mfu(self, run: RunSpec, cards: Cards, best: Tried) -> float | None:
        peak = cards.profile.peak_flops.get("bf16" if run.amp else run.dtype)
        needed = predict(run, plans=self._plans, largest_batch=False, blocks=None).throughput.model_flops
        return None if not peak or needed is None else needed / best.step_s / peak


def batches(most: int) -> list[int]:
    """Return the batches that are timed: 1, 2, 3, 4, 6, 8, 12, ... up to `most`, and that itself."""

    def all_of_them() -> Iterator[int]:
        yield 1
        power = 1
        while power <= most:
            yield from (power * step for step in _STEPS)
            power *= 2

    return sorted({number for number in all_of_them() if number <= most} | {most})


def _scaled(shared: Capacity, alone: Capacity) -> Capacity:
    if shared.best is None or alone.best is None:
        return shared
    return replace(shared, scaling=shared.best.tokens_per_s / (shared.gpus * alone.best.tokens_per_s))


def _cost(seconds: float | None, gpus: int, epoch: Epoch) -> float | None:
    if seconds is None or epoch.price_per_hour is None:
        return None
    return seconds / 3600 * gpus * epoch.price_per_hour


def _unmodelled(found: Capacity) -> tuple[str, ...]:
    """Return what the closed forms leave out, but for the step time, which is here; an optimizer's time where it is not
    in it.
    """
    lines = [line for line in found.unmodelled if not line.startswith("step time")]
    if not is_listed(found.run):
        lines.append(f"in the step time: what {found.run.resolved_optimizer} does in its step")
    if found.run.gpus > 1:
        lines.append(_SEVERAL)
    return tuple(lines)


def _rests_on(run: RunSpec, cards: Cards) -> tuple[str, ...]:
    lines = [cards.profile.describe()]
    if run.gpus > 1 and cards.link is not None:
        link = cards.link
        lines.append(
            f"each card sends {link.bytes_per_s / 1e9:.4g} GB/s while it computes ({link.source}); what is sent is "
            "hidden behind the computation as far as it can be"
        )
    return tuple(lines)
