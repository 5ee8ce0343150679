"""Several files of one run: what they say together, and where they contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorafa_prof.configs import deepspeed
from lorafa_prof.configs.formats import read_config
from lorafa_prof.configs.reading import Reading, Setting
from lorafa_prof.errors import ContradictionError


def read_configs(paths: Sequence[str]) -> Reading:
    """Return what the configuration files at `paths` say of one run, together.

    What a file says counts before what another leaves to its tool's default. Of one file alone that is all it says.

    Raises:
        ContradictionError: two files say different things of one option; the text names both.
        BadInputError: not readable, of no known format or of several, or a value of the wrong kind.
        UnsupportedError: what no engine models and no option mends; the text names file and key.
        MissingComponentError: PyYAML is not installed.
    """
    return merged([read_config(path) for path in paths])


def merged(readings: Sequence[Reading]) -> Reading:
    """Return what several readings say of one run, together.

    Raises:
        ContradictionError: two say different things of one option; the text names both.
    """
    settings: dict[str, Setting] = {}
    zero = any(str(r.options.get("shard", "")).startswith("zero") for r in readings)
    # DeepSpeed's file has the last word on precision: it is looked at first, and what is first is kept of that.
    for reading in sorted(readings, key=lambda r: zero and deepspeed.TOOL not in r.formats.values()):
        for option, setting in reading.settings.items():
            settings[option] = _one(option, settings.get(option), setting, zero=zero)
    refused = {option: reason for r in readings for option, reason in r.refused.items()}
    together = Reading(
        formats={file: tool for r in readings for file, tool in r.formats.items()}, settings=settings,
        refused={o: reason for o, reason in refused.items() if o not in settings or not settings[o].explicit},
        unused=tuple(key for r in readings for key in r.unused),
        notes=tuple(line for r in readings for line in r.notes),
        unmodelled=tuple(line for r in readings for line in r.unmodelled),
    )  # fmt: skip
    autocast = any(r.settings["amp"].value is True for r in readings if "amp" in r.settings)
    return _as_it_runs(together, zero=zero, autocast=autocast)


def _one(option: str, old: Setting | None, new: Setting, *, zero: bool) -> Setting:
    if old is None or old.value == new.value or old.explicit != new.explicit:
        return new if old is None or (new.explicit and not old.explicit) else old
    if not new.explicit or (option in ("amp", "dtype") and zero):
        return old
    if option == "method" and {old.value, new.value} == {"lora", "qlora"}:  # an adapter, and what it stands on
        return old if old.value == "qlora" else new
    raise ContradictionError(
        f"{old.source} and {new.source} contradict each other: {option.replace('_', '-')} {old.value} or {new.value}?"
    )


def _as_it_runs(reading: Reading, *, zero: bool, autocast: bool) -> Reading:
    """Return the reading with what follows from several options together."""
    settings, notes = dict(reading.settings), list(reading.notes)
    if zero and autocast:
        if settings["amp"].value:  # DeepSpeed's file says nothing, or "auto", which the Trainer fills in with its bf16
            settings["dtype"] = replace(settings["amp"], value="bf16")
            settings["amp"] = replace(settings["amp"], value=False)
        notes.append(
            "under DeepSpeed there is no autocast: accelerate leaves precision to it, and it casts all to bf16"
        )
    shared = settings.get("shard")
    unmodelled = list(reading.unmodelled)
    if shared is not None and shared.value in ("fsdp", "fsdp-grad-op") and "amp" in settings and settings["amp"].value:
        unmodelled.append(
            f"{shared.source}: under FSDP with bf16 weights are gathered in bf16; here they are gathered as kept"
        )
        full = "method" in settings and settings["method"].value == "full"
        if full and "dtype" in settings and settings["dtype"].value != "fp32":
            settings["dtype"] = replace(settings["dtype"], value="fp32")
            notes.append("under FSDP with bf16 accelerate casts what is trained to fp32")
    clip = settings.get("clip")
    if (
        shared is not None
        and shared.value not in ("none", "ddp")
        and clip is not None
        and clip.value
        and not clip.explicit
    ):
        del settings["clip"]
        notes.append(f"clipping, which is the tool's default, is not counted with {shared.value}")
    return replace(reading, settings=settings, notes=tuple(notes), unmodelled=tuple(unmodelled))
