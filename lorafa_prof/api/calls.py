"""`lorafa_prof.predict` and `lorafa_prof.oom`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lorafa_prof.api.answers import Predictions, Thresholds
from lorafa_prof.api.options import Path, RunOptions, asked
from lorafa_prof.engines import link_of, predictor, profile_in, simulations
from lorafa_prof.errors import BadInputError
from lorafa_prof.runs import for_each_method, name_list
from lorafa_prof.specs import DeviceSpec, RunSpec, require_choice
from lorafa_prof.thresholds_asked import Question, length_to_begin_with, profiled_cards, timer_by
from lorafa_prof.units import parse_bytes

if TYPE_CHECKING:
    from typing import Unpack

    from lorafa_prof.results import Axis

Engine = Literal["analytic", "simulate"]
#: Tokens where nothing says how many, as for `predict`.
_LENGTH = RunSpec.__dataclass_fields__["seq"].default
Cards = str | DeviceSpec | Sequence[str | DeviceSpec]


def predict(
    model: str | None = None,
    *,
    method: str | Sequence[str] | None = None,
    engine: Engine = "analytic",
    gpus: Cards = (),
    config: Path | Sequence[Path] = (),
    trust_remote_code: bool = False,
    alloc_conf: str | None = None,
    profile: str | None = None,
    link: str | None = None,
    **options: Unpack[RunOptions],
) -> Predictions:
    """Predict the memory of one training step, part by part, and whether it fits: `lorafa-prof predict`.

    Args:
        model: alias, hub id, or path of a config.json or its folder; None: the one that `config` names.
        method: one method or several; None: full, lora, lora-fa, qlora and vera, those that cannot be had left out.
        engine: "analytic": closed forms, without PyTorch; "simulate": the real step on meta tensors.
        gpus: cards to hold it against, by alias or JSON file, or as a `DeviceSpec`.
        config: configuration files of other tools, whose options count where this call says nothing.
        trust_remote_code: run Python code that lies in the model's folder (engine "simulate").
        alloc_conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them (engine "simulate").
        profile: a file that `lorafa-prof calibrate` wrote, for step times on its device.
        link: what each of several cards can send, as "25GB/s"; None: what is known of the cards.
        **options: see `RunOptions`.

    Returns:
        A sequence with a `Prediction` a method. `memory` has integers of bytes at the peak of a GPU, `throughput` FLOPs
        (and for one card seconds) of a step, `parameters` elements, `fit` a verdict a card; each says
        what it assumes and what it does not model. What the figures come from: docs/analytic.md and docs/simulate.md.

    Raises:
        BadInputError: a name or value that is none, or options that exclude each other.
        UnsupportedError: what the engine does not model.
        MissingComponentError: the engine needs what is not installed; the text holds the command.
    """
    require_choice("engine", engine, Engine)
    if engine == "analytic" and alloc_conf is not None:
        raise BadInputError("alloc_conf goes with engine='simulate'")
    question = asked(model, method, config, options, engine=engine, trust=trust_remote_code)
    devices, remarks = named_devices(gpus), list[str]()
    measured = None if profile is None else profile_in(profile, devices)
    between = link_of(link, question.options.get("gpus", 1))
    answer = predictor(engine, devices, alloc_conf, profile=measured, link=between)
    found = for_each_method(question.methods, lambda name: answer(question.run(name)), remarks.append)
    return Predictions(question.files.on(found), remarks)


def oom(
    model: str | None = None,
    *,
    axis: Axis = "bs",
    method: str | Sequence[str] | None = None,
    engine: Engine = "analytic",
    gpus: Cards = (),
    cap: str | int | None = None,
    advice: bool = True,
    config: Path | Sequence[Path] = (),
    trust_remote_code: bool = False,
    alloc_conf: str | None = None,
    profile: str | None = None,
    link: str | None = None,
    **options: Unpack[RunOptions],
) -> Thresholds:
    """Find the largest batch, sequence or rank that fits, and what makes the next one fit: `lorafa-prof oom`.

    Args:
        model: as `predict` takes it.
        axis: "bs", "seq" or "rank": what is raised until it does not fit.
        method: as `predict` takes it.
        engine: as `predict` takes it.
        gpus: cards, as `predict` takes them; "all": every card of the catalog.
        cap: memory for the allocator, in bytes or as "24GiB"; alone, or as a limit on the cards.
        advice: also say what would make the next one fit, each change judged by the same engine.
        config: as `predict` takes it.
        trust_remote_code: as `predict` takes it.
        alloc_conf: as `predict` takes it.
        profile: as `predict` takes it.
        link: as `predict` takes it; also of the cards that advice adds.
        **options: see `RunOptions`; that of the axis is of no account.

    Returns:
        A sequence with a `Threshold` a card and method, card by card: `max` fits and `first_oom` does not; sizes
        are bytes. How it is found: docs/oom.md.

    Raises:
        as `predict`.
        BadInputError: neither a card nor a cap.
    """
    from lorafa_prof.analytic.thresholds import ClosedForms
    from lorafa_prof.results.axes import Axis as Axes

    require_choice("axis", axis, Axes)
    require_choice("engine", engine, Engine)
    if engine == "analytic" and alloc_conf is not None:
        raise BadInputError("alloc_conf goes with engine='simulate'")
    found, remarks = asked(model, method, config, options, engine=engine, trust=trust_remote_code), list[str]()
    forms = ClosedForms()
    found.options["seq"] = length_to_begin_with(axis, found.options.get("seq", _LENGTH), found.model)
    names, given = _named(gpus)
    devices, measured = profiled_cards(profile, names, None if cap is None else parse_bytes(str(cap)), given)
    question = Question(
        forms=forms, axis=axis, methods=found.methods, advice=advice, timer=timer_by(measured, link), run_of=found.run,
        tell=remarks.append,
    )  # fmt: skip
    judge = forms if engine == "analytic" else simulations(alloc_conf, forms.guess, lambda run, device: None)
    return Thresholds(found.files.on(question.ask(judge, devices)), remarks)


def _named(gpus: Cards) -> tuple[list[str], list[DeviceSpec]]:
    """Return the cards that are given by name, each once, and those that are given themselves."""
    several = [gpus] if isinstance(gpus, (str, DeviceSpec)) else list(gpus)
    names = name_list([each for each in several if isinstance(each, str)], "gpus")
    return names, [each for each in several if isinstance(each, DeviceSpec)]


def named_devices(gpus: Cards) -> list[DeviceSpec]:
    """Return the cards that are given, by name or themselves.

    Raises:
        UnknownNameError: a name that is not known.
    """
    from lorafa_prof.catalog import load_device

    names, devices = _named(gpus)
    return [*map(load_device, names), *devices]
