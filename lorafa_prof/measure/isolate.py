"""Each configuration is measured in a process of its own, whose end, whatever it is, is an outcome and not a failure.

The process that starts them imports no torch and holds no device. It keeps the last measurement that a child has
reported, so that what was complete when the child died is not lost with it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lorafa_prof.errors import DeviceError, LorafaProfError
from lorafa_prof.measure.frames import Frame, Kind
from lorafa_prof.measure.process import Heard, converse
from lorafa_prof.measure.stop import Stop
from lorafa_prof.results import Measurement, Outcome, run_to_json
from lorafa_prof.specs import RunSpec

#: What runs in the measuring process.
CHILD = "lorafa_prof.measure.child"
#: Seconds in which the libraries are imported and the device answers; a driver that hangs never does.
LOOKUP_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """What there is to measure on."""

    environment: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the measurement of one configuration ended."""

    measurement: Measurement
    refusal: LorafaProfError | None = None
    """What the child could not be asked to do; the outcome is then "error"."""
    began: bool = True
    """Whether the child had reported anything."""


def find_place(
    options: Mapping[str, Any], stop: Stop, *, timeout_s: float = LOOKUP_S, child: str | None = None
) -> Place | None:
    """Return the device and the libraries that runs of these options would have; None where the end was requested.

    Raises:
        DeviceError: the device is not there, or does not answer.
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
    """
    heard = converse(child or CHILD, {"run": None, "options": dict(options)}, timeout_s=timeout_s, stop=stop)
    if place := _answer(heard, "place"):
        return Place(**place)
    if heard.ended_by == "stop":
        return None
    if heard.ended_by == "timeout":
        raise DeviceError(f"{options.get('device')} does not answer within {timeout_s:g} s")
    raise _refusal(heard) or DeviceError(f"{options.get('device')} cannot be used: {_death(heard)}")


def measure_isolated(
    run: RunSpec,
    options: Mapping[str, Any],
    place: Place,
    stop: Stop,
    *,
    timeout_s: float | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    child: str | None = None,
) -> Ended:
    """Measure `run` in a process of its own.

    Args:
        run: the configuration.
        options: fields of `lorafa_prof.measure.harness.Options`; they are kept in the measurement's environment.
        place: what is known of device and libraries should the child die before it tells.
        stop: ends the child when requested; the outcome is then "interrupted".
        timeout_s: seconds after which it is ended.
        on_stage: is told how far the child has come.
        child: the module that runs in the other process, `CHILD` unless given.
    """
    request = {"run": run_to_json(run), "options": dict(options)}
    heard = converse(child or CHILD, request, timeout_s=timeout_s, stop=stop, on_stage=on_stage)
    if done := _answer(heard, "done"):
        return Ended(measurement=_placed(Measurement.from_json(done), options, place))
    reported = _reported(heard)
    known = reported or Measurement(outcome="ok", run=run, versions=place.versions, environment={})
    refusal = _refusal(heard)
    outcome, text = _outcome(heard, timeout_s)
    ended = replace(known, outcome=outcome, error=text, exit_code=heard.exit_code)
    return Ended(measurement=_placed(ended, options, place), refusal=refusal, began=reported is not None)


def _reported(heard: Heard) -> Measurement | None:
    """Return the measurement as far as the child has told it."""
    body = _body(heard.measurement)
    if body is None:
        return None
    for further in filter(None, map(_body, heard.steps)):
        body["steps"] += further["steps"]
        body["spread"] = further["spread"]
    return Measurement.from_json(body)


def _placed(seen: Measurement, options: Mapping[str, Any], place: Place) -> Measurement:
    return replace(seen, environment={**place.environment, **seen.environment, "options": dict(options)})


def _refusal(heard: Heard) -> LorafaProfError | None:
    """Return the error of ours that the child answered with, with its exit code."""
    refused = _answer(heard, "refused")
    if refused is None:
        return None
    error = LorafaProfError(refused["text"])
    error.exit_code = refused["exit_code"]
    return error


def _outcome(heard: Heard, timeout_s: float | None) -> tuple[Outcome, str]:
    """Return how a run ended that did not end well, and what is to be said about it."""
    if refused := _answer(heard, "refused"):
        return "error", refused["text"]
    if failed := _answer(heard, "failed"):
        return failed["outcome"], failed["text"]
    if heard.ended_by == "stop":
        return "interrupted", f"interrupted{_reached(heard)}"
    if heard.ended_by == "timeout":
        return "timeout", f"not done after {timeout_s:g} s{_reached(heard)}"
    return "killed" if (heard.exit_code or 0) < 0 else "error", _death(heard)


def _death(heard: Heard) -> str:
    """Say how a process ended that left no answer."""
    if heard.exit_code is not None and heard.exit_code < 0:
        text = f"killed by {_signal_name(-heard.exit_code)}"
        if -heard.exit_code == getattr(signal, "SIGKILL", None):
            text += " (perhaps the kernel's OOM killer: the host's memory was full)"
    else:
        text = f"the measuring process left with exit code {heard.exit_code} and without a result"
    words = f"\n{heard.last_words}" if heard.last_words else ""
    return f"{text}{_reached(heard)}{words}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _reached(heard: Heard) -> str:
    return f", after: {heard.stage}" if heard.stage else ""


def _answer(heard: Heard, kind: Kind) -> Any:
    """Return what the child's last word holds, if it is of this kind."""
    return _body(heard.answer) if heard.answer is not None and heard.answer.kind == kind else None


def _body(frame: Frame | None) -> Any:
    try:
        return None if frame is None else frame.body()
    except ValueError:  # another thread of the child wrote into it
        return None
