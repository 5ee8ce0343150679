"""What figures call their series: what all have in common goes into the title, what tells them apart into labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lorafa_prof.reports.prediction import method_name
from lorafa_prof.reports.table import clean
from lorafa_prof.results.records import Setting
from lorafa_prof.specs import KEPT_BY_DEFAULT

Settings = Mapping[str, Setting]

#: Longer names are cut in the middle: a figure has no room for them.
LONGEST_NAME = 40


def short(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a name on one line, without control characters, and no longer than that."""
    text = clean(text)
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def model_name(name: str) -> str:
    """Return a model's name without the folders that it lies in."""
    return short(name.rstrip("/\\").replace("\\", "/").rpartition("/")[2])


#: The settings in the order in which they are told, and how; None: not worth a word.
_WORDS: Mapping[str, Callable[[Setting], str | None]] = {
    "model": lambda value: model_name(str(value)),
    "bs": lambda value: f"batch {value}",
    "seq": lambda value: f"{value:,} tokens" if isinstance(value, int) else f"{value} tokens",
    "rank": lambda value: f"rank {value}",
    "targets": lambda value: f"on {value}",
    "layers": lambda value: None if value == "all" else f"layers {value}",
    "where": lambda value: f"{value} layers",
    "dropout": lambda value: f"dropout {value}" if value else None,
    "dtype": str,
    "amp": lambda value: "autocast" if value in (True, "true") else None,
    "adapter_dtype": lambda value: f"adapters {value}",
    "attn": lambda value: f"{value} attention",
    "checkpointing": lambda value: None if value == "none" else f"{value} checkpointing",
    "keep": lambda value: None if value == ",".join(KEPT_BY_DEFAULT) else f"keeps {value}",
    "optimizer": str,
    "quant": lambda value: None if value == "none" else str(value),
    "prepare_kbit": lambda value: None if value == "none" else f"prepared as {value}",
    "loss": lambda value: None if value == "hf" else f"{value} loss",
    "accumulation": lambda value: None if value in (1, "1") else f"{value} micro-batches",
    "clip": lambda value: "clipped" if value in (True, "true") else None,
    "gpus": lambda value: None if value == 1 else f"{value} GPUs",
    "shard": lambda value: None if value == "none" else str(value),
    "device": lambda value: f"measured on {short(str(value))}",
}
#: Follow from the method, or are told by a verdict of their own: named only where they tell two of a method apart.
QUIET = ("adapter_dtype", "optimizer", "quant", "prepare_kbit")
#: What full fine-tuning has no use for.
_OF_ADAPTERS = ("rank", "targets", "layers", "where", "dropout", "adapter_dtype")


Key = frozenset[tuple[str, Setting]]


def key_of(settings: Settings, without: Sequence[str] = ()) -> Key:
    """Return what a series is told from others by; full fine-tuning is the same at any rank."""
    unused = _OF_ADAPTERS if settings.get("method") == "full" else ()
    return frozenset((k, v) for k, v in settings.items() if k not in without and k not in unused and v is not None)


def title_of(all_settings: Sequence[Settings], without: Sequence[str] = ()) -> str:
    """Return in words what all have in common, the method left out."""
    said = []
    for name, word in _WORDS.items():
        if name in without or name in QUIET:
            continue
        values = {_value(settings, name) for settings in all_settings if _applies(settings, name)}
        if len(values) == 1:
            (value,) = values
            said.append(None if value is None else word(value))
    return ", ".join(filter(None, said))


def labels_of(all_settings: Sequence[Settings], without: Sequence[str] = ()) -> list[str]:
    """Return a label for each: its method, and what tells it from the others, as short as that goes."""
    told = [name for name in _WORDS if name not in without and _tells_apart(all_settings, name)]
    labels = []
    for settings in all_settings:
        own = [
            _WORDS[name](value)
            for name in told
            if _applies(settings, name) and (value := settings.get(name)) is not None
        ]
        labels.append(", ".join(filter(None, [method_name(short(str(settings.get("method")))), *own])))
    return labels


def _tells_apart(all_settings: Sequence[Settings], name: str) -> bool:
    """Return whether a setting differs among those of one method, or among all where no method decides it."""
    by_method: dict[Setting, set[Setting]] = {}
    for settings in all_settings:
        if _applies(settings, name):
            by_method.setdefault(settings.get("method"), set()).add(_value(settings, name))
    if any(len(values) > 1 for values in by_method.values()):
        return True
    return name not in QUIET and len(set().union(*by_method.values())) > 1


def _applies(settings: Settings, name: str) -> bool:
    return not (settings.get("method") == "full" and name in _OF_ADAPTERS)


def _value(settings: Settings, name: str) -> Setting:
    return settings.get(name)
