"""`lorafa_prof.preflight`: whether a Trainer's run fits its card, before the first step is taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lorafa_prof.api.answers import Predictions
from lorafa_prof.api.options import RunOptions
from lorafa_prof.api.trained_by import optimizer_of
from lorafa_prof.api.training import Training, training_of
from lorafa_prof.cards import named_card
from lorafa_prof.engines import predictor, simulations
from lorafa_prof.errors import BadInputError, DoesNotFitError, MissingComponentError, UnsupportedError
from lorafa_prof.specs import DeviceSpec, require_choice
from lorafa_prof.thresholds_asked import cards
from lorafa_prof.units import format_gib, parse_bytes

if TYPE_CHECKING:
    from typing import Unpack

    from transformers import TrainerCallback

    from lorafa_prof.results import Prediction, Threshold

Engine = Literal["auto", "analytic", "simulate"]
#: What PyTorch reads allocator settings from.
_ALLOC_CONF = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def preflight(
    trainer: Any,
    *,
    gpu: str | DeviceSpec | None = None,
    cap: str | int | None = None,
    engine: Engine = "auto",
    advice: bool = True,
    stop: bool = True,
    **options: Unpack[RunOptions],
) -> Predictions:
    """Say whether what a Trainer is about to do fits the card, and stop where it does not.

    The model is asked what it is (dtypes, attention, adapters, what is trained, how weights are stored), the arguments
    what they say; nothing of it is changed, moved or run.

    Args:
        trainer: a transformers `Trainer` (or a subclass of it, as TRL's), before or after `train` has begun.
        gpu: the card, by alias or JSON file or as a `DeviceSpec`; None: the CUDA device at hand.
        cap: memory for the allocator, in bytes or as "24GiB", where others use the card too.
        engine: "simulate": the real step of the installed releases on meta tensors, in seconds; "analytic": closed
            forms; "auto": the simulation, and closed forms for what it does not model.
        advice: also look for what would make it fit, each change judged by the same engine.
        stop: raise where it does not fit; False: return the answer, whose `fits` is False.
        **options: run options that count before what is read from the Trainer (see `RunOptions`). Without `seq`, the
            longest sequence is `max_length` of the arguments, or the longest `input_ids` of the training data, to which
            a batch is padded.

    Returns:
        The prediction, a sequence of one; sizes are integers of bytes.

    Raises:
        DoesNotFitError: it does not fit; the text says by how much and what would help. `prediction` and `threshold`
            are attributes of it.
        BadInputError: no card, no sequence length to be had, an option that there is not.
        UnsupportedError: what neither engine models: nothing is said then, and training may fit or not.
    """
    training = training_of(
        trainer.model, trainer.args, dataset=getattr(trainer, "train_dataset", None), optimizer=optimizer_of(trainer),
        options=options,
    )  # fmt: skip
    return _judged(training, _card(gpu, cap, trainer.args), engine=engine, advice=advice, stop=stop)


def preflight_callback(
    *,
    gpu: str | DeviceSpec | None = None,
    cap: str | int | None = None,
    engine: Engine = "auto",
    advice: bool = True,
    stop: bool = True,
    **options: Unpack[RunOptions],
) -> TrainerCallback:
    """Return a callback for a Trainer that does as `preflight` when the training begins, before its first step.

    Args:
        gpu, cap, engine, advice, stop: as `preflight` takes them.
        **options: as `preflight` takes them.

    Returns:
        A `transformers.TrainerCallback`; its `predictions` are the answer, None before the training has begun.

    Raises:
        MissingComponentError: transformers is not installed.
        DoesNotFitError: from `Trainer.train`, as `preflight` raises it.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingComponentError(f"a Trainer needs {error.name}: pip install 'lorafa-prof[torch]'") from None

    class PreflightCallback(transformers.TrainerCallback):
        """Asks whether the training fits, once, before its first step."""

        predictions: Predictions | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Ask, and stop the training by an exception where it does not fit."""
            loader = kwargs.get("train_dataloader")
            training = training_of(
                kwargs["model"], args, dataset=getattr(loader, "dataset", None), optimizer=kwargs.get("optimizer"),
                options=options,
            )  # fmt: skip
            self.predictions = _judged(training, _card(gpu, cap, args), engine=engine, advice=advice, stop=stop)

    return PreflightCallback()


# -- the card --------------------------------------------------------------------------------------------------------


def _card(gpu: str | DeviceSpec | None, cap: str | int | None, args: Any) -> DeviceSpec:
    """Return the card that was named, or the one that the Trainer runs on.

    Raises:
        BadInputError: none was named, and the Trainer runs on none.
    """
    limit = None if cap is None else parse_bytes(str(cap))
    if isinstance(gpu, str):
        return cards([gpu], limit)[0]
    if gpu is not None:
        return cards([], limit, [gpu])[0]
    return cards([], limit, [_card_at_hand(args)])[0]


def _card_at_hand(args: Any) -> DeviceSpec:
    device = args.device
    if device.type != "cuda":
        raise BadInputError(f"on which card? The Trainer runs on {device.type}: name one with gpu= (rtx4090, ...)")
    import torch

    found = torch.cuda.get_device_properties(device)
    environment = {
        "device": found.name, "total_bytes": found.total_memory, "compute_capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
    }  # fmt: skip
    card, _ = named_card(environment)
    assert card is not None, "its memory is known"
    return replace(card, total_bytes=found.total_memory)


# -- the verdict -----------------------------------------------------------------------------------------------------


def _judged(training: Training, card: DeviceSpec, *, engine: Engine, advice: bool, stop: bool) -> Predictions:
    require_choice("engine", engine, Engine)
    conf = next((os.environ[name] for name in _ALLOC_CONF if os.environ.get(name)), None)
    with _left_alone():
        prediction, remarks = _predicted(training, card, engine, conf)
        training.require_alike(prediction.parameters)
        [prediction] = training.files.on([prediction])
        answer = Predictions([prediction], remarks)
        if not stop or answer.fits:
            return answer
        threshold = _threshold(prediction, card, conf) if advice else None
    raise _refusal(prediction, threshold)


def _predicted(
    training: Training, card: DeviceSpec, engine: Engine, conf: str | None
) -> tuple[Prediction, Sequence[str]]:
    """Return the answer of the first engine that has one, and what the other is refused for."""
    if engine == "analytic":
        return predictor("analytic", [card])(training.run), ()
    try:
        return predictor("simulate", [card], conf)(training.run), ()
    except UnsupportedError as error:
        if engine == "simulate":
            raise
        refusal = str(error)
    return predictor("analytic", [card])(training.run), [f"by closed forms, since simulate says: {refusal}"]


def _threshold(prediction: Prediction, card: DeviceSpec, conf: str | None) -> Threshold:
    """Return the largest batch that fits, with advice for the one that was asked for."""
    from lorafa_prof.advice import with_advice
    from lorafa_prof.analytic.thresholds import ClosedForms
    from lorafa_prof.analytic.timer import Timer
    from lorafa_prof.thresholds import find_threshold

    forms, run = ClosedForms(), prediction.run
    judge = forms if prediction.engine == "analytic" else simulations(conf, forms.guess, lambda run, device: None)
    found = find_threshold(judge, run, "bs", card)
    asked = replace(found, first_oom=run.bs, at_first_oom=judge.verdict(run, card).edge(run.bs))
    return with_advice(judge, asked, card, forms.executed_flops, Timer().ratio)


def _refusal(prediction: Prediction, threshold: Threshold | None) -> DoesNotFitError:
    """Return the error, in words."""
    [fit] = prediction.fit
    run, lacking = prediction.run, -fit.headroom_bytes
    peak = f"its peak is in {prediction.memory.peak_moment} (engine {prediction.engine})"
    first = (
        f"a step of batch {run.bs} x {run.seq:,} tokens does not fit on {fit.device}: it lacks {format_gib(lacking)} "
        f"of {format_gib(fit.capacity_bytes)} GiB, {peak}; the largest batch that fits is {fit.max_bs}"
    )
    lines = [first]
    if threshold is not None:
        for change in threshold.advice:
            helps = "fits" if change.fits else "is not enough alone"
            lines.append(f"- {change.what} ({change.options}) saves {format_gib(change.saved_bytes)} GiB, and {helps}")
    error = DoesNotFitError("\n".join(lines))
    error.prediction, error.threshold = prediction, threshold
    return error


@contextlib.contextmanager
def _left_alone() -> Iterator[None]:
    """Leave a training's random numbers and its libraries' logging as they were: a check must not change it."""
    import logging
    import random
    import sys

    import numpy as np

    loggers = [logging.getLogger(name) for name in ("transformers", "peft", "bitsandbytes")]
    levels, torch = [logger.level for logger in loggers], sys.modules.get("torch")
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that libraries share
    of_torch = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        if torch is not None and of_torch is not None:
            torch.set_rng_state(of_torch)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
