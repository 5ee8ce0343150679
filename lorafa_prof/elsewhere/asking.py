"""Asks the interpreter of another environment to simulate a run, and reads its answer as plain data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lorafa_prof.catalog.json_files import one_line, read_json_object
from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError, UnsupportedError
from lorafa_prof.results.plain import run_to_json
from lorafa_prof.results.step_record import StepRecord
from lorafa_prof.specs import RunSpec

#: Bytes of the largest record that is read: some thousands of operations.
LARGEST_RECORD = 64 * 2**20
#: Its own folders first, then our package by name alone: of this environment's other packages it must see none. The
#: current folder, where -c looks first, may hold anything.
_BOOTSTRAP = """
import sys, importlib.util
sys.path[:] = [entry for entry in sys.path if entry]
package = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    "lorafa_prof", package + "/__init__.py", submodule_search_locations=[package])
module = sys.modules["lorafa_prof"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from lorafa_prof.elsewhere.child import main
main(sys.argv[2])
"""
#: What would mix this environment into the other one.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
_ERRORS: dict[str, type[LorafaProfError]] = {
    "MissingComponentError": MissingComponentError, "UnsupportedError": UnsupportedError,
}  # fmt: skip


def recorded_elsewhere(python: str, run: RunSpec, device: str | None, conf: str | None) -> StepRecord:
    """Return what each operation of a run's step allocates in another environment.

    Args:
        python: its interpreter, by path or by a name on the PATH.
        run: the configuration.
        device: the card by alias or JSON file; None: one before Hopper.
        conf: allocator settings as PYTORCH_CUDA_ALLOC_CONF has them.

    Raises:
        BadInputError: no such interpreter, one older than Python 3.10, or one that fails.
        MissingComponentError: PyTorch, transformers or PEFT is not installed there.
        UnsupportedError: what is not simulated there.
    """
    program = shutil.which(python)
    if program is None:
        raise BadInputError(f"--python {one_line(python)}: no program of this name that can be run")
    request = {"run": run_to_json(run), "device": _absolute(device), "conf": conf}
    with tempfile.TemporaryDirectory(prefix="lorafa-prof-") as folder:
        answer = os.path.join(folder, "record.json")
        done = _run(program, request, answer)
        if not os.path.exists(answer):
            raise BadInputError(f"{one_line(python)}: {_reason(program, done)}")
        said = read_json_object(answer, largest=LARGEST_RECORD, what="a record")
    if "record" not in said:
        kind = _ERRORS.get(str(said.get("kind")), BadInputError)
        raise kind(f"{one_line(python)}: {one_line(str(said.get('text')), 1000)}")
    return StepRecord.from_json(said["record"], source=python)


def _run(program: str, request: dict[str, Any], answer: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(__file__).resolve().parents[1])
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    return subprocess.run(  # noqa: S603 - the interpreter that the user names, with code of our own
        [program, "-c", _BOOTSTRAP, package, answer], input=json.dumps(request), capture_output=True, text=True,
        errors="replace", check=False, env=environment,
    )  # fmt: skip


def _reason(program: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return why there is no answer, in one line."""
    asked = "import sys; print(sys.version_info >= (3, 10))"
    version = subprocess.run(  # noqa: S603
        [program, "-c", asked], capture_output=True, text=True, errors="replace", check=False
    )
    if version.stdout.strip() == "False":
        return "Python 3.10 or newer is needed there"
    if version.stdout.strip() != "True":
        return "that is no Python interpreter"
    lines = done.stderr.strip().splitlines()
    return one_line(lines[-1], 500) if lines else f"it ended with {done.returncode} and without an answer"


def _absolute(device: str | None) -> str | None:
    """Return a card's name as it is found from another folder."""
    return os.path.abspath(device) if device is not None and os.path.isfile(device) else device
