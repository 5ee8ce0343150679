"""Plans trace a few layers and let the middle one stand for the others: they are held to plans of every layer."""

from __future__ import annotations

import pytest

from lorafa_prof.analytic import builder as builder_module, timeline as timeline_module
from lorafa_prof.analytic.plan import plan
from lorafa_prof.specs import RunSpec


def check_repeated_layers(run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak, phases, what is saved, FLOPs and parameters are those of a plan in which every layer was traced."""
    short = plan(run)
    for module in (builder_module, timeline_module):
        monkeypatch.setattr(module, "TRACED_LAYERS", 1000)
    full = plan(run)
    for bs, seq in ((3, 22), (2, 64), (7, 1)):
        assert short.peak(bs, seq).allocated == full.peak(bs, seq).allocated
        assert short.peak(bs, seq).phases == full.peak(bs, seq).phases
        assert short.saved_activation_bytes(bs, seq) == full.saved_activation_bytes(bs, seq)
        assert short.flops(bs, seq) == full.flops(bs, seq)
    assert short.parameters == full.parameters
    assert short.static_bytes == full.static_bytes
