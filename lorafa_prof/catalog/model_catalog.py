"""The models known by name, and the way from whatever the user calls a model to its `ModelSpec`.

Each catalog entry is one file, models/<alias>.json, with the published configuration and where it comes
from. A model that is asked for by its alias costs the reading of that one file.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafa_prof.catalog.configs import spec_from_config
from lorafa_prof.catalog.hub import CONFIG, hub_config_path, looks_like_hub_id
from lorafa_prof.catalog.json_files import one_line, read_json_object
from lorafa_prof.errors import BadInputError, UnknownNameError, nearest_names
from lorafa_prof.specs import ModelSpec

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
_SUFFIX = ".json"
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_HINT = "See `lorafa-prof list models`, or give a hub id (owner/name) or the path of a config.json."


def model_names() -> list[str]:
    """Return the aliases of the catalog, sorted."""
    return sorted(file[: -len(_SUFFIX)] for file in os.listdir(_FOLDER) if file.endswith(_SUFFIX))


def model_entry(name: str) -> dict[str, Any]:
    """Return the catalog's entry for an alias or hub id, as its data file holds it.

    Its keys are "name", "hub_id", "aliases", "source", "parameters", "parameters_source" and "config"; "also" has the
    hub ids of others with the same configuration: chat models that were made of it, and copies.

    Raises:
        UnknownNameError: not in the catalog.
    """
    entry = _find_entry(name)
    if entry is None:
        raise _unknown(name)
    return entry


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """The configuration of a model as it was published, not looked at yet."""

    name: str
    """What the user calls the model; for one of the catalog, its alias."""
    config: Mapping[str, Any]
    folder: str | None = None
    """The folder of the user's that it lies in; None for one of the catalog or the hub."""
    parameters: int | None = None
    """As published with the catalog entry."""

    def spec(self) -> ModelSpec:
        """Return the architecture.

        Raises:
            BadInputError: a configuration that cannot be used.
            UnsupportedError: an architecture that is not modelled.
        """
        return dataclasses.replace(spec_from_config(self.name, self.config), parameters=self.parameters)


def load_model(name: str, *, offline: bool | None = None) -> ModelSpec:
    """Return the architecture of the model that the user calls `name`; see `find_config` for where it is looked for.

    Raises:
        as `find_config`.
        UnsupportedError: an architecture that is not modelled.
    """
    return find_config(name, offline=offline).spec()


def find_config(name: str, *, offline: bool | None = None) -> PublishedConfig:
    """Return the configuration of the model that the user calls `name`.

    Tried in this order: an alias or hub id of the catalog (in any case), the path of a config.json or of a
    folder with one, the Hugging Face hub.

    Args:
        name: an alias ("llama2-7b"), a hub id ("owner/name") or a path.
        offline: do not touch the network; None for what HF_HUB_OFFLINE says.

    Raises:
        UnknownNameError: none of these.
        BadInputError: a configuration that cannot be read or used, or a hub model that cannot be had.
        MissingComponentError: huggingface_hub is needed and not installed.
    """
    if not isinstance(name, str):
        raise BadInputError(f"a model is called by a string, not a {type(name).__name__}")
    entry = None if _written_like_a_path(name) else _find_entry(name)
    if entry is not None:
        return PublishedConfig(name=entry["name"], config=entry["config"], parameters=entry.get("parameters"))
    path = _local_config(name)
    if path is not None:
        return PublishedConfig(name=name, config=read_json_object(path), folder=os.path.dirname(os.path.abspath(path)))
    if looks_like_hub_id(name):
        return PublishedConfig(name=name, config=read_json_object(hub_config_path(name, offline=offline)))
    raise _unknown(name)


def hub_ids() -> dict[str, str]:
    """Return the alias of the catalog's model of each hub id that it knows, in small letters."""
    return {hub_id.casefold(): str(entry["name"]) for entry in _entries() for hub_id in _hub_ids_of(entry)}


def _find_entry(name: str) -> dict[str, Any] | None:
    wanted = name.casefold()
    file = os.path.join(_FOLDER, wanted + _SUFFIX)
    if _ALIAS.fullmatch(wanted) and os.path.isfile(file):
        return read_json_object(file)
    return next((entry for entry in _entries() if wanted in map(str.casefold, _names_of(entry))), None)


def _entries() -> Iterator[dict[str, Any]]:
    for alias in model_names():
        yield read_json_object(os.path.join(_FOLDER, alias + _SUFFIX))


def _names_of(entry: dict[str, Any]) -> list[str]:
    return [entry["name"], *entry.get("aliases", ()), *_hub_ids_of(entry)]


def _hub_ids_of(entry: dict[str, Any]) -> list[str]:
    return [*filter(None, [entry.get("hub_id")]), *entry.get("also", ())]


def _unknown(name: str) -> UnknownNameError:
    known = model_names()
    if not nearest_names(name, known):  # a hub id and its alias side by side would crowd out another model
        known = [other for entry in _entries() for other in _names_of(entry)]
    return UnknownNameError("model", one_line(name), known, _HINT)


def _local_config(name: str) -> str | None:
    """Return the path of the configuration at `name`, or None where `name` is not a path at all.

    Raises:
        BadInputError: written like a path, but nothing can be read there, or a folder without a config.json.
    """
    path = name
    try:
        path = os.path.expanduser(name)
        is_folder = os.path.isdir(path)
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if _written_like_a_path(name) or os.path.lexists(path):
            raise BadInputError(f"{one_line(name)}: no such file or folder") from None
        return None
    except OSError as error:
        raise BadInputError(f"{one_line(name)}: {error.strerror or 'cannot be read'}") from None
    except ValueError:  # a NUL, or what the file system cannot encode
        return None
    if not is_folder:
        return path
    path = os.path.join(path, CONFIG)
    if not os.path.lexists(path):
        raise BadInputError(f"{one_line(name)}: the folder has no {CONFIG}")
    return path


def _written_like_a_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", ".\\", "..\\")) or name.endswith((_SUFFIX, "/", "\\"))
