"""The engines by name: imported when they are asked for, so that one that is not costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from lorafa_prof.errors import BadInputError, MissingComponentError, UnknownNameError, UnsupportedError
from lorafa_prof.specs import require_choice

if TYPE_CHECKING:
    from lorafa_prof.lengths import Lengths
    from lorafa_prof.results import Prediction
    from lorafa_prof.results.step_record import StepRecord
    from lorafa_prof.specs import DeviceSpec, ModelSpec, RunnableModel, RunSpec, Task
    from lorafa_prof.speed.links import Link
    from lorafa_prof.speed.profile import DeviceProfile
    from lorafa_prof.thresholds import Engine, Guess


class PredictOnCard(Protocol):
    """A function that predicts one run on one card (None: on none), largest batch and step time where asked for."""

    def __call__(
        self, run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool, timed: bool = False
    ) -> Prediction:
        """Return the prediction."""
        ...


#: Those that predict.
ENGINES = ("analytic", "simulate")
#: Libraries that warn about what a simulation does on purpose (casts, missing kernels of the CPU, empty tokenizers).
_TALKATIVE = ("bitsandbytes", "transformers", "peft")


def predictor(
    engine: str,
    devices: Sequence[DeviceSpec],
    conf: str | None = None,
    snapshot: Callable[[bytes], object] | None = None,
    profile: DeviceProfile | None = None,
    lengths: Lengths | None = None,
    blocks: float = 0.0,
    link: Link | None = None,
) -> Callable[[RunSpec], Prediction]:
    """Return a function that predicts a run.

    Args:
        engine: "analytic" or "simulate".
        devices: cards to hold it against.
        conf: allocator settings, as `simulating` takes them.
        snapshot: as `simulating` takes it.
        profile: by which steps are timed: of one of the devices, or of the CPU, which then is what is simulated.
        lengths: a data set of which the batches of an epoch are made; None: every batch is the same.
        blocks: closed forms count the allocator's blocks where they could add more than this share of the peak.
        link: between several cards; None: theirs, where it is known.

    Raises:
        as `simulating`.
        BadInputError: a card's settings, or closed forms, beside the profile of a CPU; a profile beside lengths.
        UnknownNameError: no such engine.
    """
    require_choice("engine", engine, ENGINES)
    if lengths is not None and profile is not None:
        raise BadInputError("--profile is for step times, which are not predicted with --lengths")
    if engine == "analytic":
        if profile is not None and profile.kind == "cpu":
            raise BadInputError("the profile is of a CPU, and closed forms are of cards: --engine simulate")
        return _closed_forms(devices, profile, lengths, blocks, link)
    if profile is not None and profile.kind == "cpu":
        if conf or snapshot is not None:
            raise BadInputError("--snapshot and allocator settings are a card's; the profile is of a CPU")
        threads = profile.environment.get("threads")
        return lambda run: simulate_on_cpu(run, threads if isinstance(threads, int) else 1, profile)
    return simulating(devices, conf, snapshot, profile, lengths, link)


def _closed_forms(
    devices: Sequence[DeviceSpec],
    profile: DeviceProfile | None,
    lengths: Lengths | None,
    blocks: float,
    link: Link | None,
) -> Callable[[RunSpec], Prediction]:
    if lengths is None:
        from lorafa_prof.analytic import predict

        return lambda run: predict(run, devices, timed=bool(devices), profile=profile, blocks=blocks, link=link)
    from lorafa_prof.analytic.lengths import EpochForms

    forms = EpochForms(lengths)
    return lambda run: forms.predict(run, devices)


def profile_in(path: str, devices: list[DeviceSpec]) -> DeviceProfile:
    """Return the profile in a file; the card that it is of joins the devices where none was named.

    Raises:
        BadInputError: a profile of none of the devices, or of a card that the catalog does not know.
    """
    from lorafa_prof.catalog import load_device
    from lorafa_prof.speed.profile_file import read_profile

    found = read_profile(path)
    if found.kind == "cpu":
        if devices:
            raise BadInputError(f"{path}: a profile of a CPU ({found.full_name}), which goes without --gpu")
    elif not devices:
        try:
            devices.append(load_device(found.name))
        except UnknownNameError as error:
            raise BadInputError(f"{path}: {error}; describe it in a JSON file of that name, for --gpu") from error
    elif found.name not in [device.name for device in devices]:
        named = ", ".join(device.name for device in devices)
        raise BadInputError(f"{path}: a profile of {found.name}, which --gpu does not name ({named})")
    return found


def link_of(text: str | None, gpus: int) -> Link | None:
    """Return what the user says that links so many cards; None where nothing is said.

    Raises:
        BadInputError: not a rate, or there is one card.
    """
    from lorafa_prof.speed.links import read_link

    if text is not None and gpus == 1:
        raise BadInputError(
            "--link is between several cards: say how many with --gpus, and how they share with --shard"
        )
    return None if text is None else read_link(text)


def card_profile_in(path: str, devices: list[DeviceSpec]) -> DeviceProfile:
    """Return the profile in a file as `profile_in` does, if it is of a card.

    Raises:
        as `profile_in`.
        BadInputError: the profile of a CPU.
    """
    found = profile_in(path, devices)
    if found.kind == "cpu":
        raise BadInputError(f"{path}: a profile of a CPU ({found.full_name}), and this is about cards")
    return found


def simulating(
    devices: Sequence[DeviceSpec],
    conf: str | None,
    snapshot: Callable[[bytes], object] | None = None,
    profile: DeviceProfile | None = None,
    lengths: Lengths | None = None,
    link: Link | None = None,
) -> Callable[[RunSpec], Prediction]:
    """Return a function that predicts a run with the engine `simulate`.

    Args:
        devices: cards to hold it against, each with its own kernels; the memory shown is that of the first.
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.
        snapshot: is given a memory snapshot of the run.
        profile: of the card of its name, by which its step is timed; the others have their default profiles.
        lengths: a data set of which the batches of an epoch are made; None: every batch is the same.
        link: between several cards; None: theirs, where it is known.

    Raises:
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
        BadInputError: settings that PyTorch would refuse.
    """
    from lorafa_prof.allocator.settings import AllocatorSettings

    settings = AllocatorSettings.parse(conf) if conf else None
    device = devices[0] if devices else None
    with _importing_the_real_step():
        from lorafa_prof.simulate.engine import Simulation, simulate

    def simulated(run: RunSpec) -> Simulation:
        if lengths is None:
            return simulate(run, device, settings=settings, timed=bool(devices))
        from lorafa_prof.analytic.lengths import EpochForms
        from lorafa_prof.simulate.lengths import simulate_epoch

        return simulate_epoch(run, lengths, device, settings=settings, estimate=EpochForms(lengths).estimate)

    def predict(run: RunSpec) -> Prediction:
        simulation = simulated(run)
        if snapshot is not None:
            snapshot(simulation.snapshot())
        return simulation.prediction(devices, profile=profile, link=link)

    return predict


def runnable_model(name: str, *, trust: bool) -> ModelSpec | RunnableModel:
    """Return the model that the user calls `name`: as the catalog knows it, or as transformers alone does.

    Args:
        name: alias, hub id or path.
        trust: run code that lies in the model's folder.

    Raises:
        UnsupportedError: transformers has no such type, or none of its models can be trained here.
        BadInputError: a configuration that cannot be read or used.
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
    """
    from lorafa_prof.catalog import find_config
    from lorafa_prof.catalog.json_files import one_line

    found = find_config(name)
    if not (trust and found.config.get("auto_map")):
        with contextlib.suppress(UnsupportedError):
            return found.spec()
    with _importing_the_real_step():
        from lorafa_prof.workload import architectures
    shown = one_line(found.name, limit=len(found.name))
    return architectures.runnable_model(shown, found.config, folder=found.folder, trust=trust)


def model_of_config(name: str, config: dict[str, Any], task: Task) -> ModelSpec | RunnableModel:
    """Return the model of a configuration that is at hand, as the catalog knows it, or as transformers alone does.

    Args:
        name: what it is called.
        config: as a config.json has it.
        task: what it is trained for.

    Raises:
        UnsupportedError: no model of it can be trained here.
        BadInputError: a configuration that cannot be used.
    """
    from lorafa_prof.catalog import spec_from_config

    with contextlib.suppress(UnsupportedError):
        return spec_from_config(name, config, task=task)
    with _importing_the_real_step():
        from lorafa_prof.workload import architectures
    return architectures.runnable_model(name, config, folder=None, trust=False)


def model_for(engine: str, name: str, *, trust: bool) -> ModelSpec | RunnableModel:
    """Return the model that the user calls `name`, as an engine needs it.

    Args:
        engine: "analytic", whose closed forms need a model that the catalog knows, or one that runs the real step.
        name: alias, hub id or path.
        trust: run code that lies in the model's folder.

    Raises:
        UnsupportedError: a model that the engine does not know.
        BadInputError: a configuration that cannot be read or used; trust in code that the engine does not run.
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
    """
    if engine != "analytic":
        return runnable_model(name, trust=trust)
    if trust:
        raise BadInputError("--trust-remote-code goes with --engine simulate: closed forms run no code of a model")
    from lorafa_prof.catalog import load_model

    return load_model(name)


def simulations(
    conf: str | None, guess: Guess, on_trial: Callable[[RunSpec, DeviceSpec], None], lengths: Lengths | None = None
) -> Engine:
    """Return the engine `simulate` as one that is searched for thresholds.

    Args:
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.
        guess: where to begin to look.
        on_trial: told of each step before it is simulated.
        lengths: a data set of which the batches of an epoch are made; None: every batch is the same.

    Raises:
        as `simulating`.
    """
    from lorafa_prof.allocator.settings import AllocatorSettings

    settings = AllocatorSettings.parse(conf) if conf else None
    with _importing_the_real_step():
        from lorafa_prof.simulate.searching import EpochSimulations, Simulations
    if lengths is None:
        return Simulations(settings, guess, on_trial)
    from lorafa_prof.analytic.lengths import EpochForms

    return EpochSimulations(lengths, EpochForms(lengths).estimate, settings, guess, on_trial)


def simulate_as_measured(
    run: RunSpec, device: DeviceSpec | None, conf: str | None, profile: DeviceProfile | None = None
) -> Prediction:
    """Predict a run with the engine `simulate` for the card that it was measured on, and judge whether it fits there.

    Args:
        run: the configuration.
        device: the card, with the memory that the run could use; None: not known.
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF had them.
        profile: of the card, by which its step is timed; None: its default one.

    Raises:
        as `simulating`.
    """
    from lorafa_prof.allocator.settings import AllocatorSettings

    with _importing_the_real_step():
        from lorafa_prof.simulate.engine import simulate
    settings = AllocatorSettings.parse(conf) if conf else None
    simulation = simulate(run, device, settings=settings, timed=device is not None)
    return simulation.prediction([device] if device else [], largest_batch=False, profile=profile)


def recorded_step(run: RunSpec, device: DeviceSpec | None, conf: str | None) -> StepRecord:
    """Simulate a run in this environment and return what each operation of a step allocates.

    Args:
        run: the configuration.
        device: the card whose kernels are simulated; None: one before Hopper.
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.

    Raises:
        as `simulating`.
    """
    from lorafa_prof.allocator.settings import AllocatorSettings

    with _importing_the_real_step():
        from lorafa_prof.simulate.engine import simulate
        from lorafa_prof.simulate.step_records import step_record
    return step_record(simulate(run, device, settings=AllocatorSettings.parse(conf) if conf else None))


def simulating_on_cards(profile: DeviceProfile | None = None, link: Link | None = None) -> PredictOnCard:
    """Return a function that predicts a run with the engine `simulate` for one card (None: for none).

    Asked for the largest batch as well, it takes more recordings. Cards on which the same kernels run share them.

    Args:
        profile: of the card of its name, by which its steps are timed; the others have their default profiles.
        link: between several cards; None: theirs, where it is known.

    Raises:
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
    """
    with _importing_the_real_step():
        from lorafa_prof.simulate.engine import Simulation, device_traits, simulate
        from lorafa_prof.simulate.recordings import Recordings
    recordings = Recordings(most=8)
    known: dict[tuple[object, ...], Simulation] = {}

    def predict(run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool, timed: bool = False) -> Prediction:
        key = (run, device_traits(device), timed)
        if key not in known:
            known.clear()
            known[key] = simulate(run, device, timed=timed, recordings=recordings)
        on_card = replace(known[key], device=device)
        return on_card.prediction([device] if device else [], largest_batch=largest_batch, profile=profile, link=link)

    return predict


def simulate_on_cpu(run: RunSpec, threads: int, profile: DeviceProfile | None = None) -> Prediction:
    """Predict what a run takes on the CPU, in so many threads; how long by a profile of it, where one is given.

    Raises:
        MissingComponentError: PyTorch, transformers or PEFT is not installed; the text holds the command.
    """
    with _importing_the_real_step():
        from lorafa_prof.simulate.on_cpu import predict_on_cpu
    return predict_on_cpu(run, threads, profile)


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
    import logging  # the libraries have loaded it by now; closed forms do without

    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
