"""Plans trace a few layers and let the middle one stand for the others: they are held to plans of every layer."""

from __future__ import annotations

import pytest

from lorafa_prof.analytic import builder as builder_module, timeline as timeline_module
from lorafa_prof.analytic.blocks import beyond_tensors
from lorafa_prof.analytic.plan import plan
from lorafa_prof.specs import RunSpec

#: Of tiny models: tensors of these have more than 1 MiB, and no round number of it.
LARGE = ((70, 700), (31, 1111))


def check_repeated_layers(run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak, phases, blocks, what is saved, FLOPs and parameters are those of a plan in which every layer was traced."""
    short = plan(run)
    for module in (builder_module, timeline_module):
        monkeypatch.setattr(module, "TRACED_LAYERS", 1000)
    full = plan(run)
    for bs, seq in ((3, 22), (2, 64), (7, 1)):
        assert short.peak(bs, seq).allocated == full.peak(bs, seq).allocated
        assert short.peak(bs, seq).phases == full.peak(bs, seq).phases
        assert short.saved_activation_bytes(bs, seq) == full.saved_activation_bytes(bs, seq)
        assert short.flops(bs, seq) == full.flops(bs, seq)
    for bs, seq in LARGE:
        one, other = (beyond_tensors(each, bs, seq, each.peak(bs, seq).position) for each in (short, full))
        # with adapters in some layers alone, what stands for several layers comes and goes in another order than theirs
        if one != other and run.method.layers is not None:
            assert one is not None
            assert other is not None
            assert abs(one - other) <= 0.01 * short.peak(bs, seq).allocated
        else:
            assert one == other
    assert short.parameters == full.parameters
    assert short.static_bytes == full.static_bytes
