"""Largest batches of every card of the catalog, by both engines: each fits, one more does not, and where the two
engines differ there is a reason that is looked at.

A test prints its rows, one a card; `make test-thresholds` runs all.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.catalog import device_names, load_device, load_model
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.results import Threshold
from lorafa_prof.simulate.engine import simulate
from lorafa_prof.simulate.recordings import Recordings
from lorafa_prof.simulate.searching import Simulations
from lorafa_prof.specs import DeviceSpec, MethodSpec, RunSpec
from lorafa_prof.thresholds import find_threshold
from lorafa_prof.units import format_bytes

METHODS = ("full", "lora", "lora-fa", "qlora", "vera")
MODELS = ("qwen2.5-0.5b", "llama2-7b", "mistral-7b")
#: On which the step is simulated once more, by an engine that knows nothing yet.
ASKED_ANEW = "a100-40gb"
#: Both engines say the same of what is allocated, to this share, where they know the same kernels.
SAME = 0.01


def close(one: int, other: int) -> bool:
    """Whether two thresholds differ by no more than one, or than 2 %."""
    return abs(one - other) <= max(1, 0.02 * max(one, other))


@dataclass
class Engines:
    """One run, and who judges it: closed forms, and simulated steps with PyTorch's defaults and with small gaps."""

    run: RunSpec

    def __post_init__(self) -> None:
        recordings = Recordings()
        expandable = AllocatorSettings.parse("expandable_segments:True")
        self.forms = ClosedForms()
        self.plain = Simulations(None, self.forms.guess, recordings=recordings)
        self.packed = Simulations(expandable, self.forms.guess, recordings=recordings)

    def row(self, card: DeviceSpec) -> str:
        """Find both thresholds on a card, hold them against the verdicts, and return them with what sets them apart."""
        formed = find_threshold(self.forms, self.run, "bs", card)
        simulated = find_threshold(self.plain, self.run, "bs", card)
        for found, engine in ((formed, self.forms), (simulated, self.plain)):
            assert found.first_oom == found.max + 1
            assert not engine.verdict(found.at(found.first_oom), card).fits
            assert found.max == 0 or engine.verdict(found.at(found.max), card).fits
        why = "" if close(formed.max, simulated.max) else self.reason(card, formed, simulated)
        return f"{card.name}: {formed.max} by closed forms, {simulated.max} simulated{why and ': '}{why}"

    def reason(self, card: DeviceSpec, formed: Threshold, simulated: Threshold) -> str:
        """Return why the thresholds differ, having looked: kernels that closed forms do not know, or gaps."""
        edge = simulated.at_first_oom
        assert edge is not None
        assert edge.memory is not None
        assert edge.memory.peak_allocated_bytes is not None
        assert edge.memory.peak_reserved_bytes is not None
        allocated, reserved = edge.memory.peak_allocated_bytes, edge.memory.peak_reserved_bytes
        memory = self.forms.verdict(simulated.at(edge.value), card).memory
        assert memory is not None
        said = memory.peak_allocated_bytes
        assert said is not None
        where = f"at {edge.value} closed forms have {format_bytes(said)} allocated, the simulation "
        if said != pytest.approx(allocated, rel=SAME):
            firsts = (line.partition(",")[0] for line in formed.unmodelled)
            (kernels,) = (first for first in firsts if first.endswith("attention"))
            return f"{where}{format_bytes(allocated)}, by {kernels}"
        packed = find_threshold(self.packed, self.run, "bs", card)
        assert close(formed.max, packed.max), f"{card.name}: {formed.max} formed, {packed.max} in expandable segments"
        return (
            f"{where}{format_bytes(allocated)}, and {format_bytes(reserved)} reserved; {packed.max} fit in expandable "
            "segments"
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_the_largest_batch_on_every_card(model: str, method: str) -> None:
    """Thresholds by closed forms and by simulated steps differ by no more than one or 2 %, or by what the allocator
    reserves (with expandable segments they do not), or by attention kernels that closed forms say they do not know.
    """
    engines = Engines(RunSpec(model=load_model(model), method=MethodSpec(name=method), bs=2, seq=1024))
    for name in device_names():
        card = load_device(name)
        if card.vendor == "nvidia":
            print(f"{model}, {method}, {engines.row(card)}")  # noqa: T201 - rows that are to be read
        else:
            with pytest.raises(UnsupportedError, match="knows CUDA's kernels"):
                engines.plain.verdict(engines.run, card)
    asked = load_device(ASKED_ANEW)
    found = find_threshold(engines.plain, engines.run, "bs", asked)
    for edge in filter(None, (found.at_max, found.at_first_oom)):
        anew = simulate(found.at(edge.value), asked).prediction([asked], largest_batch=False)
        assert (anew.memory, anew.fit[0].fits) == (edge.memory, edge.fits)
