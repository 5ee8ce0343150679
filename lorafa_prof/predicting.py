"""The engines' predictions for a run as it was measured: on its card with its memory, or on its CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorafa_prof.cards import named_card
from lorafa_prof.compare import capacity, is_of
from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError, UnsupportedError
from lorafa_prof.specs import DeviceSpec, RunnableModel, require_int

if TYPE_CHECKING:
    from lorafa_prof.results import Measurement, Prediction
    from lorafa_prof.specs import RunSpec

Answer = tuple["list[Prediction]", list[str]]
"""Predictions, and why others are missing or differ."""


def saved_predictions(saved: Sequence[Prediction], engines: Sequence[str]) -> Callable[[Measurement], Answer]:
    """Return a function that finds the predictions of a measurement's run among those that were saved."""

    def find(measurement: Measurement) -> Answer:
        found = [p for p in saved if p.engine in engines and is_of(p, measurement)]
        remarks = [] if found or measurement.run is None else ["none of the saved predictions is of this run"]
        return found, remarks

    return find


@dataclass
class Predictor:
    """Predicts measured runs; ranks of one run are predicted once.

    Args:
        engines: which ones.
        card: the card that the runs were measured on; None: what the measurements say.
        required: an engine whose packages are missing is an error, and not left out.
    """

    engines: Sequence[str]
    card: DeviceSpec | None = None
    required: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    """Engines whose packages are missing, and what to install."""
    _known: dict[tuple[object, ...], Answer] = field(default_factory=dict)

    def __call__(self, measurement: Measurement) -> Answer:
        """Return the predictions of the run; none for a user's own script."""
        run, environment = measurement.run, measurement.environment
        if run is None:
            return [], []
        on_cpu = environment.get("device_type") == "cpu"
        key = (run, repr(run.model.config), *(str(environment.get(name)) for name in _DECISIVE))
        if key not in self._known:
            self._known[key] = self._on_cpu(run, environment) if on_cpu else self._on_card(run, environment)
        return self._known[key]

    def _on_card(self, run: RunSpec, environment: Mapping[str, Any]) -> Answer:
        from lorafa_prof.analytic import predict
        from lorafa_prof.engines import simulate_as_measured

        card, remarks = self._card_of(environment)
        if run.method.name == "lora-ga":
            remarks.append(_OF_TRAINING)
        conf = environment.get("alloc_conf")
        settings = conf if isinstance(conf, str) else None
        return self._all(
            {
                "analytic": lambda: predict(run, [card] if card else []),
                "simulate": lambda: simulate_as_measured(_buildable(run), card, settings),
            },
            remarks,
        )

    def _on_cpu(self, run: RunSpec, environment: Mapping[str, Any]) -> Answer:
        from lorafa_prof.analytic import predict
        from lorafa_prof.engines import simulate_on_cpu

        remarks = [_CLOSED_FORMS] if "analytic" in self.engines else []
        if self.card is not None:
            remarks.append("--gpu does not matter here: this was measured on the CPU")
        return self._all(
            {
                "analytic": lambda: predict(run),
                "simulate": lambda: simulate_on_cpu(_buildable(run), _threads(environment)),
            },
            remarks,
        )

    def _all(self, ways: Mapping[str, Callable[[], Prediction]], remarks: list[str]) -> Answer:
        answers = [self._one(engine, ways[engine], remarks) for engine in self.engines]
        return [answer for answer in answers if answer is not None], remarks

    def _one(self, engine: str, way: Callable[[], Prediction], remarks: list[str]) -> Prediction | None:
        """Return an engine's prediction; what it refuses, or lacks, is a remark."""
        try:
            return way()
        except MissingComponentError as error:
            if self.required:
                raise
            self.left_out[engine] = str(error)
            remarks.append(f"{engine} is left out: {error}")
        except LorafaProfError as error:
            remarks.append(f"{engine} has no prediction: {error}")
        return None

    def _card_of(self, environment: Mapping[str, Any]) -> tuple[DeviceSpec | None, list[str]]:
        """Return the card of a measurement, with the memory that the run could use; None where it is not known."""
        card, remarks = self.card, list[str]()
        if card is None:
            card, remarks = named_card(environment)
        room = None if card is None else capacity(environment, card.context_bytes)
        return (card if card is None or room is None else replace(card, total_bytes=room)), remarks


_CLOSED_FORMS = (
    "the analytic engine's closed forms are for CUDA: they round each tensor up to 512 B, count cuBLAS workspaces and "
    "CUDA's kernels, of which the CPU has none"
)
_OF_TRAINING = (
    "LoRA-GA: the measured peak and its parts are those of training, the simulated ones those of the pass before it "
    "where that takes more; phase by phase they are the same thing"
)
#: What a prediction depends on beside the run.
_DECISIVE = (
    "device_type", "device", "total_bytes", "cap_bytes", "compute_capability", "multiprocessors", "alloc_conf",
    "threads",
)  # fmt: skip


def _threads(environment: Mapping[str, Any]) -> int:
    threads = environment.get("threads")
    if threads is None:
        raise BadInputError("the measurement does not say in how many threads it ran, on which buffers depend")
    return require_int("threads", threads, 1, 2**14)


def _buildable(run: RunSpec) -> RunSpec:
    """Return the run if its model's configuration can be built: a file may say anything.

    Raises:
        BadInputError: a configuration that no model can be built with.
        UnsupportedError: a model that needs code of its own: a file of results does not make it run.
    """
    if isinstance(run.model, RunnableModel):  # its configuration is looked at when it is built
        if run.model.code is not None:
            raise UnsupportedError(
                f"{run.model.name}: its own Python code is run by predict and measure with --trust-remote-code, not "
                "because a file of results names it"
            )
        return run
    from lorafa_prof.catalog import spec_from_config

    spec_from_config(run.model.name, run.model.config, task=run.model.task)
    return run
