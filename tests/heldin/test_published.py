"""Peaks that others measured on GPUs and published, against the simulation of the same step with the same releases.

tests/ground_truth/published.csv has the rows with their sources. Each test runs where the releases are that its row
names, and nowhere else (`make test-heldin` makes the environments): the step of other releases is another step. No
figure is adjusted to a row; what a row does not say is read from the program that measured it, or is an assumption that
is named beside the test.
"""

from __future__ import annotations

import pytest

from lorafa_prof.catalog import load_device
from lorafa_prof.simulate.engine import simulate
from tests.heldin.fms import FMS, ROWS, fms_run, releases
from tests.heldin.peft_benchmark import PEFT, peak_reserved

pytestmark = pytest.mark.heldin


def measured(name: str) -> int:
    return int(ROWS[name]["value_bytes"])


# -- foundation-model-stack/fms-acceleration, one A100 80 GB -----------------------------------------------------------

#: By how much the simulation may miss each row.
TOLERANCES = dict.fromkeys(FMS, 0.005) | {name: 0.02 for name in FMS if name.startswith(("fms-3", "fms-4"))}


@releases("4.48.1", "0.13.2")
@pytest.mark.parametrize("name", FMS)
def test_peak_allocated_of_fms_acceleration(name: str) -> None:
    """Full fine-tuning, LoRA and QLoRA with checkpointing: peak allocated within half a per cent, QLoRA within two."""
    peak = simulate(fms_run(name), load_device("a100-80gb")).replayed.allocated.size
    print(f"{name}: measured {measured(name)}, simulated {peak}, {peak / measured(name) - 1:+.3%}")
    assert peak == pytest.approx(measured(name), rel=TOLERANCES[name])


# -- huggingface/peft, method_comparison/MetaMathQA, one L40S ----------------------------------------------------------


@releases("4.57.1", "0.18.1")
def test_peak_reserved_of_peft_s_method_comparison() -> None:
    """Reserved memory within five per cent; differences between methods within two per cent of the larger's peak."""
    found = {name: peak_reserved(name) for name in PEFT}
    for name, peak in found.items():
        print(f"{name}: measured {measured(name)}, simulated {peak}, {peak / measured(name) - 1:+.2%}")
        assert peak == pytest.approx(measured(name), rel=0.05)
    for one, other in (("peft-1", "peft-2"), ("peft-3", "peft-1"), ("peft-3", "peft-2")):
        error = ((found[one] - found[other]) - (measured(one) - measured(other))) / measured(one)
        print(f"{one} less {other}: off by {error:+.2%} of {one}")
        assert abs(error) <= 0.02
