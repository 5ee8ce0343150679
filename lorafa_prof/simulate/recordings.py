"""Recordings that are kept: one of a run serves every card on which the same kernels run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lorafa_prof.simulate.kernels.choices import Choices
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import Recording
from lorafa_prof.simulate.shapes import DifferentStepsError, Shapes
from lorafa_prof.specs import RunSpec

#: Runs whose recordings are kept: one of a 7B model takes some ten MB.
MOST_KEPT = 64

Entry = TypeVar("Entry")


class Recordings:
    """Records steps, each once for all cards on which it is the same.

    Args:
        most: how many runs are kept, those that were asked for last.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._recorded: _Kept[_Recorded] = _Kept(most)
        self._shapes: _Kept[_Family] = _Kept(max(1, most // 8))
        self._worked_out: _Kept[tuple[Shapes, Recording]] = _Kept(most)

    def of(self, run: RunSpec, platform: Cuda, *, notes_all: bool = False) -> Recording:
        """Return the recording of a run on a card; with `notes_all` one that has the calls of all operators.

        Raises:
            UnsupportedError, BadInputError: as `record`.
        """
        return self._find(run, platform, notes_all=notes_all).recording

    def at_batch(self, run: RunSpec, bs: int, platform: Cuda) -> Recording | None:
        """Return the recording of a run at a batch from two on, worked out from those of a few batches.

        None: the steps of different batches are not alike.

        Raises:
            UnsupportedError, BadInputError: as `record`.
        """
        shapes = self._of_all_batches(run, platform)
        if shapes is None:
            return None
        known = self._worked_out
        for of, recording in known.of((id(shapes), bs)):
            if of is shapes:
                return recording
        known.add((id(shapes), bs), (shapes, shapes.at(bs, run.seq)))
        return known.of((id(shapes), bs))[-1][1]

    def _find(self, run: RunSpec, platform: Cuda, *, notes_all: bool = False) -> _Recorded:
        key = _key(run)
        for known in self._recorded.of(key):
            if known.recording.notes_all >= notes_all and known.choices.are_those_of(platform.traits):
                return known
        own = Cuda(platform.traits, platform.torch_version)  # whose choices are those of this run alone
        made = _Recorded(record(run, own, notes_all=notes_all), own.choices)
        self._recorded.add(key, made)
        return made

    def _of_all_batches(self, run: RunSpec, platform: Cuda) -> Shapes | None:
        key, made = _key(run.replace(bs=1)), list[_Recorded]()
        for known in self._shapes.of(key):
            if known.stands_for(platform.traits):
                return known.shapes

        def recorded(other: RunSpec) -> Recording:
            made.append(self._find(other, platform))
            return made[-1].recording

        try:
            shapes: Shapes | None = Shapes.of(run, platform, ("bs",), recorded)
        except DifferentStepsError:
            shapes = None
        self._shapes.add(key, _Family(shapes, made))
        return shapes


@dataclass(frozen=True)
class _Recorded:
    recording: Recording
    choices: Choices


@dataclass(frozen=True)
class _Family:
    """A run at all batches from two on; None where its steps are not alike."""

    shapes: Shapes | None
    made_of: Sequence[_Recorded]

    def stands_for(self, device: DeviceTraits) -> bool:
        return all(each.choices.are_those_of(device) for each in self.made_of)


class _Kept(Generic[Entry]):
    """Entries by key, several for one where cards differ; of all keys, those that were asked for last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[Hashable, list[Entry]] = OrderedDict()

    def of(self, key: Hashable) -> Sequence[Entry]:
        if key not in self._entries:
            return ()
        self._entries.move_to_end(key)
        return self._entries[key]

    def add(self, key: Hashable, entry: Entry) -> None:
        self._entries.setdefault(key, []).append(entry)
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)


def _key(run: RunSpec) -> Hashable:
    """Return what two runs have in common that have one recording; a configuration is no part of a model's equality."""
    return run, id(run.model.config)
