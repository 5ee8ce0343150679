"""Pages as they lie in the package: folders of a page.html with slots, its style and its scripts; a head for all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def text_of(*path: str) -> str:
    """Return the text of a file, by its path within this package: "page", "page.css"."""
    return files("lorafa_prof.reports").joinpath(*path).read_text("utf-8")


def page_of(folder: str, *, title: str, style: str, policy: str, version: str, slots: Mapping[str, str]) -> str:
    """Return the page of a folder. What fills a slot, {{name}}, is taken as it is.

    Args:
        folder: its page.html has a slot for the head that all pages share.
        title: as HTML.
        style: its style sheet.
        policy: what its content security policy admits; all else is forbidden.
        version: of this package, as HTML.
        slots: what fills the other slots, beside `title` and `version`.
    """
    own = {"title": title, "version": version}
    head = _filled(text_of("head.html").rstrip(), {**own, "style": style, "policy": policy})
    return _filled(text_of(folder, "page.html"), {**own, **slots, "head": head})


def _filled(text: str, slots: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda match: slots[match[1]], text)
