"""The planner: one self-contained HTML page that evaluates the analytic engine's plans as its controls move.

The page carries the plans packed (zlib, base64) and its own script; it loads nothing, and a policy in it forbids it to.
The same plans give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Mapping
from typing import Any

from lorafa_prof import __version__
from lorafa_prof.reports.figures import CONTEXT_LOOK, DARK, LOOKS
from lorafa_prof.reports.prediction import PART_NAMES, method_name
from lorafa_prof.reports.templates import page_of, text_of

#: The scripts in the order in which each needs those before it.
_SCRIPTS = ("engine.js", "state.js", "draw.js", "bars.js", "frontier.js", "advice.js", "page.js")
_FOLDER = "planner_page"


def planner_page(plans: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        plans: models, devices and their plans, as `lorafa_prof.analytic.export` describes them.
        defaults: the run that the page opens with: model, method, gpu, bs, seq, rank and the plans' options.
    """
    methods = dict.fromkeys(name for model in plans["models"] for name in model["methods"])
    words = {
        "methods": {name: method_name(name) for name in methods},
        "parts": PART_NAMES,
        "looks": {
            part: {"color": color, "hatch": hatch, "dark": color in DARK}
            for part, (color, hatch) in {**LOOKS, "context_bytes": CONTEXT_LOOK}.items()
        },
    }
    document = {"plans": plans, "words": words, "defaults": defaults}
    script = '"use strict";\n' + "\n".join(text_of(_FOLDER, name) for name in _SCRIPTS)
    style = text_of(_FOLDER, "page.css")
    engine = plans["engine"]
    slots = {
        "script": script,
        "plans": _packed(document),
        "versions": html.escape(", ".join(f"{name} {number}" for name, number in engine["versions"].items())),
        "granule": html.escape(str(engine["granule"])),
    }
    policy = f"script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:"
    return page_of(
        _FOLDER, title="Fine-tuning memory planner", style=style, policy=policy, version=html.escape(__version__),
        slots=slots,
    )  # fmt: skip


def _digest(text: str) -> str:
    """Return the source of an inline element for the page's policy: it admits these bytes and no others."""
    assert "</script" not in text, "a script cannot hold its own end"
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _packed(document: Mapping[str, Any]) -> str:
    """Return plain data as text without a sign that HTML knows."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()
