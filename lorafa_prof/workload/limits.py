"""What a configuration may ask for before anything is built with it: a file from elsewhere may say anything.

transformers' configuration classes take every value, and make lists as long as it says. Refused here are sizes that no
model has; what the classes and the models themselves refuse comes later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import LARGEST_SIZE, require_int

#: Layers beyond this are refused before a list of that length is made.
MOST_LAYERS = 2000
#: No width, count or vocabulary of a real model comes near.
LARGEST_WIDTH = 2**24
#: Objects and lists inside each other; published configurations have four.
DEEPEST_NESTING = 32

_LAYERS = re.compile(r"layers?$|^depths?$|_depths?$|(num|n)_(\w+_)?blocks$")
_WIDTH = re.compile(
    r"(^|_)(n|num|dim|dims|size|width|heads?|experts?|positions?|embeddings|embd|inner|vocab|rank|channels|groups|"
    r"labels|model|kv|ff|ffn|hidden|state|kernel|buckets|ratio|expand)(_|$)"
)


def refuse_absurd(name: str, config: Mapping[str, Any]) -> None:
    """Refuse sizes that no model has, at whatever depth of the configuration they stand.

    Raises:
        BadInputError: such a size, with the key that it stands under.
    """
    for key, value in _values(name, config):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        high = LARGEST_SIZE
        if _LAYERS.search(key):
            high = MOST_LAYERS
        elif _WIDTH.search(key):
            high = LARGEST_WIDTH
        require_int(f"{name}: {key[:60]}", value, -LARGEST_SIZE, high)


def _values(name: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield everything in a configuration with the key that it stands under; elements of a list under the list's."""
    waiting: list[tuple[str, int, Any]] = [("", 0, config)]
    while waiting:
        key, depth, value = waiting.pop()
        if not isinstance(value, (Mapping, list, tuple)):
            yield key, value
            continue
        if depth > DEEPEST_NESTING:
            raise BadInputError(f"{name}: {key[:60]} is nested too deeply to be a configuration")
        inner = value.items() if isinstance(value, Mapping) else ((key, each) for each in value)
        waiting.extend((str(inner_key), depth + 1, each) for inner_key, each in inner)
