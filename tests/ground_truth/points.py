"""Every measured point that is known, and what the engines say of it under the installed releases.

    python -m tests.ground_truth.points FILE

appends a line a point and engine. A simulated step is that of the installed libraries, so each environment of
tests/versions answers for the points that ran with its own; closed forms are of one release, and answer for all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lorafa_prof.analytic.engine import predict as predict_in_closed_form
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.simulate.engine import simulate
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.workload.versions import installed_versions
from tests.ground_truth.moments import recorded_moments, simulated_moments
from tests.ground_truth.records import CPU, Record, devices, read_records, run_of
from tests.heldin.fms import FMS, ROWS, fms_run
from tests.heldin.peft_benchmark import PEFT, peak_reserved
from tests.support.profiled import kernels_of_known_size

ALLOCATED, RESERVED, STEP, VERDICT = "peak allocated", "peak reserved", "step time", "fits"
USED = "device used"
#: The release that closed forms are written for.
CLOSED_FORMS = "5.23.0"
_FMS, _PEFT = ("4.48.1", "0.13.2"), ("4.57.1", "0.18.1")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One figure that somebody measured, and what one engine says of it."""

    source: str
    """"published", or the folder of own records."""
    name: str
    device: str
    method: str
    quantity: str
    measured: float
    """Bytes, seconds, or 1 and 0 for yes and no."""
    engine: str
    predicted: float
    versions: str
    """The releases under which the engine answered."""

    @property
    def error(self) -> float:
        """The prediction less the measurement, as a share of the measurement; of a verdict whether it is wrong."""
        if self.quantity == VERDICT:
            return abs(self.predicted - self.measured)
        return self.predicted / self.measured - 1


def every_point() -> Iterator[Point]:
    """Yield what can be said under the installed releases."""
    installed = installed_versions()
    pair = (installed["transformers"], installed["peft"])
    if pair == _FMS:
        yield from _fms_points()
    if pair == _PEFT:
        yield from _peft_points()
    if installed["transformers"] == CLOSED_FORMS:
        yield from _closed_forms_of_published()
        yield from _paper_points()
    for device in devices():
        for recorded in read_records(device):
            if recorded.data["outcome"] == "ok" and not recorded.other_releases():
                yield from (_cpu_points if device == CPU else _card_points)(recorded)


def _point(name: str, quantity: str, measured: float, said: tuple[str, float], method: str = "") -> Point:
    """Make a point of a published row, said by an (engine, figure)."""
    row, installed = ROWS[name], installed_versions()
    return Point(
        source="published", name=name, device=row["gpu"], method=method or row["method"], quantity=quantity,
        measured=measured, engine=said[0], predicted=said[1],
        versions=f"transformers {installed['transformers']}, peft {installed['peft']}",
    )  # fmt: skip


def _fms_points() -> Iterator[Point]:
    for name in FMS:
        run, card = fms_run(name), load_device(ROWS[name]["gpu"])
        found = simulate(run, card, timed=True)
        yield _point(name, ALLOCATED, int(ROWS[name]["value_bytes"]), ("simulate", found.replayed.allocated.size))
        timeline = found.step_time(card, None).timeline
        if timeline is not None:
            yield _point(name, STEP, run.tokens / float(ROWS[name]["tokens_per_s"]), ("simulate", timeline.step_s))


def _peft_points() -> Iterator[Point]:
    for name in PEFT:
        yield _point(name, RESERVED, int(ROWS[name]["value_bytes"]), ("simulate", peak_reserved(name)))


def _closed_forms_of_published() -> Iterator[Point]:
    for name in FMS:
        memory = predict_in_closed_form(fms_run(name)).memory
        if memory is not None and memory.peak_allocated_bytes is not None:
            said = ("analytic", memory.peak_allocated_bytes)
            yield _point(name, ALLOCATED, int(ROWS[name]["value_bytes"]), said)


def _paper_points() -> Iterator[Point]:
    """What the paper says to fit and not to fit, and what it says to be used where it does."""
    for name, row in ROWS.items():
        if not name.startswith("paper-"):
            continue
        card = load_device(row["gpu"])
        run = RunSpec(
            model=load_model(row["model"]), method=MethodSpec(name=row["method"], rank=int(row["rank"])),
            bs=int(row["bs"]), seq=int(row["seq"]),
        )  # fmt: skip
        for said in (predict_in_closed_form(run, [card]), simulate(run, card).prediction([card], largest_batch=False)):
            fits = float(row["metric"] != "oom")
            yield _point(name, VERDICT, fits, (said.engine, float(said.fit[0].fits)))
            if row["metric"] == "device_used":
                needed = said.fit[0].capacity_bytes - said.fit[0].headroom_bytes
                yield _point(name, USED, int(row["value_bytes"]), (said.engine, needed))


def _own(recorded: Record, quantity: str, measured: float, engine: str, predicted: float) -> Point:
    """Make a point of an own record."""
    return Point(
        source="own", name=recorded.name, device=recorded.device, method=recorded.case["method"], quantity=quantity,
        measured=measured, engine=engine, predicted=predicted,
        versions=", ".join(f"{name} {version}" for name, version in recorded.releases.items()),
    )  # fmt: skip


def _cpu_points(recorded: Record) -> Iterator[Point]:
    with kernels_of_known_size(recorded.data["threads"]):
        said = simulated_moments(recorded)
    yield _own(recorded, ALLOCATED, recorded_moments(recorded)["peak"], "simulate", said["peak"])


def _card_points(recorded: Record) -> Iterator[Point]:
    run, card, steady = run_of(recorded.case), load_device(recorded.device), recorded.steady
    found = simulate(run, card, timed=True)
    yield _own(recorded, ALLOCATED, steady["peak"], "simulate", found.replayed.allocated.size)
    yield _own(recorded, RESERVED, steady["peak_reserved"], "simulate", found.replayed.reserved.size)
    timeline = found.step_time(card, None).timeline
    if timeline is not None and "step_s" in recorded.data:
        yield _own(recorded, STEP, recorded.data["step_s"], "simulate", timeline.step_s)
    try:
        memory = predict_in_closed_form(run).memory
    except UnsupportedError:
        return
    if memory is not None and memory.peak_allocated_bytes is not None:
        yield _own(recorded, ALLOCATED, steady["peak"], "analytic", memory.peak_allocated_bytes)


def main() -> None:
    """Append every point to a file."""
    (path,) = sys.argv[1:]
    with Path(path).open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(point)) + "\n" for point in every_point())


if __name__ == "__main__":
    main()
