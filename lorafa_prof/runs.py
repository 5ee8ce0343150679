"""From names and options, as people give them, to the runs that they mean; whoever asks, in a shell or from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

from lorafa_prof.errors import BadInputError, ContradictionError, MissingComponentError, UnsupportedError
from lorafa_prof.layers import ALL, Layers, parse_layers
from lorafa_prof.patterns import is_pattern
from lorafa_prof.specs import (
    KEPT_BY_DEFAULT,
    METHODS,
    KeptGroup,
    MethodSpec,
    ModelSpec,
    RunnableModel,
    RunSpec,
    require_choice,
)

#: What is answered for where no method is named.
DEFAULT_METHODS = ("full", "lora", "lora-fa", "qlora", "vera")
#: What leaves one of the default methods out: the engine does not model it, its library is not installed, or other
#: options exclude it.
REFUSALS = (UnsupportedError, MissingComponentError, ContradictionError)
_Refusal = UnsupportedError | MissingComponentError | ContradictionError

Answer = TypeVar("Answer")


def asked_methods(values: Sequence[str]) -> list[str]:
    """Return the methods that --method names, each once; the default ones where it names none.

    Raises:
        BadInputError: an empty name, or one that is no method's.
    """
    names = name_list(values, "--method") or list(DEFAULT_METHODS)
    for name in names:
        require_choice("method", name, METHODS)
    return names


def for_each_method(
    asked: Sequence[str], answer: Callable[[str], Answer], tell: Callable[[str], object]
) -> list[Answer]:
    """Return the answer for each method that was asked for; for the default methods what can be had of them.

    Args:
        asked: the methods; (): the default ones.
        answer: gives the answer for one.
        tell: told which default methods are left out, and why.

    Raises:
        LorafaProfError: what a method that was named is refused for, or all default ones are.
    """
    return [answer(name) for name in asked] if asked else _all_that_can(answer, tell)


def _all_that_can(answer: Callable[[str], Answer], tell: Callable[[str], object]) -> list[Answer]:
    """Return the default methods' answers; those that cannot be had are left out, and said to be.

    Where none can be had that is the error; one that excludes a single method would be no help.
    """

    def attempt(name: str) -> Answer | _Refusal:
        try:
            return answer(name)
        except REFUSALS as error:
            return error

    answers = {name: attempt(name) for name in DEFAULT_METHODS}
    refusals = {name: each for name, each in answers.items() if isinstance(each, REFUSALS)}
    if len(refusals) == len(answers):
        raise min(refusals.values(), key=lambda refusal: isinstance(refusal, ContradictionError))
    for name, refusal in refusals.items():
        tell(f"{name} is left out: {refusal}")
    return [each for each in answers.values() if not isinstance(each, REFUSALS)]


def name_list(values: Sequence[str], what: str = "--method or --gpu") -> list[str]:
    """Return the names of a repeatable option whose values may be comma lists, each once.

    Raises:
        BadInputError: an empty name, as an unset variable of a script leaves it.
    """
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise BadInputError(f"an empty name among the values of {what}")
    return list(dict.fromkeys(names))


def run_spec(
    model: ModelSpec | RunnableModel,
    method: str,
    *,
    rank: int,
    targets: str,
    dropout: float,
    layers: str = ALL,
    keep: str = ",".join(KEPT_BY_DEFAULT),
    **options: Any,
) -> RunSpec:
    """Return the run that the options describe for one method.

    Raises:
        BadInputError: a value out of range, or an empty target.
        ContradictionError: options that exclude each other.
        UnsupportedError: targets that are a pattern, as PEFT takes a text, and choose what --targets cannot say.
    """
    require_choice("method", method, METHODS)
    if is_pattern(targets):
        from lorafa_prof.pattern_targets import chosen_by

        chosen = chosen_by(targets.strip(), model, method, layers)
        names, adapted = chosen.targets, chosen.layers
    else:
        names = tuple(name.strip() for name in targets.split(","))
        if not all(names):
            raise BadInputError(f"--targets holds an empty name: {targets[:60]!r}")
        adapted = layers_of(layers, model)
    spec = MethodSpec(name=method, rank=rank, targets=names, dropout=dropout, layers=adapted)
    return RunSpec(model=model, method=spec, keep=kept_operators(keep), **options)


def kept_operators(text: str) -> tuple[str, ...]:
    """Return what --keep names, each once: groups in their order, then operators in theirs.

    Raises:
        BadInputError: an empty name.
    """
    groups = get_args(KeptGroup)
    return tuple(sorted(name_list([text], "--keep"), key=lambda name: (name not in groups, *_place(name, groups))))


def _place(name: str, groups: Sequence[str]) -> tuple[int, str]:
    return (groups.index(name) if name in groups else 0), name


def layers_of(text: str, model: ModelSpec | RunnableModel) -> Layers | None:
    """Return the layers of a model that --layers names; None for all of them.

    Raises:
        BadInputError: another text, no layer at all, or one that the model does not have.
        UnsupportedError: nothing says how many layers the model has.
    """
    if text == ALL:
        return None
    if model.depth is None:
        raise UnsupportedError(
            f"{model.name}: its configuration does not say how many layers there are, of which --layers could choose"
        )
    uneven = isinstance(model, ModelSpec) and model.num_decoder_layers not in (0, model.num_layers)
    return parse_layers(text, model.depth, model.name, uneven=uneven)
