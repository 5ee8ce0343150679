"""What a configuration may ask for: a file from elsewhere may say anything.

transformers' configuration classes take every value, and make lists as long as it says. Sizes that no model has are
refused before anything is made of them. What is left, in keys that no rule knows, is stopped while it grows.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch.nn.modules import module as nn_module

from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import LARGEST_SIZE, require_int

#: Layers beyond this are refused before a list of that length is made.
MOST_LAYERS = 2000
#: No width, count or vocabulary of a real model comes near.
LARGEST_WIDTH = 2**24
#: Objects and lists inside each other; published configurations have four.
DEEPEST_NESTING = 32
#: Modules and parameters of the largest model that is built; those of mixtures of experts come to 200,000.
MOST_MODULES = 500_000
#: Bytes that making a configuration and a model on meta may take; the largest models take a tenth of it.
MOST_MEMORY = 4 * 2**30
#: Tables of labels, whose keys are anybody's words.
_LABELS = ("id2label", "label2id", "task_specific_params")

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
        if key in _LABELS:
            continue
        inner = value.items() if isinstance(value, Mapping) else ((key, each) for each in value)
        waiting.extend((str(inner_key), depth + 1, each) for inner_key, each in inner)


@contextlib.contextmanager
def bounded(name: str, *, memory: bool) -> Iterator[None]:
    """Stop a configuration or a model that grows beyond any real one while it is made.

    Args:
        name: what the user calls the model.
        memory: bound the memory too, for what is made on meta; where the system can do that.

    Raises (within):
        BadInputError: too many modules.
        MemoryError: too much memory.
    """
    count = 0

    def registered(module: Any, child_name: str, child: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise BadInputError(f"{name}: its configuration asks for a model of more than {MOST_MODULES} modules")

    handles = [
        nn_module.register_module_module_registration_hook(registered),
        nn_module.register_module_parameter_registration_hook(registered),
    ]
    try:
        with _bounded_memory() if memory else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process take `MOST_MEMORY` more than it has, and no more, until the context is left (Linux alone)."""
    if sys.platform != "linux":
        yield
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([has + MOST_MEMORY, *limits]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
