"""A configuration file in another tool's format, and the flags that it stands for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ToolFile:
    name: str
    text: str
    flags: str
    """What the command line would be told in its place."""
    more: str = ""
    """What is given beside the file, and beside the flags."""
    says: tuple[str, ...] = ()
    """Parts of lines that have to be said about it."""
