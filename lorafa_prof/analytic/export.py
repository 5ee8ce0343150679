"""Plans as plain data, for a page that evaluates them itself: every size a monomial in batch, sequence and rank.

What differs between configurations in more than numbers has a plan of its own: the model, the method and `OPTIONS`,
whether the batch is a single sequence, and whether the sequence reaches the model's sliding window. Within a plan a
peak is the highest of a few moments, the first where several are; a moment's parts are sums of sizes, each rounded up.

`export` returns these tables, of which all is JSON:

    engine     versions modelled, bytes that sizes are rounded up to, limits of what may be asked
    options    name and values of each option
    parts      the categories, as a prediction names its parts
    terms      sizes of one tensor: [coefficient, symbols]
    sums       [term, how many, term, how many, ...]
    texts      names of moments, remarks and refusals
    moments    those of a step: [text, a sum for each of `parts`, text, ...]
    plans      {"moments": which, "assumptions": texts, "unmodelled": texts}
    models     for each method the number of a plan, or -1 - n where it is refused for texts[n], one for each
               combination of (windowed, single, *options), the last option changing fastest; and [rank, n, ...]: a
               larger rank is refused for texts[n], the first of them
    devices    bytes, context (null: not known), workspaces, and remarks by attention
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lorafa_prof.analytic.engine import (
    MODELLED_VERSIONS,
    device_assumption,
    devices_unmodelled,
    refuse_unmodelled,
    run_assumptions,
    run_unmodelled,
)
from lorafa_prof.analytic.moments import Moment, candidate_moments
from lorafa_prof.analytic.plan import plan
from lorafa_prof.analytic.ranks import SENTINEL, WITNESS, same_step
from lorafa_prof.analytic.workspaces import cublas_workspaces
from lorafa_prof.contradictions import refuse_contradictions
from lorafa_prof.errors import ContradictionError, LorafaProfError, UnsupportedError
from lorafa_prof.layers import RankBeyondError
from lorafa_prof.results import PART_FIELDS
from lorafa_prof.specs import (
    LARGEST_BATCH,
    LARGEST_RANK,
    LARGEST_SEQUENCE,
    LORA_FA,
    DeviceSpec,
    MethodSpec,
    ModelSpec,
    RunSpec,
)
from lorafa_prof.units import ALLOCATION_GRANULE

Options = Mapping[str, tuple[Any, ...]]

#: The options that have plans of their own, each with its values; the first one is the command line's default.
OPTIONS: Options = {
    "dtype": ("bf16", "fp16", "fp32"),
    "adapter_dtype": ("auto", "fp32", "bf16", "fp16"),
    "amp": (False, True),
    "attn": ("sdpa", "eager"),
    "checkpointing": ("none", "full"),
}
#: The largest batch, sequence and rank that a run can have.
LIMITS = {"bs": LARGEST_BATCH, "seq": LARGEST_SEQUENCE, "rank": LARGEST_RANK}
#: What autocast (to bf16), the base and the adapters may be together here: one 16-bit dtype, and fp32.
MIXED = "bf16 and fp16 in one run are left out of this page; lorafa-prof predict has them"

RANK_DECIDES = "what LoRA-GA decomposes depends on the rank in more than its sizes; lorafa-prof predict has it"

_PARTS = {name: category.value for name, category in PART_FIELDS.items() if name != "workspace_bytes"}


@dataclass(frozen=True)
class Step:
    """What a page needs of one plan."""

    moments: tuple[Moment, ...]
    assumptions: tuple[str, ...]
    unmodelled: tuple[str, ...]
    of_model: tuple[str, ...]
    """Those of the assumptions that come with the model."""

    def of(self, run: RunSpec) -> Step:
        """Return the step of a run that this one stands for: their sizes are the same, not their names of dtypes."""
        return dataclasses.replace(self, assumptions=run_assumptions(run, self.of_model))


Answer = Step | str
"""A step, or why there is none."""
Task = tuple[ModelSpec, str, Options]


def steps_of(task: Task) -> list[Answer]:
    """Return the steps of one model and method for all combinations of (windowed, single, *options).

    The last option changes fastest.

    Args:
        task: model, method and the options' values.
    """
    model, method, options = task
    known: dict[Hashable, Answer] = {}
    answers: list[Answer] = []
    for windowed, single, *values in product(_sides(model), (False, True), *options.values()):
        chosen = dict(zip(options, values, strict=True))
        seq = _sequence(model, windowed)
        if seq is None:
            answers.append("no sequence of this model is on this side of its sliding window")
            continue
        run = RunSpec(
            model=model, method=MethodSpec(name=method, rank=SENTINEL), bs=1 if single else 2, seq=seq, **chosen
        )
        try:
            refuse_contradictions(run)
        except ContradictionError as error:
            answers.append(str(error))
            continue
        alike = _alike(run)
        if alike is None:
            answers.append(MIXED)
            continue
        if alike not in known:
            known[alike] = _traced(alike)
        answer = known[alike]
        answers.append(answer if isinstance(answer, str) else answer.of(run))
    _check_rank(known)
    return answers


def _sides(model: ModelSpec) -> tuple[bool, ...]:
    return (False,) if model.sliding_window is None else (False, True)


def _sequence(model: ModelSpec, windowed: bool) -> int | None:
    """Return a sequence length on the asked side of the sliding window (reached or not); None where there is none."""
    window, longest = model.sliding_window, model.max_positions
    if window is None or (not windowed and window > 1):
        return 1
    return window if windowed and (longest is None or window <= longest) else None


def _alike(run: RunSpec) -> RunSpec | None:
    """Return the run that stands for this one: sizes know no difference between bf16 and fp16. None for a mix of them.

    Full fine-tuning has no adapters, whatever their dtype.
    """
    adapters = "fp32" if run.method.name == "full" else run.resolved_adapter_dtype
    named = {run.dtype, adapters, *(("bf16",) if run.amp else ())}
    if {"bf16", "fp16"} <= named:
        return None
    plain = {"fp16": "bf16"}
    return run.replace(dtype=plain.get(run.dtype, run.dtype), adapter_dtype=plain.get(adapters, adapters))


def _traced(run: RunSpec) -> Answer:
    if run.method.name == "lora-ga":
        return RANK_DECIDES
    try:
        refuse_unmodelled(run)
        traced = plan(run)
    except (UnsupportedError, ContradictionError) as error:
        return str(error)
    of_model = tuple(traced.assumptions)
    return Step(tuple(candidate_moments(traced)), run_assumptions(run, of_model), run_unmodelled(traced), of_model)


def _check_rank(known: Mapping[Hashable, Answer]) -> None:
    """Assert, on the first step that there is, that the rank enters it as a factor of sizes and nothing else."""
    run = next((run for run, answer in known.items() if isinstance(answer, Step)), None)
    if isinstance(run, RunSpec):
        other = run.replace(method=MethodSpec(name=run.method.name, rank=WITNESS))
        assert same_step(plan(run), plan(other)), f"{run.method.name} depends on the rank in more than its sizes"


def _ranks(model: ModelSpec, method: str) -> list[tuple[int, str]]:
    """Return the ranks that a method can have at most, layer after layer, each lower than those before, with why."""
    found: list[tuple[int, str]] = []
    error = _rank_beyond(model, method, LARGEST_RANK)
    while error is not None:
        found.append((error.width, str(RankBeyondError(error.path, "{rank}", error.width, error.method))))
        error = _rank_beyond(model, method, error.width)
    return found


def _rank_beyond(model: ModelSpec, method: str, rank: int) -> RankBeyondError | None:
    try:
        plan(RunSpec(model=model, method=MethodSpec(name=method, rank=rank), bs=2, seq=1))
    except RankBeyondError as error:
        return error
    except LorafaProfError:  # which every plan says for itself
        return None
    return None


def export(
    models: Sequence[ModelSpec],
    methods: Sequence[str],
    devices: Sequence[DeviceSpec],
    *,
    options: Options = OPTIONS,
    mapped: Callable[[Callable[[Task], list[Answer]], list[Task]], Iterable[list[Answer]]] = map,
) -> dict[str, Any]:
    """Return the plans of all models and methods with all options, and the devices to hold them against.

    Args:
        models: at least one; a method that cannot run on one is refused there, as `predict` refuses it.
        methods: names of the contract.
        devices: the cards.
        options: `OPTIONS`, or some of their values.
        mapped: applies the function to the tasks, in order; that of a pool of processes takes less time.
    """
    tables = _Tables()
    answers = iter(mapped(steps_of, [(model, method, options) for model in models for method in methods]))
    exported = [_model(model, methods, answers, tables) for model in models]
    return {
        "engine": {"versions": dict(MODELLED_VERSIONS), "granule": ALLOCATION_GRANULE, "limits": LIMITS},
        "options": [[name, list(values)] for name, values in options.items()],
        "parts": list(_PARTS),
        "models": exported,
        "devices": [_device(device) for device in devices],
        **tables.plain(),
    }


def _model(
    model: ModelSpec, methods: Sequence[str], answers: Iterator[list[Answer]], tables: _Tables
) -> dict[str, Any]:
    return {
        "name": model.name,
        "max_positions": model.max_positions,
        "window": model.sliding_window,
        "methods": {method: [tables.number(answer) for answer in next(answers)] for method in methods},
        "ranks": {
            method: [number for most, why in _ranks(model, method) for number in (most, tables.texts(why))]
            for method in methods
            if method in LORA_FA
        },
    }


def _device(device: DeviceSpec) -> dict[str, Any]:
    return {
        "name": device.name,
        "full_name": device.full_name,
        "total_bytes": device.total_bytes,
        "context_bytes": device.context_bytes,
        "workspace_bytes": cublas_workspaces(device),
        "assumption": device_assumption(device),
        "unmodelled": {attn: list(devices_unmodelled(attn, [device])) for attn in OPTIONS["attn"]},
    }


class _Numbered:
    """Distinct values, numbered as they turn up."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._number: dict[Hashable, int] = {}

    def __call__(self, value: Hashable) -> int:
        number = self._number.setdefault(value, len(self.all))
        if number == len(self.all):
            self.all.append(value)
        return number


@dataclass
class _Tables:
    """What steps have in common is written once."""

    terms: _Numbered = field(default_factory=_Numbered)
    sums: _Numbered = field(default_factory=_Numbered)
    texts: _Numbered = field(default_factory=_Numbered)
    moments: _Numbered = field(default_factory=_Numbered)
    plans: _Numbered = field(default_factory=_Numbered)
    _seen: dict[int, tuple[Sequence[Moment], int]] = field(default_factory=dict)
    """Moments by identity (they are kept, so that it stays theirs): runs that share a step share these."""

    def number(self, answer: Answer) -> int:
        """Return the number of a plan, or -1 - n where text n says why there is none."""
        if isinstance(answer, str):
            return -1 - self.texts(answer)
        known = self._seen.get(id(answer.moments))
        if known is None:
            rows = tuple(number for moment in answer.moments for number in self._row(moment))
            known = self._seen[id(answer.moments)] = (answer.moments, self.moments(rows))
        remarks = [tuple(self.texts(line) for line in lines) for lines in (answer.assumptions, answer.unmodelled)]
        return self.plans((known[1], *remarks))

    def plain(self) -> dict[str, Any]:
        """Return the tables, without what their keys are for."""
        return {
            "terms": [list(term) for term in self.terms.all],
            "sums": [list(terms) for terms in self.sums.all],
            "texts": self.texts.all,
            "moments": [list(rows) for rows in self.moments.all],
            "plans": [
                {"moments": moments, "assumptions": list(assumed), "unmodelled": list(left_out)}
                for moments, assumed, left_out in self.plans.all
            ],
        }

    def _row(self, moment: Moment) -> Iterator[int]:
        assert set(moment.parts) <= set(_PARTS.values()), "a category that is no part of a prediction"
        yield self.texts(moment.name)
        for category in _PARTS.values():
            terms = moment.parts.get(category, ())
            yield self.sums(tuple(n for size, count in terms for n in (self.terms(size), count)))
