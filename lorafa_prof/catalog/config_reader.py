"""A Hugging Face configuration read key by key: defaults filled in, values checked, keys named in errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lorafa_prof.catalog.defaults import ACTIVATIONS, ALIASES, DEFAULTS
from lorafa_prof.catalog.json_files import kind_of, one_line
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.specs import require_int, require_number

#: Layers beyond this are refused before a list of that length is made.
MOST_LAYERS = 2000

#: No width, count or vocabulary of a real model comes near; `ModelSpec` holds each field to its own limit.
LARGEST_WIDTH = 2**24

#: Smallest softcap: the model divides by it.
SMALLEST_SOFTCAP = 1e-6

FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")


class ConfigReader:
    """Checked access to the keys of one configuration.

    Args:
        where: the model's name or the file, for messages; one printable line.
        model_type: a key of `DEFAULTS`.
        published: the configuration as published.
    """

    def __init__(self, where: str, model_type: str, published: Mapping[str, object]) -> None:
        self.where = where
        self._values = {**DEFAULTS[model_type], **published}
        self._given_as: dict[str, str] = {}
        for alias, key in ALIASES.get(model_type, {}).items():
            if alias in published:
                self._values[key] = published[alias]
                self._given_as[key] = alias

    def get(self, key: str) -> object:
        """Return the value of `key` as published, else its default, else None; nothing is checked."""
        return self._values.get(key)

    def refuse(self, key: str, expected: str) -> BadInputError:
        """Return the error that says what `key` must be and what it is."""
        return BadInputError(f"{self._label(key)} must be {expected}, not {self._shown(key)}")

    def size(self, key: str, low: int = 1, high: int = LARGEST_WIDTH) -> int:
        """Return the integer `key`, between `low` and `high`."""
        return require_int(self._label(key), self._scalar(key, "an integer"), low, high)

    def optional_size(self, key: str) -> int | None:
        """Return the integer `key`, or None where the configuration has null or nothing."""
        return None if self.get(key) is None else self.size(key)

    def layers(self, key: str) -> int:
        """Return the number of layers in `key`."""
        return self.size(key, high=MOST_LAYERS)

    def flag(self, key: str) -> bool:
        """Return the boolean `key`."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def probability(self, key: str) -> float:
        """Return the dropout probability `key`."""
        return require_number(self._label(key), self._scalar(key, "a number"), 0.0, 1.0)

    def softcap(self, key: str) -> float | None:
        """Return the positive number `key`, or None for no softcap."""
        if self.get(key) is None:
            return None
        return require_number(self._label(key), self._scalar(key, "a number or null"), SMALLEST_SOFTCAP, 1e9)

    def activation(self, key: str) -> str:
        """Return the name of an activation function that transformers has."""
        return self.known_activation(key, self.text(key))

    def known_activation(self, key: str, name: str) -> str:
        """Return `name`, found in `key`, if transformers has an activation function of that name."""
        if name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UnsupportedError(f"{self._label(key)}: no activation function {one_line(name, 40)!r}; known: {known}")
        return name

    def text(self, key: str) -> str:
        """Return the string `key`."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.refuse(key, "a string")
        return value

    def optional_object(self, key: str) -> Mapping[object, object] | None:
        """Return the object `key`, or None where the configuration has null or nothing."""
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.refuse(key, "an object")
        return value

    def layer_types(self, layers: int) -> tuple[str, ...] | None:
        """Return the attention type of each of `layers` layers, or None where the family's rule decides."""
        value = self.get("layer_types")
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
            raise self.refuse("layer_types", "a list of strings")
        if len(value) != layers:
            raise BadInputError(f"{self._label('layer_types')} has {len(value)} entries for {layers} layers")
        self._refuse_unknown_layer_types(value)
        return tuple(value)

    def _refuse_unknown_layer_types(self, types: Iterable[str]) -> None:
        label, known = self._label("layer_types"), ", ".join(LAYER_TYPES)
        for each in types:
            if each not in LAYER_TYPES:
                raise UnsupportedError(f"{label}: {one_line(each, 40)!r} is not modelled; known: {known}")

    def _label(self, key: str) -> str:
        return f"{self.where}: {self._given_as.get(key, key)}"

    def _scalar(self, key: str, expected: str) -> object:
        # A list may hold anything, such as an integer that Python refuses to print: only its kind is shown.
        value = self.get(key)
        if value is None or not isinstance(value, (bool, int, float, str)):
            raise self.refuse(key, expected)
        return value

    def _shown(self, key: str) -> str:
        value = self.get(key)
        return repr(one_line(value, 40)) if isinstance(value, str) else kind_of(value)
