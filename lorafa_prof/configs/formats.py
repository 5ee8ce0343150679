"""The formats, and which of them a file has: by its keys, never by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafa_prof.catalog.json_files import one_line
from lorafa_prof.configs import (
    accelerate,
    axolotl,
    deepspeed,
    llama_factory,
    llama_factory_v1,
    peft,
    torchtune,
    trainer,
)
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.files import read_mapping, shown_name
from lorafa_prof.configs.reading import Reading
from lorafa_prof.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class Format:
    """One tool's configuration files."""

    tool: str
    signs: frozenset[str]
    """Keys that only this tool's files have."""
    read: Callable[[Draft], Reading]
    covers: frozenset[str] = frozenset()
    """Signs of another format that this one's files have as well."""


FORMATS = (
    Format(tool=axolotl.TOOL, signs=axolotl.SIGNS, read=axolotl.read, covers=axolotl.COVERS),
    Format(tool=llama_factory.TOOL, signs=llama_factory.SIGNS, read=llama_factory.read, covers=llama_factory.COVERS),
    Format(
        tool=llama_factory_v1.TOOL,
        signs=llama_factory_v1.SIGNS,
        read=llama_factory_v1.read,
        covers=llama_factory_v1.COVERS,
    ),
    Format(tool=torchtune.TOOL, signs=frozenset(), read=torchtune.read),
    Format(tool=trainer.TOOL, signs=trainer.SIGNS, read=trainer.read),
    Format(tool=peft.TOOL, signs=peft.SIGNS, read=peft.read),
    Format(tool=accelerate.TOOL, signs=accelerate.SIGNS, read=accelerate.read),
    Format(tool=deepspeed.TOOL, signs=deepspeed.SIGNS, read=deepspeed.read, covers=deepspeed.COVERS),
)
"""In the order in which messages name them."""


def read_config(path: str) -> Reading:
    """Return what the configuration file at `path` says of a run.

    Raises:
        BadInputError: not readable, of no known format or of several, or a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends; the text names file and key.
        MissingComponentError: PyYAML is not installed.
    """
    data, name = read_mapping(path), shown_name(path)
    chosen = _format_of(name, data)
    return chosen.read(Draft(name, chosen.tool, data))


def _format_of(name: str, data: Mapping[str, Any]) -> Format:
    if torchtune.is_one(dict(data)):
        return next(known for known in FORMATS if known.tool == torchtune.TOOL)
    found = {known.tool: (known, sorted(known.signs & data.keys())) for known in FORMATS if known.signs & data.keys()}
    for known, _ in list(found.values()):
        for other, signs in list(found.values()):
            if other is not known and set(signs) <= known.covers:
                found.pop(other.tool, None)
    if len(found) == 1:
        return next(iter(found.values()))[0]
    if found:
        said = ", ".join(f"{signs[0]} ({tool})" for tool, (_, signs) in found.items())
        raise BadInputError(f"{name}: has keys of several formats: {said}; one file is one tool's")
    if {"model_type", "hidden_size"} <= data.keys() or "architectures" in data:
        raise BadInputError(f"{name}: a model's configuration: give it with --model")
    keys = ", ".join(one_line(key, 40) for key in list(data)[:5]) or "nothing"
    raise BadInputError(f"{name}: of no format that is known ({', '.join(f.tool for f in FORMATS)}); it has {keys}")
