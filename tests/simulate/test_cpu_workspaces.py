"""What the CPU's kernels allocate inside operators, held to the allocator's own reports, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.simulate.kernels.cpu_workspaces import cpu_workspaces
from lorafa_prof.simulate.kernels.workspaces import OUTPUTS, DeviceTraits, KernelCall, Workspace
from lorafa_prof.workload.naming import tensors_in
from lorafa_prof.workload.step import Workload, training_step
from tests.support.configs import tiny_run
from tests.support.profiled import OperatorCall, kernels_of_known_size, operator_calls

NO_GPU = DeviceTraits(None, None)


@pytest.fixture(autouse=True)
def _two_threads_without_onednn() -> Iterator[None]:
    with kernels_of_known_size(threads=2):
        yield


def predicted_peak(call: OperatorCall) -> int:
    """Most bytes that the operator takes at once, by the table and the sizes of its new outputs."""
    outputs = sum(event.delta for event in call.events if event.delta > 0 and event.pointer in call.new)
    kernel = KernelCall(str(call.func), call.args, call.kwargs, tuple(tensors_in(call.outputs)), NO_GPU)
    workspaces = cpu_workspaces(kernel, torch.get_num_threads())
    before = [w for w in workspaces if not w.after_outputs]
    after = [w for w in workspaces if w.after_outputs]
    live: list[Workspace] = []
    peak = 0
    for born in [*before, Workspace(OUTPUTS, outputs, False), *after]:
        live = [*(w for w in live if w.freed_before != born.name), born]
        peak = max(peak, sum(w.nbytes for w in live))
    return peak


def observed_peak(call: OperatorCall) -> int:
    live = peak = 0
    for event in call.events:
        live += event.delta
        peak = max(peak, live)
    return peak


def wrong(calls: list[OperatorCall]) -> list[str]:
    """What differs, for people."""
    found = set()
    for call in calls:
        if predicted_peak(call) != observed_peak(call):
            shapes = [(tuple(t.shape), t.dtype, t.stride()) for t in tensors_in(call.args)][:4]
            found.add(f"{call.func} {shapes}: {predicted_peak(call)}, not {observed_peak(call)} of {call.order[:12]}")
    return sorted(found)


F32, BF16 = torch.randn(300, 200), torch.randn(300, 200).bfloat16()
LONGS, BOOLS = torch.ones(300, 200, dtype=torch.long), torch.ones(300, 200, dtype=torch.bool)
STRETCHED = torch.ones(300, 1).expand(300, 200)
LEAF = torch.randn(30, 200, requires_grad=True)
TABLE = torch.randn(9, 6, requires_grad=True)
HEADS = torch.randn(2, 3, 70, 8)

PROGRAMS: dict[str, Callable[[], Any]] = {
    "numbers": lambda: (F32 * 2, F32 + 1.5, 1 - F32, BF16 / 3, LONGS + 1, LONGS * 0.5, BOOLS * 2, LONGS / 2),
    "comparisons": lambda: (F32 > 0, F32 == 0.5, LONGS != 1, BF16 <= 1.0, LONGS < LONGS, F32 >= BF16),
    "two dtypes": lambda: (F32 + BF16, BF16 - F32[:, :1], F32 * LONGS, BF16 / LONGS, F32.half() + BF16),
    "a number as a tensor": lambda: (F32 * torch.tensor(2.0, dtype=torch.float64), BF16 * torch.tensor(2.0)),
    "two dtypes in place": lambda: (BF16.clone().add_(F32), F32.clone().mul_(BF16), F32.clone().div_(3)),
    "where": lambda: (torch.where(BOOLS, F32, BF16), torch.where(BOOLS, F32, 0.0), torch.where(BOOLS, F32, F32)),
    "foreach": lambda: (
        torch._foreach_mul_([F32.clone(), BF16.clone()], 0.9), torch._foreach_div_([F32.clone()], [3.0]),
        torch._foreach_add_([BF16.clone()], 1e-8), torch._foreach_sqrt([F32]),
    ),
    "sums": lambda: (F32.sum(), BF16.sum(), F32[:9].sum(), F32.sum(0), BOOLS.sum(), BF16.sum(dtype=torch.float32)),
    "means": lambda: (F32.mean(), BF16.mean(), F32.mean(-1), BF16.mean(-1, keepdim=True), F32[:9].mean()),
    "other reductions": lambda: (F32.max(), F32.max(1), torch.linalg.vector_norm(F32), F32.var(-1), BOOLS.all(1)),
    "prefix sums": lambda: (BOOLS.cumsum(0), LONGS.int().cumsum(1), F32.cumsum(0)),
    "softmax": lambda: (F32.softmax(-1), BF16.softmax(0), BF16.log_softmax(-1), torch._safe_softmax(BF16, -1)),
    "copies": lambda: (F32.t().contiguous(), BF16.t().contiguous(), F32[:50, :50].t().contiguous(), F32.t().bfloat16()),
    "matrices as they lie": lambda: (F32 @ F32.t(), F32.t() @ F32, BF16 @ BF16.t(), F32[:, :50] @ F32[:50]),
    "matrices to be copied": lambda: (STRETCHED @ F32.t(), F32[:, ::2] @ F32[:100], BF16.t() @ STRETCHED.bfloat16()),
    "with a bias": lambda: torch.addmm(torch.ones(1).expand(300), STRETCHED, F32.t()),
    "batches": lambda: (
        torch.bmm(HEADS[0], HEADS[0].mT), torch.bmm(HEADS[0, :, :, ::2], HEADS[0, :, :4]),
        torch.bmm(torch.ones(3, 1, 70).expand(3, 20, 70), HEADS[0]),
        torch.bmm(HEADS[0, :, :5, ::2], HEADS[0, :, :4, :2]),
    ),
    "pointwise functions": lambda: (F32.pow(3), BF16.rsqrt(), F.silu(BF16), F.gelu(F32), F32.masked_fill(BOOLS, 0.0)),
    "cross entropy": lambda: F.cross_entropy(LEAF, torch.zeros(30, dtype=torch.long)).backward(),
    "embedding": lambda: F.embedding(torch.zeros(4, 5, dtype=torch.long), TABLE).sum().backward(),
    "embedding of turned indices": lambda: (F.embedding(LONGS[:5, :4].t(), TABLE) * 2).sum().backward(),
    "layer norm": lambda: F.layer_norm(LEAF, (200,), LEAF[0], LEAF[1]).sum().backward(),
    "layer norm, frozen": lambda: (F.layer_norm(LEAF, (200,), F32[0], F32[1]) * 2).sum().backward(),
    "layer norm of turned input": lambda: F.layer_norm(LEAF[:, :30].t(), (30,)).sum().backward(),
    "RMS norm": lambda: F.rms_norm(LEAF, (200,), F32[0]).sum().backward(),
    "dropout": lambda: F.dropout(LEAF, 0.5).sum().backward(),
    "picked": lambda: (F32[LONGS[0, :3]], torch.cat([F32, F32]), F32.index_select(0, LONGS[0]), F32.gather(0, LONGS)),
    "eigenvalues": lambda: [torch.linalg.eigh(F32[:n, :n] + F32[:n, :n].t()) for n in (1, 2, 4, 64)],
    "singular values": lambda: [torch.linalg.svd(F32[:n], full_matrices=False) for n in (1, 4, 64)],
    "pseudo-inverse": lambda: [torch.linalg.pinv(F32[:n, :n]) for n in (2, 4, 64)],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_operators(name: str) -> None:
    """Most bytes that each operator takes are its outputs and the buffers of the table."""
    assert wrong(operator_calls(PROGRAMS[name])) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [5, 100, 200, 800])
def test_attention(rows: int, dtype: torch.dtype, threads: int) -> None:
    """Blocks of the flash kernel grow with the number of queries, and each thread has one."""
    torch.set_num_threads(threads)
    query, key, value = (torch.randn(1, 2, rows, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    calls = operator_calls(
        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True).float().sum().backward()
    )
    assert {str(call.func) for call in calls} >= {
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
    }
    assert wrong(calls) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_buffer_for_each_thread(threads: int) -> None:
    """Layer norm's backward and reductions to one number."""
    torch.set_num_threads(threads)
    for name in ("layer norm", "sums", "means"):
        assert wrong(operator_calls(PROGRAMS[name])) == []


STEPS: dict[str, dict[str, Any]] = {
    "llama, full, eager": {"family": "llama", "method": "full", "attn": "eager", "dtype": "fp32"},
    "llama, lora, dropout": {"family": "llama", "dropout": 0.1, "checkpointing": "full"},
    "llama, autocast": {"family": "llama", "dtype": "fp32", "amp": True},
    "gpt2, full": {"family": "gpt2", "method": "full"},
    "roberta, full": {"family": "roberta", "method": "full", "dtype": "fp32"},
    "t5, lora, eager": {"family": "t5", "attn": "eager"},
    "t5, full": {"family": "t5", "method": "full", "dtype": "fp32"},
    "qwen3, lora-fa": {"family": "qwen3", "method": "lora-fa", "adapter_dtype": "bf16", "optimizer": "lorafa"},
    "gemma2, vera, eager": {"family": "gemma2", "method": "vera", "attn": "eager"},
}


@pytest.mark.parametrize("name", STEPS)
def test_every_operator_of_a_real_step(name: str) -> None:
    """Forward, backward and optimizer of real models."""
    work = Workload.build(tiny_run(**{"method": "lora", "optimizer": "adamw"} | STEPS[name]), "cpu")
    calls = operator_calls(lambda: training_step(work))
    assert len(calls) > 500
    assert wrong(calls) == []


def test_onednn_is_refused() -> None:
    """Its scratch memory for 16-bit products depends on the processor; small products do without it."""
    call = KernelCall("aten.mm.default", (BF16, BF16.t()), {}, (), NO_GPU)
    small = KernelCall("aten.mm.default", (BF16[:16, :16], BF16[:16, :16]), {}, (), NO_GPU)
    assert cpu_workspaces(call, 2) == []
    torch._C._set_mkldnn_enabled(True)  # the fixture sets it back
    assert cpu_workspaces(small, 2) == []
    assert cpu_workspaces(KernelCall("aten.mm.default", (F32, F32.t()), {}, (), NO_GPU), 2) == []
    with pytest.raises(UnsupportedError, match="switches it off"):
        cpu_workspaces(call, 2)


def test_operators_without_a_formula_take_nothing() -> None:
    assert cpu_workspaces(KernelCall("aten.relu.default", (F32,), {}, (), NO_GPU), 2) == []
