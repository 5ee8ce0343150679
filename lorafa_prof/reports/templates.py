"""Pages as they lie in the package: folders of a page.html with slots, its style and its scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def text_of(folder: str, name: str) -> str:
    """Return the text of a file of one page's folder."""
    return (files("lorafa_prof.reports") / folder / name).read_text("utf-8")


def filled(folder: str, slots: Mapping[str, str]) -> str:
    """Return the page of a folder with its slots, {{name}}, filled; what fills one is taken as it is."""
    return _SLOT.sub(lambda match: slots[match[1]], text_of(folder, "page.html"))
