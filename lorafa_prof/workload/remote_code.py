"""Models whose Python code lies beside their configuration (`auto_map`): run only when that was asked for."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import huggingface_hub
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from lorafa_prof.errors import MissingComponentError, UnsupportedError
from lorafa_prof.specs import Task

#: "module.Class": a file in the folder itself, and a class in it.
_REFERENCE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")


def folder_of(name: str, config: Mapping[str, Any], folder: str | None, *, trust: bool, known: bool) -> str | None:
    """Return the folder whose code builds the model, or None where transformers' own code does.

    As in `from_pretrained`, a type that transformers has itself is built by its own code unless the other is asked for.

    Args:
        name: what the user calls the model.
        config: the configuration.
        folder: where it lies; None: not in a folder of the user's.
        trust: whether --trust-remote-code was given.
        known: whether transformers has the type itself.

    Raises:
        UnsupportedError: the model needs code that was not asked for, or that does not lie in the folder.
    """
    references = _references(config)
    if not references or (known and not trust):
        return None
    if not trust:
        raise UnsupportedError(
            f"{name}: this model is built by Python code of its own (auto_map: {_shown(references)}), which is not run "
            "unless you ask for it: read it, then add --trust-remote-code"
        )
    if folder is None:
        raise UnsupportedError(
            f"{name}: code of a model is taken from a folder of yours and never downloaded: fetch the whole repository "
            "and name its folder"
        )
    for reference in references.values():
        if _REFERENCE.fullmatch(reference) is None:
            raise UnsupportedError(
                f"{name}: auto_map names {reference[:80]!r}, which is not a class of a file in the folder; code from "
                "elsewhere is never downloaded"
            )
        file = os.path.join(folder, reference.partition(".")[0] + ".py")
        if not os.path.isfile(file):
            raise UnsupportedError(f"{name}: auto_map names code in {os.path.basename(file)!r}, which is not there")
    return os.path.abspath(folder)


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Keep the libraries from the Hugging Face hub: from its files, and from kernels that transformers takes there."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        with contextlib.suppress(ImportError):  # older releases have none
            from transformers.integrations import hub_kernels

            if hasattr(hub_kernels, "_kernels_enabled"):
                patches.enter_context(mock.patch.object(hub_kernels, "_kernels_enabled", False))
        yield


def _references(config: Mapping[str, Any]) -> dict[str, str]:
    """Return auto class -> "module.Class", for configurations and models."""
    table = config.get("auto_map")
    if not isinstance(table, Mapping):
        return {}
    return {
        str(key): value for key, value in table.items()
        if isinstance(value, str) and str(key).startswith(("AutoConfig", "AutoModel"))
    }  # fmt: skip


def _shown(references: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(references.values()))[:120]


def task_of(name: str, config: Mapping[str, Any], classes: Mapping[Task, str]) -> tuple[Task, str]:
    """Return what the code has a model class for, and that class: the one that `architectures` name, else the first.

    Args:
        name: what the user calls the model.
        config: the configuration.
        classes: the auto class of each task.

    Raises:
        UnsupportedError: none of the auto classes that a step is built for.
    """
    references = _references(config)
    able = {task: references[auto].partition(".")[2] for task, auto in classes.items() if auto in references}
    if not able:
        raise UnsupportedError(
            f"{name}: its auto_map has {', '.join(references)}, and none of {', '.join(classes.values())}"
        )
    named = config.get("architectures")
    named = named if isinstance(named, (list, tuple)) else ()
    task = next((task for task, found in able.items() if found in named), next(iter(able)))
    return task, able[task]


def configuration(config: Mapping[str, Any], keys: dict[str, Any], folder: str) -> Any:
    """Return the configuration object of the model's own class, or of transformers' where the code has none.

    It knows its folder and its `auto_map`, by which `from_config` finds the model's class.

    Raises:
        MissingComponentError: the code imports what is not installed.
        Exception: whatever that code raises.
    """
    references = _references(config)
    try:
        if "AutoConfig" in references:
            made = get_class_from_dynamic_module(references["AutoConfig"], folder, local_files_only=True)(**keys)
        else:
            made = transformers.AutoConfig.for_model(config["model_type"], **keys)
    except ImportError as error:
        raise MissingComponentError(f"the model's own code cannot be imported: {error}") from error
    made.auto_map, made._name_or_path = references, folder
    return made
