"""What a forward keeps for the backward, to the byte: the engine against saved-tensor hooks on real models.

The engine follows CUDA's kernels. Where the CPU's keep the same, the installed kernels are run on the CPU and are the
evidence. Where they keep something else, each difference is a rule that is stated here and applied to what the CPU
kept; where the difference runs through the whole step (autocast's lists, dropout, masks), the same step is observed on
meta tensors under CUDA's choices of kernels.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import pytest

from lorafa_prof.analytic.plan import StepPlan, plan
from lorafa_prof.analytic.sizes import product_of, symbol_values
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunSpec
from tests.analytic.runs import EXPERTS, FAMILIES, METHODS, WINDOWED, attentions, label, methods_of, run_of
from tests.support import observe

#: Random number state and offset that CUDA's attention kernels return: 2 + 1 integers of 8 bytes for flash, 1 + 1 for
#: the memory-efficient kernel. The CPU's kernel returns none.
RNG = "attention rng"


def dtypes(method: str) -> list[tuple[str, str]]:
    """(base dtype, adapter dtype) pairs; PEFT has no 16-bit adapters over an fp32 base."""
    both = [("bf16", "auto"), ("bf16", "bf16"), ("fp32", "auto")]
    return both if method != "full" else [("bf16", "auto"), ("fp32", "auto")]


def product_of_options(families: tuple[str, ...], *, amp: tuple[bool, ...] = (False, True)) -> list[RunSpec]:
    """Family x method x attention x base and adapter dtype x autocast, less what CUDA alone runs so."""
    runs = [
        run_of(family, method, attn=attn, dtype=dtype, adapter_dtype=adapter, amp=autocast)
        for family, autocast in itertools.product(families, amp)
        for method in methods_of(family)
        for attn in attentions(family)
        for dtype, adapter in dtypes(method)
    ]
    return [run for run in runs if not unfused_on_cuda_alone(run)]


def unfused_on_cuda_alone(run: RunSpec) -> bool:
    """Whether a fused kernel takes on the CPU what none takes on CUDA: grouped heads in fp32.

    `tests/simulate/test_against_analytic.py` has them.
    """
    grouped = run.model.num_heads != run.model.num_kv_heads
    return grouped and run.dtype == "fp32" and not run.amp and run.attn == "sdpa"


def traits(run: RunSpec) -> tuple[Any, Any, Any]:
    """What the default part of a product covers in pairs: family, method, options."""
    return run.model.name, run.method.name, (run.attn, run.dtype, run.adapter_dtype, run.amp)


def covering(runs: list[RunSpec]) -> dict[str, Any]:
    """Arguments of parametrize: by default enough runs to bring all pairs together, with `-m ""` all of them."""
    found = [traits(run) for run in runs]
    number = [{trait: i for i, trait in enumerate(dict.fromkeys(column))} for column in zip(*found, strict=True)]

    def diagonal(at: int) -> int:  # each of these brings many new pairs
        return sum(known[trait] for known, trait in zip(number, found[at], strict=True)) % len(number[1])

    seen: set[Any] = set()
    default = set()
    for at in sorted(range(len(runs)), key=diagonal):
        new = set(itertools.combinations(found[at], 2)) - seen
        if new:
            default.add(at)
            seen |= new
    return {
        "argvalues": [
            pytest.param(run, id=label(run), marks=() if at in default else pytest.mark.slow)
            for at, run in enumerate(runs)
        ]
    }


def saved_bytes(step: StepPlan, run: RunSpec, *, leave_out: str = "") -> int:
    """`saved_activation_bytes`, less the tensors whose name starts with `leave_out`."""
    values = symbol_values(run.bs, run.seq)
    left = [item for item in step.saved() if leave_out and item[0].name.startswith(leave_out)]
    less = sum(int(kind.size[0] * product_of(kind.size[1], values)) * count for kind, count in left)
    return step.saved_activation_bytes(run.bs, run.seq) - less


def on_cuda(saved: observe.Saved, run: RunSpec) -> int:
    """Bytes that the CUDA kernel keeps where the CPU's kept `saved`."""
    if saved.op in ("NativeLayerNormBackward0.result1", "NativeLayerNormBackward0.result2"):
        # mean and reciprocal deviation of each row: fp32 on CUDA, the input's dtype on the CPU
        return math.prod(saved.shape) * 4
    if saved.op.endswith("ForCpuBackward0.logsumexp") and run.dtype == "fp32" and not run.amp:
        # fp32 goes to the memory-efficient kernel, which pads each head's row to a multiple of 32
        *rows, tokens = saved.shape
        return math.prod(rows) * -(-tokens // 32) * 32 * 4
    return saved.nbytes


def kept(run: RunSpec, device: str) -> int:
    """What the hooks see."""
    return sum(saved.nbytes for saved in observe.saved_tensors(run, device))


def cpu_keeps_the_same(run: RunSpec) -> bool:
    """Whether the CPU's kernels keep what CUDA's do, or differ by the rules of `on_cuda`.

    Not under autocast, which runs LayerNorm, pow and softmax in fp32 on CUDA and in bf16 on the CPU, unless the model
    itself says fp32, as Llama's do. Nor where T5's position bias meets a fused kernel: the CPU's keeps it as it is. Nor
    16-bit adapters of experts and routers: PEFT adds B A to such a weight, and on the CPU computes that in fp32. Nor
    latent attention, whose values are narrower than its keys: CUDA has a fused kernel for that.
    """
    if run.model.moe is not None and (
        run.adapter_dtype == "bf16" or (run.model.mla is not None and run.attn == "sdpa")
    ):
        return False
    if run.model.architecture == "t5" and run.attn == "sdpa":
        return False
    return not (run.amp and run.model.architecture in ("gpt2", "gpt_bigcode", "bert", "roberta", "t5"))


PRODUCT = product_of_options(FAMILIES)


class TestOnTheCpu:
    """Evidence from the installed kernels."""

    @pytest.mark.parametrize("run", **covering([run for run in PRODUCT if cpu_keeps_the_same(run)]))
    def test_every_family_and_method(self, run: RunSpec) -> None:
        """With every dtype, kind of attention, and with and without autocast."""
        real = sum(on_cuda(saved, run) for saved in observe.saved_tensors(run))
        assert saved_bytes(plan(run), run, leave_out=RNG) == real

    @pytest.mark.parametrize("family", FAMILIES)
    def test_one_sequence(self, family: str) -> None:
        """The shifted labels of one sequence are a view of the padded ones, which have one more."""
        run = run_of(family, "lora", bs=1, attn="eager")
        real = sum(on_cuda(saved, run) for saved in observe.saved_tensors(run))
        assert saved_bytes(plan(run), run) == real

    @pytest.mark.parametrize(("rank", "seq"), [(1, 1), (7, 33), (16, 64)])
    def test_other_sizes(self, rank: int, seq: int) -> None:
        """Any rank, and any length up to the model's positions."""
        run = run_of("llama", "lora-fa", rank=rank, seq=seq, bs=2)
        assert saved_bytes(plan(run), run, leave_out=RNG) == kept(run, "cpu")

    def test_one_plan_serves_all_sizes(self) -> None:
        """Batch and sequence length are variables of a plan."""
        step = plan(run_of("qwen3", "lora"))
        for bs, seq in ((2, 5), (3, 22), (4, 40)):
            run = run_of("qwen3", "lora", bs=bs, seq=seq)
            assert saved_bytes(step, run, leave_out=RNG) == kept(run, "cpu")


class TestUnderCudasKernels:
    """Evidence from meta tensors under CUDA's choices: nothing to leave out, nothing to convert."""

    @pytest.mark.parametrize("run", **covering([run for run in PRODUCT if not cpu_keeps_the_same(run)]))
    def test_where_the_cpu_keeps_something_else(self, run: RunSpec) -> None:
        """Autocast over LayerNorm; attention with a position bias; 16-bit adapters of experts."""
        assert saved_bytes(plan(run), run) == kept(run, "meta")

    @pytest.mark.parametrize("adapter_dtype", ["auto", "bf16"])
    @pytest.mark.parametrize("amp", [False, True])
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("family", WINDOWED)
    def test_sliding_window(self, family: str, method: str, amp: bool, adapter_dtype: str) -> None:
        """A mask: memory-efficient attention, for which every layer makes an additive bias padded to 16 tokens."""
        run = run_of(family, method, amp=amp, adapter_dtype=adapter_dtype)
        assert saved_bytes(plan(run), run) == kept(run, "meta")

    @pytest.mark.parametrize(
        "run",
        **covering(
            [
                run_of(family, method, amp=amp, dropout=0.1)
                for family, method, amp in itertools.product(FAMILIES, METHODS[1:], (False, True))
                if family not in EXPERTS
            ]
        ),
    )
    def test_adapter_dropout(self, run: RunSpec) -> None:
        """One byte an element, where the CPU keeps a mask as wide as the activation."""
        assert saved_bytes(plan(run), run) == kept(run, "meta")

    @pytest.mark.parametrize("amp", [False, True])
    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @pytest.mark.parametrize("method", ["full", "lora-fa"])
    @pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode", "roberta", "t5"])
    def test_dropout_of_the_model(self, family: str, method: str, attn: str, amp: bool) -> None:
        """After attention, MLP and embeddings, and inside attention, where the fused kernel keeps only its seed."""
        run = run_of(family, method, attn=attn, amp=amp, config_dropout=True)
        assert run.model.hidden_dropout == 0.1
        assert saved_bytes(plan(run), run) == kept(run, "meta")

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    @pytest.mark.parametrize("amp", [False, True])
    @pytest.mark.parametrize("adapter_dtype", ["auto", "bf16"])
    @pytest.mark.parametrize("family", ["llama", "llama-bias", "phi3", "gpt2", "roberta"])
    def test_dora(self, family: str, adapter_dtype: str, amp: bool, dropout: float) -> None:
        """Nothing stays of the graph of B A, which no gradient ever reaches."""
        run = run_of(family, "dora", adapter_dtype=adapter_dtype, amp=amp, dropout=dropout)
        if (family, adapter_dtype) == ("gpt2", "bf16") and dropout:
            with pytest.raises(UnsupportedError, match="of which PEFT computes a gradient that nobody uses"):
                plan(run)
            return
        assert saved_bytes(plan(run), run) == kept(run, "meta")

    @pytest.mark.parametrize("method", ["qlora", "qlora-fa"])
    @pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen3", "phi3"])
    def test_quantized(self, family: str, method: str) -> None:
        """Nothing of a dequantised weight is kept."""
        pytest.importorskip("bitsandbytes")
        run = run_of(family, method)
        assert saved_bytes(plan(run), run) == kept(run, "meta")


class TestDropoutRule:
    """The stated rule for dropout on CUDA: a mask of one byte an element, whatever the dtype."""

    @pytest.mark.parametrize(
        ("method", "masks", "copies"), [("lora-fa-peft", 1, 0), ("lora", 1, 2), ("lora-fb", 1, 2), ("lora-fa", 0, 0)]
    )
    def test_adapter_dropout_costs_its_masks(self, method: str, masks: int, copies: int) -> None:
        """LoRA keeps each module's own dropped-out input too (2 bytes), where before some shared one; LoRA-FA none.

        Ours keeps no mask either, which it draws again from its seed.
        """
        heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}

        def of_a_layer(dropout: float) -> int:
            options = {"adapter_dtype": "bf16", "changes": heads, "dropout": dropout}
            few, many = (run_of("llama", method, layers=layers, **options) for layers in (2, 3))
            return saved_bytes(plan(many), many) - saved_bytes(plan(few), few)

        d, f, tokens = 48, 112, 3 * 22
        inputs = 6 * d + f  # q, k, v, o, gate and up read d, down reads f
        shared = 2 * (2 * d + f)  # bytes a token: q, k, v share one input, gate and up another; o's is attention's own
        assert of_a_layer(0.1) - of_a_layer(0.0) == tokens * (inputs * (masks + copies) - (shared if copies else 0))

    def test_lora_keeps_more_than_lora_fa_by_the_inputs(self) -> None:
        """With dropout nothing is shared: 2 bytes of every module's input, however the attention runs.

        Ours keeps none of the masks either, of which layer 0's q, k and v have none, whose input needs no gradient.
        """
        heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}
        for attn in ("sdpa", "eager"):
            lora, of_peft, ours = (
                saved_bytes(plan(run), run)
                for run in (
                    run_of("llama", m, changes=heads, adapter_dtype="bf16", dropout=0.1, attn=attn)
                    for m in ("lora", "lora-fa-peft", "lora-fa")
                )
            )
            tokens, widths = 3 * 22, 2 * (6 * 48 + 112)  # of both layers
            assert lora - of_peft == 2 * tokens * widths
            assert lora - ours == 2 * tokens * widths + tokens * (widths - 3 * 48)


class TestCheckpointing:
    """With checkpointing hooks see nothing; what is alive with only the loss held is what autograd keeps."""

    @staticmethod
    def alive(run: RunSpec) -> int:
        step = plan(run)
        values = symbol_values(run.bs, run.seq)
        kinds, live = step.timeline.kinds, step.timeline.live_at(step.timeline.end_of_forward - 1)
        held = [(kinds[i].size, n) for i, n in live.items() if kinds[i].module != "batch"]
        return sum(int(size[0] * product_of(size[1], values)) * n for size, n in held)

    PRODUCT: ClassVar = [
        run_of(family, method, amp=amp, attn=attn, checkpointing="full")
        for family, method, amp in itertools.product(FAMILIES, ("full", "lora", "lora-fa", "vera"), (False, True))
        if method in methods_of(family)
        for attn in attentions(family)
    ]

    @pytest.mark.parametrize("run", **covering(PRODUCT))
    def test_what_is_alive_after_the_forward(self, run: RunSpec) -> None:
        """The layers' inputs, the masks, positions and rotary tables handed to them, and the head's own."""
        layer_norm = run.model.architecture in ("gpt2", "gpt_bigcode", "bert", "roberta")  # the last one is in no layer
        device = "cpu" if cpu_keeps_the_same(run) and not layer_norm else "meta"
        assert self.alive(run) == observe.live_after_forward(run, device).nbytes

    def test_a_layer_costs_its_input(self) -> None:
        """One more layer keeps d values of 2 bytes a token, whatever the method."""
        for method in METHODS:
            few, many = (run_of("llama", method, layers=n, checkpointing="full") for n in (9, 10))
            assert saved_bytes(plan(many), many) - saved_bytes(plan(few), few) == 3 * 22 * 48 * 2
