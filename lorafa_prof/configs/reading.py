"""What a configuration file says of a run: run options, and all that it says beside them, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int | float | bool

#: The run options that a file can set, by the names that the command line and `RunSpec` have for them.
OPTIONS = (
    "model", "method", "bs", "seq", "rank", "targets", "layers", "dtype", "amp", "adapter_dtype", "attn",
    "checkpointing", "dropout", "optimizer", "quant", "prepare_kbit", "loss", "accumulation", "clip", "gpus", "shard",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run option as a file has it."""

    value: Value
    source: str
    """The file, and the key that says so: "lora.yml: micro_batch_size"."""
    explicit: bool = True
    """False: the file leaves it out, and the tool's own default counts."""


@dataclass(frozen=True, kw_only=True)
class Unused:
    """One key that is not used."""

    file: str
    key: str
    reason: str
    """Empty: it has no effect on a step's memory or arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One configuration file, or several taken together."""

    formats: Mapping[str, str]
    """The tool whose format each file has, by the file's name."""
    settings: Mapping[str, Setting]
    """By the names in `OPTIONS`."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """What the file says of an option that no engine models, with the reason; the option is to be given otherwise."""
    unused: tuple[Unused, ...] = ()
    """Keys that are not used."""
    notes: tuple[str, ...] = ()
    """How something was understood that could be understood otherwise."""
    unmodelled: tuple[str, ...] = ()
    """What takes memory in the tool and is not counted by any engine."""

    @property
    def options(self) -> dict[str, Value]:
        """The values alone."""
        return {name: setting.value for name, setting in self.settings.items()}

    def lines(self) -> list[str]:
        """Return in words what was taken, what was not and why, a line each."""
        found = []
        for file, tool in self.formats.items():
            own = {n: s for n, s in self.settings.items() if s.source.startswith(f"{file}: ")}
            said = ", ".join(f"{_flag(n)} {_shown(s.value)}" for n, s in own.items() if s.explicit)
            assumed = ", ".join(f"{_flag(n)} {_shown(s.value)}" for n, s in own.items() if not s.explicit)
            found.append(f"{file}, {tool}: {said or 'nothing that is used'}")
            if assumed:
                found.append(f"{file}, defaults of {tool}: {assumed}")
        found += self.notes
        by_reason: dict[tuple[str, str], list[str]] = {}
        for unused in self.unused:
            by_reason.setdefault((unused.reason, unused.file), []).append(unused.key)
        harmless = {file: keys for (reason, file), keys in by_reason.items() if not reason}
        found += [f"{f}: not used ({why}): {', '.join(keys)}" for (why, f), keys in by_reason.items() if why]
        return found + [f"{file}: no effect on memory: {', '.join(keys)}" for file, keys in harmless.items()]


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _shown(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
