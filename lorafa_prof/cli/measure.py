"""`lorafa-prof measure`: real training steps, each configuration in a process of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from lorafa_prof.cli.configuration import configuration
from lorafa_prof.cli.emit import output_options
from lorafa_prof.cli.measurement_file import MeasurementFile, Setup, emit_measurements, is_results_file
from lorafa_prof.cli.measuring import Sweep
from lorafa_prof.cli.options import limit_options, methods_option, step_options, sweep_options
from lorafa_prof.cli.progress import Progress, describe
from lorafa_prof.errors import BadInputError, DeviceError, LorafaProfError, UnknownNameError
from lorafa_prof.reports.measurement import outcome_line
from lorafa_prof.results import Measurement
from lorafa_prof.runs import name_list, run_spec
from lorafa_prof.specs import RunSpec
from lorafa_prof.units import parse_bytes

if TYPE_CHECKING:
    from lorafa_prof.measure.isolate import Place

#: Ends of one configuration alone that are no result: exit code 4.
_FAILURES = ("error", "killed", "timeout")


@click.command()
@sweep_options
@methods_option(default=("lora-fa",))
@click.option("--device", default="cuda", show_default=True, metavar="D", help="cuda, cuda:1, ... or cpu.")
@step_options(fewest=1)
@limit_options("a configuration")
@click.option(
    "--gpu",
    metavar="G",
    help="Card whose peak FLOP/s MFU is of (alias or JSON file).  [default: the one that measures]",
)
@click.option("--restart", is_flag=True, help="Measure again what FILE already has a result of.")
@output_options
def command(
    methods: tuple[str, ...],
    device: str,
    steps: int,
    warmup: int,
    trace: bool,
    cap: str | None,
    gpu: str | None,
    timeout_s: float | None,
    restart: bool,
    format: str | None,
    output: str | None,
    **run_options: Any,
) -> None:
    """Measure real training steps: memory by part and phase, step time, MFU.

    --bs, --seq, --rank and --method take comma lists; every combination is measured in a process of its own, so that
    one that runs out of memory or crashes is a result, and the next goes on. With -o, FILE holds all results as JSON
    after each configuration; the same command goes on where it was interrupted.

    \b
    Examples:
      lorafa-prof measure --model llama2-7b --bs 1,2,4 --method lora,lora-fa -o run.json
      lorafa-prof measure --model ./my-model --device cpu --seq 128
      lorafa-prof measure --model qwen3-8b --cap 24GiB --timeout 600 -o run.json
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"
    from lorafa_prof.measure.isolate import find_place
    from lorafa_prof.measure.stop import Stop

    configuration()
    options = {
        "device": device, "steps": steps, "warmup": warmup, "trace": trace,
        "cap_bytes": None if cap is None else parse_bytes(cap),
    }  # fmt: skip
    runs = _runs(name_list(methods), **run_options)
    progress = Progress(len(runs))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        ranks = _Ranks(runs=runs, options=options, gpu=gpu, timeout_s=timeout_s, progress=progress)
        ranks.go(format, output)
        return
    file = MeasurementFile(output, progress.say) if output and is_results_file(format, output) else None
    with Stop() as stop:
        place = find_place(options, stop)
        if place is None:
            raise KeyboardInterrupt
        peaks = _peak_flops(gpu, place, progress)
        sweep = Sweep(
            runs=runs, options=options, peak_flops=peaks, place=place, stop=stop, timeout_s=timeout_s, file=file,
            restart=restart, progress=progress,
        )  # fmt: skip
        sweep.go()
        if file is None and sweep.seen:
            emit_measurements(sweep.seen, format, output)
    if stop.requested:
        raise KeyboardInterrupt
    if len(runs) == 1 and sweep.seen and sweep.seen[0].outcome in _FAILURES:
        raise DeviceError(outcome_line(sweep.seen[0]))


def _runs(methods: Sequence[str], *, model: str, bs: Any, seq: Any, rank: Any, **options: Any) -> list[RunSpec]:
    """Return every combination; full fine-tuning has no rank, and is measured at the first alone.

    Raises:
        BadInputError: a value out of range, before anything is measured.
    """
    from lorafa_prof.engines import runnable_model

    spec = runnable_model(model, trust=options.pop("trust_remote_code"))
    return [
        run_spec(spec, method, bs=one_bs, seq=one_seq, rank=one_rank, **options)
        for method, one_bs, one_seq in itertools.product(methods, bs, seq)
        for one_rank in (rank[:1] if method == "full" else rank)
    ]


def _peak_flops(gpu: str | None, place: Place, progress: Progress) -> Mapping[str, float | None]:
    """Return the peaks of the card that was named, or of the one that is there; none where it is not known."""
    from lorafa_prof.catalog import load_device

    if gpu is not None:
        return load_device(gpu).peak_flops
    if place.environment.get("device_type") != "cuda":
        return {}
    try:
        return load_device(str(place.environment.get("device"))).peak_flops
    except UnknownNameError:
        progress.say(f"no MFU: the peak of {place.environment.get('device')} is not known; name a card with --gpu")
        return {}


@dataclass(kw_only=True)
class _Ranks:
    """Measures one configuration in the processes that torchrun has started, of which this is one; rank 0 speaks."""

    runs: Sequence[RunSpec]
    options: Mapping[str, Any]
    gpu: str | None
    timeout_s: float | None
    progress: Progress

    def go(self, format: str | None, output: str | None) -> None:
        """Measure, and on rank 0 keep the measurements of all ranks in the results file, or print them.

        Raises:
            LorafaProfError: on rank 0, what cannot be measured; a rank that failed.
            KeyboardInterrupt: on rank 0, when it was interrupted.
        """
        try:
            self._go(format, output)
        except LorafaProfError:
            if os.environ["RANK"] == "0":
                raise

    def _go(self, format: str | None, output: str | None) -> None:
        if len(self.runs) != 1:
            raise BadInputError(f"under torchrun one configuration is measured at a time, not {len(self.runs)}")
        is_first, file = os.environ["RANK"] == "0", None
        if is_first and output and is_results_file(format, output):
            file = MeasurementFile(output, self.progress.say)
        seen = self._measured(is_first)
        if seen is None:
            return
        if file is None:
            emit_measurements(seen, format, output)
        else:
            for m in seen:
                file.record(m, Setup(m))
        outcomes = {m.outcome for m in seen}
        if "interrupted" in outcomes:
            raise KeyboardInterrupt
        # What was only stopped has failed because of another.
        failed = sorted(
            (m for m in seen if m.outcome in _FAILURES), key=lambda m: (m.error or "").startswith("stopped")
        )
        if failed and "oom" not in outcomes:
            raise DeviceError(f"rank {failed[0].rank}: {outcome_line(failed[0])}")

    def _measured(self, is_first: bool) -> list[Measurement] | None:
        from lorafa_prof.measure.child import Harness

        Harness()  # says which package is missing
        from lorafa_prof.measure.distributed import measure_in_group
        from lorafa_prof.measure.endings import stage_of
        from lorafa_prof.measure.harness import Options

        if is_first:
            self.progress.begin(f"{describe(self.runs[0])}, {os.environ['WORLD_SIZE']} processes")
        tell = self.progress.stage if is_first else lambda text: None
        seen = measure_in_group(
            self.runs[0], Options(**self.options), lambda m: tell(stage_of(m, self.options)), timeout_s=self.timeout_s
        )
        if seen is None:
            return None
        for m in seen:
            self.progress.end(f"rank {m.rank}: {outcome_line(m)}")
        return [self._rated(m) for m in seen]

    def _rated(self, m: Measurement) -> Measurement:
        """Return the measurement with MFU, and with the options as the ones of other measurements have them."""
        from lorafa_prof.measure.isolate import Place
        from lorafa_prof.measure.timing import with_peak

        run = self.runs[0]
        peaks = _peak_flops(self.gpu, Place(environment=m.environment), self.progress)
        peak = peaks.get("bf16" if run.amp else run.dtype)
        environment = {**m.environment, "options": {**self.options, "peak_flops": peak}}
        return replace(m, throughput=with_peak(m.throughput, peak), environment=environment)
