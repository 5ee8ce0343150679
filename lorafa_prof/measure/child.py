"""The measuring process: asked on its stdin, it answers in frames, and leaves when nobody listens any more.

`lorafa_prof.measure.isolate` starts it, one for each configuration, so that neither a full device nor a crash takes
another configuration along.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn, Protocol

from lorafa_prof.errors import LorafaProfError, MissingComponentError
from lorafa_prof.measure.endings import outcome_of, said, stage_of
from lorafa_prof.measure.frames import write_frame
from lorafa_prof.results import Measurement, run_from_json
from lorafa_prof.results.plain import plain
from lorafa_prof.specs import RunSpec

_EXTRA = ("torch", "transformers", "peft")


class Worker(Protocol):
    """What really measures."""

    def place(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the "environment" and the "versions" that runs of these options would have."""
        ...

    def measure(self, run: RunSpec, options: Mapping[str, Any], report: Callable[[Measurement], None]) -> Measurement:
        """Measure, and report the measurement as far as it has come."""
        ...


class Harness:
    """Measures with `lorafa_prof.measure.harness`."""

    def __init__(self) -> None:
        try:
            from lorafa_prof.measure import devices, harness
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            raise MissingComponentError(f"measuring needs {error.name}: pip install 'lorafa-prof[torch]'") from None
        self._harness, self._devices = harness, devices

    def place(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return what there is to measure on."""
        from lorafa_prof.workload.versions import installed_versions

        versions = installed_versions()
        with contextlib.suppress(MissingComponentError):
            versions = installed_versions(quantized=True)
        device = self._devices.open_device(options["device"], options.get("cap_bytes"))
        return {
            "environment": device.environment(), "versions": {**versions, "python": platform.python_version()}
        }  # fmt: skip

    def measure(self, run: RunSpec, options: Mapping[str, Any], report: Callable[[Measurement], None]) -> Measurement:
        """Measure one run in this process."""
        return self._harness.measure(run, self._harness.Options(**options), report)


def main(worker: Callable[[], Worker] = Harness) -> NoReturn:
    """Answer one request, and leave.

    The process goes without Python's farewell: destructors of CUDA libraries may hang or crash, and all is said.
    """
    faulthandler.enable()
    asked, frames = _take_over_streams()
    request = asked.readline()
    _leave_with_parent(asked)
    code = _answer(json.loads(request), worker, frames) if request else 1
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return stdin and stdout as streams of our own.

    To everything else, and to processes that are started from here, stdin is empty and stdout is stderr.
    """
    asked, frames = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return asked, frames


def _leave_with_parent(asked: BinaryIO) -> None:
    """See that this process does not outlive the one that started it, which holds the other end of `asked`.

    Linux kills it by itself. Elsewhere a thread waits for the end of the pipe; it cannot run while a library keeps the
    interpreter's lock, which is why it is the second choice.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def wait() -> None:
        while asked.read(1024):
            pass
        if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _answer(request: Mapping[str, Any], worker: Callable[[], Worker], frames: BinaryIO) -> int:
    """Do what is asked, say how it went, and return the exit code."""
    options = request["options"]
    try:
        if request["run"] is None:
            write_frame(frames, "place", worker().place(options))
        else:
            seen = worker().measure(run_from_json(request["run"]), options, _reporter(options, frames))
            write_frame(frames, "done", seen.to_json())
    except LorafaProfError as error:
        write_frame(frames, "refused", {"text": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
        write_frame(frames, "failed", {"outcome": outcome_of(error), "text": said(error)})
        return 1
    return 0


def _reporter(options: Mapping[str, Any], frames: BinaryIO) -> Callable[[Measurement], None]:
    """Return what tells the parent of a measurement; of one that has grown by steps alone, no more than these."""
    told: list[Measurement] = []

    def report(seen: Measurement) -> None:
        before = told[-1] if told else None
        write_frame(frames, "stage", stage_of(seen, options))
        if before is not None and before == replace(seen, steps=seen.steps[: len(before.steps)], spread=before.spread):
            further = seen.steps[len(before.steps) :]
            write_frame(frames, "steps", plain({"steps": further, "spread": seen.spread}))
        else:
            write_frame(frames, "measurement", seen.to_json())
        told[:] = [seen]

    return report


if __name__ == "__main__":
    main()
