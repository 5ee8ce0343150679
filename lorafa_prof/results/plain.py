"""Results as plain data, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Ledger, MemoryItem
from lorafa_prof.results.figures import SCHEMA
from lorafa_prof.specs import MethodSpec, MlaSpec, ModelSpec, MoeSpec, RunnableModel, RunSpec

T = TypeVar("T")


def build(kind: type[T], data: Any) -> T:
    """Return the dataclass `kind` with the fields in `data`, each of the type that it is annotated with.

    Raises:
        KeyError: a field that is missing.
        TypeError: not an object, a field that is not known, a value of another type.
        BadInputError: a value that the class itself refuses.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} must be an object, not {type(data).__name__}")
    kind_of_fields: Any = kind  # mypy does not take a type[T] for hashable
    hints = _type_hints(kind_of_fields)
    for name, value in data.items():
        if name in hints and not _is_of(value, hints[name]):
            shown = value[:40] if isinstance(value, str) else type(value).__name__
            raise TypeError(f"{kind.__name__}.{name} cannot be {shown!r}")
    missing = [each.name for each in dataclasses.fields(kind_of_fields) if _is_needed(each) and each.name not in data]
    if missing:
        raise KeyError(missing[0])
    return kind(**data)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type: plain ones, and lists, mappings and unions of them."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is None:
        if hint is Any or isinstance(value, bool):
            return hint in (Any, bool)
        return isinstance(value, (int, float) if hint is float else hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(each, inner[0]) for each in value)
    return isinstance(value, Mapping) and all(_is_of(each, inner[1]) for each in value.values())  # Mapping[str, X]


def require_schema(data: Mapping[str, Any], key: str, kind: str, kinds: str) -> None:
    """Refuse data of another schema, or of another kind, which a key of it says.

    Raises:
        BadInputError: the text says what it is, and what is read: results called `kinds`.
    """
    schema, found = data.get("schema"), data.get(key)
    if schema != SCHEMA or found != kind:
        raise BadInputError(
            f"a {found or 'result'} of schema {schema!r}; this reads {kinds} of schema {SCHEMA}{of_newer(schema)}"
        )


def of_newer(schema: object) -> str:
    """Return what to add about a schema that this version does not know: that a later one does."""
    later = isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA
    return ": a newer lorafa-prof wrote it, and reads it" if later else ""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Tell what goes wrong while plain data become a result.

    Raises:
        BadInputError: a missing key, or a value of the wrong type: the data are none of `what`.
    """
    try:
        yield
    except KeyError as error:
        raise BadInputError(f"not a {what}: it has no {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInputError(f"not a {what}: {type(error).__name__}: {error}") from error


def run_to_json(run: RunSpec) -> dict[str, Any]:
    """Return a run as plain data, model and method included."""
    data: dict[str, Any] = plain(run)
    return data


def run_from_json(data: Mapping[str, Any]) -> RunSpec:
    """Read what `run_to_json` wrote, checked like a run from the command line.

    Raises:
        BadInputError: a value out of range.
        TypeError, KeyError: not a run.
    """
    method = dict(data["method"])
    method["targets"] = tuple(method["targets"])
    if method.get("layers") is not None:  # absent in files of before there was a choice: all of them
        method["layers"] = tuple(method["layers"])
    rest = {key: value for key, value in data.items() if key not in ("model", "method")}
    if "keep" in rest:
        rest["keep"] = tuple(rest["keep"])
    return build(RunSpec, {"model": _model_from_json(data["model"]), "method": build(MethodSpec, method), **rest})


def _model_from_json(data: Mapping[str, Any]) -> ModelSpec | RunnableModel:
    model = dict(data)
    if "hidden_size" not in model:  # of which nothing is known without building it
        return build(RunnableModel, model)
    for name, kind in (("moe", MoeSpec), ("mla", MlaSpec)):
        if model.get(name) is not None:
            model[name] = build(kind, model[name])
    model["layer_types"] = tuple(model["layer_types"])
    return build(ModelSpec, model)


def plain(value: Any) -> Any:
    """Return dataclasses as dictionaries, tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def ledger_to_json(ledger: Ledger) -> dict[str, Any]:
    """Return a ledger as plain data."""
    return {"moment": ledger.moment, "items": [item.to_json() for item in ledger.items]}


def ledger_from_json(data: Mapping[str, Any]) -> Ledger:
    """Read what `ledger_to_json` wrote.

    Raises:
        BadInputError: an item that is none.
        TypeError, KeyError: not a ledger.
    """
    return Ledger(data["moment"], tuple(MemoryItem.from_json(item) for item in data["items"]))
