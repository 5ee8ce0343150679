"""Reading of YAML and JSON that somebody else wrote: bounded, strict, and following nothing out of the file."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

from lorafa_prof.catalog.json_files import check_values, kind_of, one_line, read_json_object, read_text
from lorafa_prof.errors import BadInputError, MissingComponentError

#: Bytes of the largest file. Those of the tools' own examples stay below 20 kB.
LARGEST_FILE = 2**18
#: Values in a file once aliases are written out: a few hundred bytes can stand for billions.
MOST_VALUES = 20_000
WHAT = "a training configuration"


def read_mapping(path: str) -> dict[str, Any]:
    """Return what the file at `path` holds: JSON where it begins with a brace, else YAML.

    Raises:
        BadInputError: not a readable regular file of at most `LARGEST_FILE` bytes, not UTF-8, neither JSON nor YAML,
            no mapping with names for keys, a key given twice, nested too deeply, or aliases that stand for too much.
        MissingComponentError: PyYAML is not installed.
    """
    text = read_text(path, largest=LARGEST_FILE, what=WHAT)
    if text.lstrip().startswith("{"):
        return read_json_object(path, largest=LARGEST_FILE, what=WHAT)
    return _yaml_mapping(one_line(path), text)


def shown_name(path: str) -> str:
    """Return what a file is called in messages: its name, without the folders."""
    return one_line(os.path.basename(path) or path, 80)


def _yaml_mapping(where: str, text: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingComponentError(f"{where}: reading YAML needs PyYAML: pip install pyyaml") from None

    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _check_size(where, node)
            parsed = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise BadInputError(f"{where}: nested too deeply to be {WHAT}") from None
    except yaml.YAMLError as error:
        raise BadInputError(f"{where}: not valid YAML: {one_line(_problem(error))}") from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        AttributeError,
    ) as error:  # numbers and dates that only look like some
        raise BadInputError(f"{where}: not valid YAML: {one_line(str(error))}") from None
    if not isinstance(parsed, dict):
        raise BadInputError(f"{where}: must hold a mapping of keys to values, not {kind_of(parsed)}")
    for key in parsed:
        if not isinstance(key, str):
            raise BadInputError(f"{where}: the key {one_line(str(key), 60)} is no name")
    check_values(where, parsed, WHAT)
    return parsed


def _problem(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f" in line {mark.line + 1}" if mark is not None else ""
    return f"{problem or type(error).__name__}{place}"


def _check_size(where: str, root: Any) -> None:
    """Count the values that a graph of YAML nodes stands for, each shared node as often as it is reached.

    Nodes are looked at once, so that this costs no more than the text is long; what is counted is what would be made.
    """
    counts: dict[int, int] = {}
    open_nodes: set[int] = set()
    waiting: list[tuple[Any, bool]] = [] if root is None else [(root, False)]
    while waiting:
        node, done = waiting.pop()
        children = _children(node)
        if done:
            open_nodes.discard(id(node))
            counts[id(node)] = 1 + sum(counts[id(child)] for child in children)
            if counts[id(node)] > MOST_VALUES:
                raise BadInputError(f"{where}: more than {MOST_VALUES:,} values are too many for {WHAT}")
            continue
        if id(node) in counts:
            continue
        if id(node) in open_nodes:
            raise BadInputError(f"{where}: an alias that contains itself")
        open_nodes.add(id(node))
        _check_keys(where, node)
        waiting.append((node, True))
        for child in children:
            if id(child) in open_nodes:
                raise BadInputError(f"{where}: an alias that contains itself")
            waiting.append((child, False))


def _children(node: Any) -> list[Any]:
    if node.id == "mapping":
        return [part for pair in node.value for part in pair]
    return list(node.value) if node.id == "sequence" else []


def _check_keys(where: str, node: Any) -> None:
    """Refuse a key that is no plain name, or is there twice: YAML's readers would take the last without a word."""
    if node.id != "mapping":
        return
    seen: set[Hashable] = set()
    for key, _ in node.value:
        if key.id != "scalar":
            raise BadInputError(f"{where}: a key in line {key.start_mark.line + 1} is no name")
        if key.value in seen and key.value != "<<":
            raise BadInputError(f"{where}: key {one_line(key.value, 60)!r} is there twice")
        seen.add(key.value)
