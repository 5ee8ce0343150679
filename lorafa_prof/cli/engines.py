"""The engine that runs the real step, imported when a command asks for it, and told what the command line says."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lorafa_prof.errors import MissingComponentError

if TYPE_CHECKING:
    from lorafa_prof.results import Prediction
    from lorafa_prof.specs import DeviceSpec, RunSpec
    from lorafa_prof.thresholds import Engine, Guess


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
    with _importing_the_real_step():
        from lorafa_prof.simulate.engine import simulate

    def predict(run: RunSpec) -> Prediction:
        simulation = simulate(run, devices[0] if devices else None, settings=settings)
        if snapshot:
            data = simulation.snapshot()
            write_stdout_bytes(data) if snapshot == "-" else write_bytes_atomically(snapshot, data)
        return simulation.prediction(devices)

    return predict


def simulations(conf: str | None, guess: Guess, on_trial: Callable[[RunSpec, DeviceSpec], None]) -> Engine:
    """Return the engine `simulate` as one that is searched for thresholds.

    Args:
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.
        guess: where to begin to look.
        on_trial: told of each step before it is simulated.

    Raises:
        as `simulating`.
    """
    from lorafa_prof.simulate.allocator.settings import AllocatorSettings

    settings = AllocatorSettings.parse(conf) if conf else None
    with _importing_the_real_step():
        from lorafa_prof.simulate.searching import Simulations
    return Simulations(settings, guess, on_trial)


def simulate_as_measured(run: RunSpec, device: DeviceSpec | None, conf: str | None) -> Prediction:
    """Predict a run with the engine `simulate` for the card that it was measured on, and judge whether it fits there.

    Args:
        run: the configuration.
        device: the card, with the memory that the run could use; None: not known.
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF had them.

    Raises:
        as `simulating`.
    """
    from lorafa_prof.simulate.allocator.settings import AllocatorSettings

    with _importing_the_real_step():
        from lorafa_prof.simulate.engine import simulate
    settings = AllocatorSettings.parse(conf) if conf else None
    return simulate(run, device, settings=settings).prediction([device] if device else [], largest_batch=False)


def simulate_on_cpu(run: RunSpec, threads: int) -> Prediction:
    """Predict what a run takes on the CPU, in so many threads.

    Raises:
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
    """
    with _importing_the_real_step():
        from lorafa_prof.simulate.on_cpu import predict_on_cpu
    return predict_on_cpu(run, threads)


@contextlib.contextmanager
def _importing_the_real_step() -> Iterator[None]:
    """Say how to install what an import lacks, and keep the libraries from talking."""
    _quieten()
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingComponentError(f"--engine simulate needs {error.name}: pip install 'lorafa-prof[torch]'") from None
    _quieten()  # again, since transformers sets its level when it is imported


def _quieten() -> None:
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
