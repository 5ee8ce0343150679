"""Two records of one step, operation by operation: which are there on one side only, and which make other storages.

Operations are aligned by phase, module (alike layers together) and operator, or what the storage is where more is known
of it than its operator. What the same operator makes elsewhere, as many storages of the same shapes and dtypes, has
moved, and changes no bytes. So the changes add up to the change of the total, always and exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorafa_prof.results.difference import Difference, Kind, OperationChange, Storages, View
from lorafa_prof.results.step_record import Operation, StepRecord

Place = tuple[str, str, str]
"""(phase, module, operation)"""
Content = dict[tuple[str, str], tuple[int, int]]
"""(shape, dtype) -> (how many, bytes)"""


@dataclass(frozen=True)
class _Made:
    """What one operation makes on one side, in one respect."""

    content: tuple[tuple[tuple[str, str], tuple[int, int]], ...]
    categories: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(size for _, (_, size) in self.content)

    def storages(self) -> Storages:
        shown = [f"{count} x {shape} {dtype}" for (shape, dtype), (count, _) in self.content]
        return Storages(
            what="; ".join(shown), categories=self.categories, count=sum(c for _, (c, _) in self.content),
            nbytes=self.nbytes,
        )  # fmt: skip


def diff(before: StepRecord, after: StepRecord) -> Difference:
    """Return which operations tell two records apart, at the peak and over the step.

    The records may be of different runs: what that changes is among the changes.
    """
    at_peak = _view(*(_made((o, o.peak_count, o.peak_bytes) for o in r.operations) for r in (before, after)))
    in_step = _view(*(_made((o, o.step_count, o.step_bytes) for o in r.operations) for r in (before, after)))
    return Difference(before=before, after=after, peak=at_peak, step=in_step)


def _made(counted: Iterable[tuple[Operation, int, int]]) -> dict[Place, _Made]:
    """Return what each operation makes, of those that make anything."""
    contents: dict[Place, Content] = defaultdict(dict)
    categories: dict[Place, dict[str, None]] = defaultdict(dict)
    for operation, count, nbytes in counted:
        if not count:
            continue
        place = (operation.phase, operation.module, operation.name or operation.operator)
        kind = (operation.shape, operation.dtype)
        there, size = contents[place].get(kind, (0, 0))
        contents[place][kind] = (there + count, size + nbytes)
        categories[place][operation.category] = None
    return {place: _Made(_ordered(found), tuple(sorted(categories[place]))) for place, found in contents.items()}


def _ordered(content: Content) -> tuple[tuple[tuple[str, str], tuple[int, int]], ...]:
    """Return the kinds of storages, those with the most bytes first."""
    return tuple(sorted(content.items(), key=lambda kind: (-kind[1][1], kind[0])))


def _view(before: Mapping[Place, _Made], after: Mapping[Place, _Made]) -> View:
    left, right = dict(before), dict(after)
    for place in before.keys() & after.keys():
        if before[place].content == after[place].content:
            del left[place], right[place]
    moved = _drop_moved(left, right)
    changes = [_change(place, left.get(place), right.get(place)) for place in dict.fromkeys([*left, *right])]
    return View(
        before_bytes=sum(made.nbytes for made in before.values()),
        after_bytes=sum(made.nbytes for made in after.values()),
        changes=tuple(sorted(changes, key=_largest_first)),
        moved_bytes=moved,
    )


def _drop_moved(left: dict[Place, _Made], right: dict[Place, _Made]) -> int:
    """Remove what the same operators make in another place, and return the bytes of it."""
    found: dict[object, list[Place]] = defaultdict(list)
    for place in right.keys() - left.keys():
        found[(place[2], right[place].content)].append(place)
    moved = 0
    for place in sorted(left.keys() - right.keys()):
        elsewhere = found[(place[2], left[place].content)]
        if elsewhere:
            nearest = max(elsewhere, key=lambda other: (other[0] == place[0], other[1] == place[1], other))
            elsewhere.remove(nearest)
            moved += left.pop(place).nbytes
            del right[nearest]
    return moved


def _change(place: Place, before: _Made | None, after: _Made | None) -> OperationChange:
    kind: Kind = "changed" if before and after else "added" if after else "removed"
    phase, module, operation = place
    return OperationChange(
        kind=kind, phase=phase, module=module, operation=operation,
        before=before.storages() if before else None, after=after.storages() if after else None,
    )  # fmt: skip


def _largest_first(change: OperationChange) -> tuple[object, ...]:
    return -abs(change.change_bytes), change.phase, change.module, change.operation
