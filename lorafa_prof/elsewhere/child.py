"""What runs in the other interpreter: a request on stdin, a record of the step in a file.

The other environment needs what the simulation imports, and not the command line's packages.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from lorafa_prof.errors import LorafaProfError


def main(answer: str) -> None:
    """Record what the request on stdin asks for, and write the record, or why there is none, as JSON.

    Args:
        answer: path of the file that is written.
    """
    request = json.load(sys.stdin)
    try:
        said: dict[str, Any] = {"record": _recorded(request)}
    except LorafaProfError as error:
        said = {"kind": type(error).__name__, "text": str(error)}
    except ModuleNotFoundError as error:
        said = {"kind": "MissingComponentError", "text": f"{error.name} is not installed"}
    with open(answer, "w", encoding="utf-8") as stream:
        json.dump(said, stream)


def _recorded(request: Mapping[str, Any]) -> dict[str, Any]:
    from lorafa_prof.catalog import load_device
    from lorafa_prof.engines import recorded_step
    from lorafa_prof.results import run_from_json

    device = None if request["device"] is None else load_device(request["device"])
    return recorded_step(run_from_json(request["run"]), device, request["conf"]).to_json()
