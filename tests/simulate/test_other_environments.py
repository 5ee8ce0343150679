"""The same run under two releases of transformers, in environments that `make test-matrix` has made beside this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorafa_prof.diff import diff
from lorafa_prof.elsewhere.asking import recorded_elsewhere
from lorafa_prof.engines import recorded_step
from lorafa_prof.results import run_to_json
from tests.support.configs import tiny_run

HERE = Path(sys.prefix)
OTHERS = sorted(folder for folder in HERE.parent.glob(f"{HERE.name}-4.*") if (folder / "bin/python").exists())

#: Asks the other environment what torch itself says there, without any of our code.
_VERSIONS = "import json, peft, torch, transformers as t; print(json.dumps([torch.__version__, t.__version__]))"


@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason="no environment of another release beside this one: make test-matrix makes some")
@pytest.mark.parametrize("other", OTHERS, ids=lambda folder: folder.name)
def test_another_release(other: Path) -> None:
    """The record is of the other environment's own releases, and the changes add up to that of the peak. Releases
    before 4.50 slice the logits for the loss, and the backward of that slice is among what is removed.
    """
    python, run = str(other / "bin/python"), tiny_run("llama", "lora")
    before, after = recorded_elsewhere(python, run, None, None), recorded_step(run, None, None)
    said = subprocess.run([python, "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
    torch, transformers = json.loads(said.splitlines()[-1])
    assert (before.versions["torch"], before.versions["transformers"]) == (torch, transformers)
    assert before.versions["transformers"] != after.versions["transformers"]
    assert run_to_json(before.run) == run_to_json(after.run)
    found = diff(before, after)
    peaks = [record.memory.peak_allocated_bytes for record in (before, after)]
    assert [found.peak.before_bytes, found.peak.after_bytes] == peaks
    assert sum(change.change_bytes for change in found.peak.changes) == found.peak.after_bytes - found.peak.before_bytes
    if tuple(map(int, transformers.split(".")[:2])) < (4, 50):
        assert "slice_backward" in {change.operation for change in found.step.changes if change.kind == "removed"}
