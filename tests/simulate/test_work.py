"""What each operator of a step computes and moves: against PyTorch's counter, and by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import ContradictionError, UnsupportedError
from lorafa_prof.measure.flops import count_work
from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.work import counts, is_view, table_flops, works_of
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.recording import RECOMPUTE, Recording
from lorafa_prof.simulate.shapes import Shapes
from lorafa_prof.simulate.works import Flops, step_throughput, step_works
from lorafa_prof.specs import METHODS as ALL_METHODS, MethodSpec, RunSpec
from lorafa_prof.speed.launches import CHUNK, packed
from lorafa_prof.speed.work import AttentionProduct, MatrixProduct, OpWork
from lorafa_prof.workload import Workload
from tests.analytic.runs import FAMILIES, METHODS, attentions, run_of
from tests.support import observe

aten = torch.ops.aten
A100 = DeviceTraits((8, 0), 108)
QUICK = {("llama", "lora"), ("gpt2", "full"), ("mixtral", "lora-fa-peft"), ("t5", "lora")}


#: What all three engines say of a run.
FLOPS = ("model_flops", "executed_flops", "model_flops_causal", "executed_flops_causal", "model_flops_6n")


def recorded(run: RunSpec, *, notes_all: bool = False) -> Recording:
    """The run on an A100."""
    return record(run, Cuda(A100, "2.13.0"), notes_all=notes_all)


def cases() -> list[Any]:
    """Every family with every method, and the first methods with every attention; a few by default."""
    return [
        pytest.param(
            family, method, attn, id=f"{family}-{method}-{attn}",
            marks=() if (family, method) in QUICK and attn == "sdpa" else pytest.mark.slow,
        )
        for family in FAMILIES
        for method in ALL_METHODS
        for attn in attentions(family)[: None if method in METHODS else 1]
    ]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "attn"), cases())
def test_flops_are_those_of_the_counter(family: str, method: str, attn: str) -> None:
    """Forward and backward of a real model, to the last operation, attention's scores made again included."""
    if method.startswith("qlora"):
        pytest.importorskip("bitsandbytes")
    run = run_of(family, method, attn=attn)
    try:
        recording = recorded(run)
    except (ContradictionError, UnsupportedError) as error:  # no adapter of that kind for experts, say
        pytest.skip(str(error))
    counted, works = observe.flops(run), step_works(recording, A100)
    said = Counter[str]()
    for work in works:
        said["forward" if work.phase == "loss" else work.phase] += work.flops
    assert (said["forward"], said["backward"]) == (counted.total_forward, counted.total_backward)


@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {}), ("lora-fa", {"checkpointing": "full"}), ("full", {"accumulation": 3}), ("qlora", {})],
)
def test_a_real_step_on_the_cpu_counts_the_same(method: str, options: dict[str, Any]) -> None:
    """Model, executed and 6 N, of a step that ran; with recomputation, and of three micro-batches two are recorded."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    run = run_of("llama", method, **options)
    counted, said = count_work(Workload.build(run, "cpu")), predict_on_cpu(run, threads=1).throughput
    for name in FLOPS:
        assert getattr(said, name) == getattr(counted, name), name
    assert said.model_flops_causal is not None
    assert said.model_flops is not None
    assert said.model_flops_causal < said.model_flops


ALIKE = [
    ("llama", "lora", {"checkpointing": "full"}), ("mistral-window", "lora-fa", {}), ("t5", "lora", {}),
    ("roberta", "full", {}), ("deepseek_v2-flash", "lora", {}), ("llama", "vera", {"attn": "eager"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "options"), ALIKE)
def test_closed_forms_say_the_same(family: str, method: str, options: dict[str, Any]) -> None:
    """Causal attention and masked, of encoders and of both; unfused attention counts in full whatever it masks."""
    run = run_of(family, method, **options)
    said, derived = step_throughput(recorded(run), A100), predict(run).throughput
    for name in FLOPS:
        assert getattr(said, name) == getattr(derived, name), name


def test_noting_all_changes_no_memory() -> None:
    """The events of a recording are the same whether or not all calls are noted, and so are its FLOPs."""
    platform, run = Cuda(A100, "2.13.0"), run_of("llama", "lora", checkpointing="full")
    few, all_ = recorded(run), recorded(run, notes_all=True)
    one, other = few.trace(3, platform), all_.trace(3, platform)
    assert (one.events, one.blocks, one.marks) == (other.events, other.blocks, other.marks)
    assert step_throughput(few, A100) == step_throughput(all_, A100)
    assert sum(len(s.calls) for s in few.again) < sum(len(s.calls) for s in all_.again)


def test_another_shape_has_the_work_that_it_would_have() -> None:
    """Work from recordings at other batches and lengths is that of a recording there, operator by operator."""
    run = run_of("llama", "lora-fa", changes={"max_position_embeddings": 4096})
    shapes = Shapes.of(run, Cuda(A100, "2.13.0"), ("bs",), notes_all=True)
    there = recorded(run.replace(bs=7), notes_all=True)
    assert step_works(shapes.at(7, run.seq, calls=True), A100) == step_works(there, A100)


def llama2_7b(method: str, **options: Any) -> RunSpec:
    """Llama2-7B at 8 x 1024 tokens and rank 64."""
    return RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name=method), bs=8, seq=1024, **options)


#: GFLOP a token that the method needs; layer 0 multiplies for no gradient of its input.
PER_TOKEN = {"full": 41.253, "lora": 28.998, "lora-fa": 28.853, "vera": 28.679}
#: Of q, k and v of layer 0: the frozen products, and those through A (and for a frozen A through B).
SKIPPED = {"full": 0, "lora": 3 * (2 * 4096**2 + 2 * 64 * 4096), "lora-fa": 3 * (2 * 4096**2 + 4 * 64 * 4096),
           "vera": 3 * (2 * 4096**2)}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "lora-fa"])
def test_llama2_7b_a_token(method: str) -> None:
    """41.25 GFLOP for full fine-tuning, 29.0 for LoRA, 28.85 for LoRA-FA: what is derived from the products alone."""
    flops = Flops.of(step_works(recorded(llama2_7b(method)), A100))
    assert round((flops.model / (8 * 1024) + SKIPPED[method]) / 1e9, 3) == PER_TOKEN[method]


# -- one call --------------------------------------------------------------------------------------------------------


def works(func: Any, *args: Any, **kwargs: Any) -> tuple[OpWork, ...]:
    """The work of a call on meta."""
    return works_of(CallSpec.of(func, args, kwargs, func(*args, **kwargs)), A100)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor on meta."""
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_product() -> None:
    """Two reads and a write, and the shape."""
    (work,) = works(aten.mm.default, meta(6, 5), meta(5, 7))
    assert work.product == MatrixProduct(batch=1, m=6, n=7, k=5)
    assert (work.flops, work.read_bytes, work.written_bytes) == (2 * 6 * 7 * 5, 2 * (30 + 35), 2 * 42)
    assert (work.op, work.kind, work.dtype, work.kernels) == ("aten.mm", "matmul", "bf16", 1)


def test_a_causal_kernel_makes_the_scores_up_to_the_diagonal() -> None:
    """Of 3 positions 1 + 2 + 3 pairs of 9; of 2 queries and 4 keys 1 + 2; of 4 queries and 2 keys 1 + 2 + 2 + 2."""
    for queries, keys, pairs in ((3, 3, 6), (2, 4, 3), (4, 2, 7)):
        shape = AttentionProduct(
            batch=2, heads=5, key_heads=1, queries=queries, keys=keys, width=8, value_width=4, causal=True
        )
        assert shape.causal_flops == 2 * 2 * 5 * pairs * (8 + 4)
        assert shape.flops == 2 * 2 * 5 * queries * keys * (8 + 4)
        again = replace(shape, backward=True)
        assert again.causal_flops == 2 * 2 * 5 * pairs * (3 * 8 + 2 * 4)
        assert again.needed_causal_flops == 2 * shape.causal_flops


@pytest.mark.parametrize("backward", [False, True])
def test_attention(backward: bool) -> None:
    """Two products forward, five backward in three kernels, of which four are needed; the causal flag is kept."""
    q, k, v = meta(2, 4, 16, 8), meta(2, 4, 16, 8), meta(2, 4, 16, 8)
    forward = (q, k, v, 0.0, True)
    out = aten._scaled_dot_product_flash_attention.default(*forward)
    pair = 2 * 2 * 4 * 16 * 16 * 8
    if not backward:
        (work,) = works(aten._scaled_dot_product_flash_attention.default, *forward)
        assert (work.flops, work.needed_flops, work.kernels) == (2 * pair, 2 * pair, 1)
    else:
        args = (q, q, k, v, out[0], out[1], None, None, 16, 16, 0.0, True, out[6], out[7])
        given = tuple(torch.empty(0, device="meta") if a is None else a for a in args)
        *copies, work = works(aten._scaled_dot_product_flash_attention_backward.default, *given)
        assert (work.flops, work.needed_flops, work.kernels) == (5 * pair, 4 * pair, 3)
        assert all(copy.kind == "memory" and copy.flops == 0 for copy in copies)
    assert work.attention is not None
    assert work.attention.causal


def test_what_is_repeated_by_a_stride_is_read_once() -> None:
    """A row that is added to every row is one row; the result has all elements."""
    (work,) = works(aten.add.Tensor, meta(9, 4), meta(1, 4).expand(9, 4))
    assert (work.read_bytes, work.written_bytes) == (2 * (36 + 4), 2 * 36)


def test_in_place_and_views() -> None:
    """What is added to is read and written; a copy only writes; a view does nothing on the device."""
    (added,) = works(aten.add_.Tensor, meta(8), meta(8))
    assert (added.read_bytes, added.written_bytes) == (32, 16)
    (copied,) = works(aten.copy_.default, meta(8), meta(8, dtype=torch.float32))
    assert (copied.read_bytes, copied.written_bytes) == (32, 16)
    (viewed,) = works(aten.t.default, meta(3, 4))
    assert (viewed.moved_bytes, viewed.kernels) == (0, 0)
    assert is_view(aten._unsafe_view.default)
    assert not is_view(aten.add_.Tensor)


def test_a_table_is_not_read_as_a_whole() -> None:
    """Rows that are asked for are read; the gradient of the table is cleared as a whole."""
    ids = torch.zeros(3, dtype=torch.int64, device="meta")
    (found,) = works(aten.embedding.default, meta(1000, 4), ids)
    assert (found.read_bytes, found.written_bytes) == (3 * 4 * 2 + 24, 24)
    cleared, added = works(aten.embedding_dense_backward.default, meta(3, 4), ids, 1000, -1, False)
    assert (cleared.read_bytes, cleared.written_bytes) == (0, 8000)
    assert added.written_bytes == 24


def test_lists_are_packed_into_launches() -> None:
    """By hand: 110 small tensors a launch; 320 chunks a launch, a tensor that is cut takes a place in the next."""
    assert packed([1] * 110, 110) == 1
    assert packed([1] * 111, 110) == 2
    assert packed([CHUNK * 320], 110) == 1
    assert packed([CHUNK * 321], 110) == 2
    assert packed([CHUNK * 300, CHUNK * 40], 110) == 2
    assert packed([0, 0], 110) == 0
    # 64 lists of two: full at 64, whose last launch begins anew
    assert packed([CHUNK * 2] * 128, 64) == 2


def test_an_optimizer_step_moves_its_lists() -> None:
    """sqrt of a list reads and writes it; of two dtypes it is one kernel a tensor."""
    (one,) = works(aten._foreach_sqrt.default, [meta(8), meta(8)])
    assert (one.read_bytes, one.written_bytes, one.kernels) == (32, 32, 1)
    (two,) = works(aten._foreach_sqrt.default, [meta(8), meta(8, dtype=torch.float32)])
    assert two.kernels == 2


def test_every_formula_agrees_with_the_counters_table() -> None:
    """All that a step of each family runs: operations from the shapes here are those of PyTorch's formulas."""
    seen = 0
    for family in ("llama", "mixtral"):
        recording = recorded(run_of(family, "lora"), notes_all=True)
        for spec in recording.specs:
            if counts(spec.func):
                said = table_flops(spec.func, spec.kernel_call(str(spec.func), A100))
                assert said == sum(work.flops for work in works_of(spec, A100))
                seen += 1
    assert seen > 20


def test_phases_and_modules() -> None:
    """The loss is a phase of its own, what is computed again another; all that the optimizer does is its own."""
    found = step_works(recorded(run_of("llama", "lora", checkpointing="full"), notes_all=True), A100)
    assert {work.phase for work in found} == {"forward", "loss", "backward", RECOMPUTE, "optimizer"}
    assert all(work.product is None for work in found if work.phase == "optimizer")
    assert any("self_attn.q_proj" in work.module for work in found if work.product is not None)
    assert [work.op for work in found if work.waits] == ["aten._local_scalar_dense"]
