"""The engine that runs the real step, imported when a command asks for it, and told what the command line says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lorafa_prof.errors import MissingComponentError

if TYPE_CHECKING:
    from lorafa_prof.results import Prediction
    from lorafa_prof.specs import DeviceSpec, RunSpec


#: Libraries that warn about what a simulation does on purpose (casts, missing kernels of the CPU, empty tokenizers).
_TALKATIVE = ("bitsandbytes", "transformers", "peft")


def simulating(
    devices: Sequence[DeviceSpec], conf: str | None, snapshot: str | None
) -> Callable[[RunSpec], Prediction]:
    """Return a function that predicts a run with the engine `simulate`.

    Args:
        devices: cards to hold it against, each with its own kernels; the memory shown is that of the first.
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.
        snapshot: a file that a memory snapshot of the run is written to; "-": stdout.

    Raises:
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
        BadInputError: settings that PyTorch would refuse.
    """
    from lorafa_prof.cli.emit import write_stdout_bytes
    from lorafa_prof.reports.output import write_bytes_atomically
    from lorafa_prof.simulate.allocator.settings import AllocatorSettings

    settings = AllocatorSettings.parse(conf) if conf else None
    _quieten()
    try:
        from lorafa_prof.simulate.engine import simulate
    except ModuleNotFoundError as error:
        raise MissingComponentError(f"--engine simulate needs {error.name}: pip install 'lorafa-prof[torch]'") from None

    _quieten()  # again, since transformers sets its level when it is imported

    def predict(run: RunSpec) -> Prediction:
        simulation = simulate(run, devices[0] if devices else None, settings=settings)
        if snapshot:
            data = simulation.snapshot()
            write_stdout_bytes(data) if snapshot == "-" else write_bytes_atomically(snapshot, data)
        return simulation.prediction(devices)

    return predict


def _quieten() -> None:
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
