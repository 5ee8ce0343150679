"""Asking every engine the same, and telling what it said or why it did not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from lorafa_prof.errors import LorafaProfError, MissingComponentError
from lorafa_prof.results import Prediction
from lorafa_prof.results.claims import Answer, Assumption, Statement, taken
from lorafa_prof.specs import DeviceSpec, RunSpec
from lorafa_prof.units import format_gib

#: How the adapters may have been run over 16-bit weights: the paper does not say. What PEFT does by itself is first.
ASSUMPTIONS = (
    Assumption(
        name="fp32 adapters", options={},
        means="adapters in fp32 over bf16 weights, as PEFT makes them, and no autocast: each adapter casts its input",
    ),
    Assumption(
        name="autocast", options={"amp": True},
        means="the same under bf16 autocast, as transformers' Trainer runs it with bf16=True",
    ),
    Assumption(
        name="bf16 adapters", options={"adapter_dtype": "bf16"},
        means="adapters in bf16 as the weights are: what several layers read is kept once",
    ),
)  # fmt: skip
DEFAULT = ASSUMPTIONS[0]


class Predict(Protocol):
    """An engine's prediction of one run on one card (None: none), largest batch and step time where asked for."""

    def __call__(
        self, run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool, timed: bool = False
    ) -> Prediction:
        """Return the prediction.

        Raises:
            LorafaProfError: what the engine refuses.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A prediction, or why there is none."""

    prediction: Prediction | None
    refusal: str = ""


class Told(NamedTuple):
    """What a prediction says of a statement: in words, as a number, and whether the paper says the same."""

    ours: str | None
    value: float | None = None
    agrees: bool | None = None


@dataclass(frozen=True)
class Panel:
    """The engines that are asked; each question once.

    Args:
        engines: by name, in the order of the answers.
        quick: those of which many questions may be asked.
    """

    engines: Mapping[str, Predict]
    quick: tuple[str, ...] = ("analytic",)
    _known: dict[tuple[str, RunSpec, str | None, bool, bool], Reply] = field(default_factory=dict)

    def ask(
        self,
        run: RunSpec,
        device: DeviceSpec | None = None,
        *,
        largest_batch: bool = False,
        quick: bool = False,
        timed: bool = False,
    ) -> dict[str, Reply]:
        """Return each engine's reply; what it refuses is a reply as well.

        Args:
            run: the run.
            device: the card that it is held against; None: none.
            largest_batch: ask for the largest batch on the card, too.
            quick: ask the quick engines alone.
            timed: ask how long the step takes, too.

        Raises:
            MissingComponentError: the packages of an engine are not installed.
        """
        asked = [name for name in self.engines if name in self.quick or not quick]
        return {name: self.ask_one(name, run, device, largest_batch=largest_batch, timed=timed) for name in asked}

    def ask_one(
        self, engine: str, run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool = False, timed: bool = False
    ) -> Reply:
        """Return one engine's reply; else as `ask`."""
        key = (engine, run, device.name if device else None, largest_batch, timed)
        if key not in self._known:
            self._known[key] = self._reply(self.engines[engine], run, device, largest_batch, timed)
        return self._known[key]

    def _reply(
        self, predict: Predict, run: RunSpec, device: DeviceSpec | None, largest_batch: bool, timed: bool
    ) -> Reply:
        try:
            prediction = predict(run, device, largest_batch=largest_batch, timed=timed)
        except MissingComponentError:
            raise
        except LorafaProfError as error:
            return Reply(prediction=None, refusal=str(error))
        return Reply(prediction=replace(prediction, ledger=None))  # of many, only figures are needed


def answers(
    statement: Statement, subject: str, assumption: str, expected: str, replies: Mapping[str, Reply],
    tell: Callable[[Prediction], Told],
) -> Iterator[Answer]:  # fmt: skip
    """Yield the answer of each engine that replied, and of each that refused with its reason."""
    for engine, reply in replies.items():
        told = Told(None) if reply.prediction is None else tell(reply.prediction)
        yield Answer(
            statement=statement.key, subject=subject, assumption=assumption, engine=engine, expected=expected,
            ours=told.ours, value=told.value, agrees=told.agrees, refusal=reply.refusal,
        )  # fmt: skip


def answers_of_two(
    statement: Statement, subject: str, assumption: str, expected: str,
    pairs: tuple[Mapping[str, Reply], Mapping[str, Reply]], tell: Callable[[Prediction, Prediction], Told],
) -> Iterator[Answer]:  # fmt: skip
    """Yield the answers to a statement that compares two runs; else as `answers`."""
    for engine, first in pairs[0].items():
        second = pairs[1][engine]
        refusal = first.refusal or second.refusal
        told = Told(None)
        if first.prediction is not None and second.prediction is not None:
            told = tell(first.prediction, second.prediction)
        yield Answer(
            statement=statement.key, subject=subject, assumption=assumption, engine=engine, expected=expected,
            ours=told.ours, value=told.value, agrees=told.agrees, refusal=refusal,
        )  # fmt: skip


def taken_text(prediction: Prediction) -> str:
    """Return what is taken of the card for people, with what it is."""
    memory = prediction.memory
    what = "allocated" if memory.peak_reserved_bytes is None else "reserved"
    context = " with context" if memory.context_bytes else ""
    return f"{format_gib(taken(prediction))} GiB {what}{context}"


def fits(wanted: bool) -> Callable[[Prediction], Told]:
    """Return what tells whether a run fits its card, where the paper says that it does, or does not."""

    def tell(prediction: Prediction) -> Told:
        fit = prediction.fit[0]
        verdict = "fits" if fit.fits else "out of memory"
        return Told(f"{verdict}: {taken_text(prediction)}", taken(prediction), fit.fits is wanted)

    return tell
