"""Measuring one configuration after the other, with what a results file already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorafa_prof.cli.measurement_file import MeasurementFile, Setup
from lorafa_prof.cli.progress import Progress, describe
from lorafa_prof.reports.measurement import outcome_line
from lorafa_prof.results import Measurement
from lorafa_prof.specs import RunSpec

if TYPE_CHECKING:
    from lorafa_prof.measure.isolate import Place
    from lorafa_prof.measure.stop import Stop


@dataclass(kw_only=True)
class Sweep:
    """Measures one configuration after the other."""

    runs: Sequence[RunSpec]
    options: Mapping[str, Any]
    peak_flops: Mapping[str, float | None]
    place: Place
    stop: Stop
    timeout_s: float | None
    file: MeasurementFile | None
    restart: bool
    progress: Progress
    seen: list[Measurement] = field(default_factory=list)
    """What has been measured, or was there already."""

    def go(self) -> None:
        """Measure until all is done or the end is requested.

        Raises:
            LorafaProfError: what the only configuration is refused for.
            BadInputError: the results file cannot be written.
        """
        for run in self.runs:
            if self.stop.requested:
                return
            if not self._have(run):
                self._measure(run)

    def _have(self, run: RunSpec) -> bool:
        """Return whether the results file has the answer."""
        if self.file is None or self.restart:
            return False
        entry = self.file.find(self._setup(run))
        if entry is None:
            return False
        self.seen.append(Measurement.from_json(entry))
        self.progress.skip(describe(run), f"kept from {self.file.path} ({entry['outcome']}); --restart measures anew")
        return True

    def _measure(self, run: RunSpec) -> None:
        from lorafa_prof.measure.isolate import measure_isolated

        self.progress.begin(describe(run))
        ended = measure_isolated(
            run, self._options(run), self.place, self.stop, timeout_s=self.timeout_s, on_stage=self.progress.stage
        )
        if ended.refusal is not None and len(self.runs) == 1:
            raise ended.refusal
        self.progress.end(outcome_line(ended.measurement))
        if ended.measurement.outcome == "interrupted" and not ended.began:
            return
        self.seen.append(ended.measurement)
        if self.file is not None:
            self.file.record(ended.measurement, self._setup(run))

    def _options(self, run: RunSpec) -> dict[str, Any]:
        return {**self.options, "peak_flops": self.peak_flops.get(run.products_dtype)}

    def _setup(self, run: RunSpec) -> Setup:
        environment = {**self.place.environment, "options": self._options(run)}
        return Setup(Measurement(outcome="ok", run=run, versions=self.place.versions, environment=environment))
