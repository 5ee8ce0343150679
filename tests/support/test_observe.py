"""The harness itself, on cases small enough to work out by hand, and on what is known of real models."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.workload.step import build_model
from tests.support import observe
from tests.support.configs import method_for, model_spec, tiny_configs, tiny_run
from tests.support.tracking import ModulePaths, StorageTracker, rounded

GIB = 2**30
#: Llama with multi-head attention and a query width equal to the hidden width: the case that formulas are written for.
MHA = {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}
D, D_FF, HEADS, SEQ, BATCH, RANK, MODULES = 48, 112, 6, 22, 3, 4, 7
LLAMA2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


def activations(run: RunSpec, device: str = "cpu") -> int:
    """Bytes saved for backward, casts of weights left out."""
    return sum(saved.nbytes for saved in observe.saved_tensors(run, device) if saved.kind == "activation")


def per_token_and_layer(method: str, **options: Any) -> float:
    """What one more layer saves for each token."""
    few, many = (tiny_run("llama", method, changes={**MHA, "num_hidden_layers": n}, **options) for n in (2, 3))
    return (activations(many) - activations(few)) / (many.bs * many.seq)


def llama2_7b(method: str, **options: Any) -> RunSpec:
    """Llama 2 7B with rank 64 adapters on all linear layers."""
    spec = MethodSpec(name=method, rank=64)
    return RunSpec(model=model_spec("llama2-7b", LLAMA2_7B), method=spec, **{"bs": 8, "seq": 1024, **options})


class TestSavedBy:
    def saved(self, layers: torch.nn.Sequential, x: torch.Tensor) -> list[tuple[str, str, int, str]]:
        found = observe.saved_by(layers, {"x": x}, lambda: layers(x).sum())
        return [(s.module, s.op, s.nbytes, s.kind) for s in found]

    def test_linear_saves_its_input_and_its_weight(self) -> None:
        """The weight only where the input needs a gradient, as the second layer's does."""
        layers = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
        assert self.saved(layers, torch.ones(2, 5)) == [
            ("0", "AddmmBackward0.mat1", 2 * 5 * 4, "input"),
            ("1", "AddmmBackward0.mat1", 2 * 7 * 4, "activation"),
            ("1", "AddmmBackward0.mat2", 7 * 3 * 4, "parameter"),
        ]

    def test_frozen_linear_saves_no_input(self) -> None:
        """What LoRA-FA rests on."""
        layers = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3).requires_grad_(False))
        assert ("1", "AddmmBackward0.mat1", 2 * 7 * 4, "activation") not in self.saved(layers, torch.ones(2, 5))

    def test_shared_storage_has_one_number(self) -> None:
        """Two layers that save the same activation share its bytes."""
        first, left, right = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))
        layers = torch.nn.ModuleList([first, left, right])
        x = torch.ones(2, 4)

        def forward() -> torch.Tensor:
            y = first(x)
            out: torch.Tensor = left(y) + right(y)
            return out.sum()

        numbers = [s.storage for s in observe.saved_by(layers, {"x": x}, forward) if s.kind == "activation"]
        assert len(numbers) == 2
        assert len(set(numbers)) == 1

    def test_autocast_weight_copies_are_told_apart(self) -> None:
        """A cast of a weight is no activation."""
        layers = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(7, 3, bias=False))
        x = torch.ones(2, 5)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out: torch.Tensor = layers(x)
            return out.sum()

        kinds = {s.kind: s.nbytes for s in observe.saved_by(layers, {"x": x}, forward)}
        assert kinds == {"activation": 2 * 7 * 2, "cast of 1.weight": 7 * 3 * 2}


class TestStorageTracker:
    def test_births_and_deaths(self) -> None:
        """Every storage counts from its making to its end, rounded up to 512 bytes; views are no storages."""
        with ModulePaths(torch.nn.Identity()) as paths, StorageTracker(paths) as tracker:
            a = torch.ones(100)
            b = a.view(10, 10) + 1
            assert tracker.live_bytes == 1024
            del a
            assert tracker.live_bytes == 512
            del b
        assert [event.delta for event in tracker.events] == [512, 512, -512, -512]
        assert [rounded(n) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]

    def test_backward_is_attributed_to_modules(self) -> None:
        """Operators of the backward pass carry the path of the module whose forward made their node."""
        layers = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.ReLU())
        with ModulePaths(layers) as paths, StorageTracker(paths) as tracker:
            loss = layers(torch.ones(2, 5)).sum()
            tracker.phase = "backward"
            loss.backward()
        made = {e.op: e.module for e in tracker.events if e.phase == "backward" and e.delta > 0}
        assert (made["threshold_backward"], made["mm"]) == ("1", "0")


class TestKnownFigures:
    """FORMULAS: bytes a token and a layer on a llama block, measured before by other means."""

    @pytest.mark.parametrize(
        ("method", "options", "expected"),
        [
            ("full", {}, 24 * D + 8 * D_FF + 4 * HEADS + 8),
            ("full", {"attn": "eager"}, 24 * D + 8 * D_FF + 6 * HEADS * SEQ + 8),
            ("lora-fa", {"adapter_dtype": "bf16"}, 16 * D + 6 * D_FF + 2 * RANK * MODULES + 4 * HEADS + 8),
            (
                "lora-fa",
                {"adapter_dtype": "bf16", "attn": "eager"},
                14 * D + 6 * D_FF + 6 * HEADS * SEQ + 2 * RANK * MODULES + 8,
            ),
            ("lora-fa", {}, 16 * D + 6 * D_FF + 2 * RANK * MODULES + 4 * HEADS + 8),
            (
                "lora-fa-peft",
                {"adapter_dtype": "bf16"},
                16 * D + 6 * D_FF + 2 * RANK * MODULES + 4 * HEADS + 8,
            ),
            ("lora-fa-peft", {}, 16 * D + 6 * D_FF + 4 * RANK * MODULES + 4 * HEADS + 8),
        ],
    )
    def test_llama_layer(self, method: str, options: dict[str, Any], expected: int) -> None:
        assert per_token_and_layer(method, **options) == expected

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"adapter_dtype": "bf16"}, 2 * (2 * D + D_FF)),
            ({"adapter_dtype": "bf16", "attn": "eager"}, 2 * (3 * D + D_FF)),
            ({"amp": True}, 2 * (6 * D + D_FF)),
            ({}, 4 * (6 * D + D_FF)),
        ],
    )
    def test_what_lora_fa_saves_over_lora(self, options: dict[str, Any], expected: int) -> None:
        """Shared inputs count once in bf16; casts for fp32 adapters are private to each module.

        Where PEFT keeps A x in the fp32 of the adapters, ours keeps it in the model's bf16.
        """
        lora, narrower = per_token_and_layer("lora", **options), 0 if options else 2 * RANK * MODULES
        assert lora - per_token_and_layer("lora-fa-peft", **options) == expected
        assert lora - per_token_and_layer("lora-fa", **options) == expected + narrower

    @pytest.mark.parametrize(
        ("method", "total", "trainable"),
        [("full", 6_738_415_616, 6_738_415_616), ("lora", 6_898_323_456, 159_907_840),
         ("lora-fa", 6_898_323_456, 87_031_808), ("lora-fb", 6_898_323_456, 72_876_032)],
    )  # fmt: skip
    def test_parameter_counts(self, method: str, total: int, trainable: int) -> None:
        counts = observe.parameter_counts(llama2_7b(method))
        assert (counts.total, counts.trainable) == (total, trainable)

    def test_flops_of_full_fine_tuning(self) -> None:
        """Two FLOPs a weight and token forward, twice that backward."""
        run = tiny_run("llama", "full", changes=MHA)
        weights = 2 * (4 * D * D + 3 * D * D_FF) + D * run.model.vocab_size
        tokens = BATCH * SEQ
        attention = 2 * 4 * SEQ * D * tokens
        found = observe.flops(run)
        assert found.total_forward == 2 * weights * tokens + attention
        assert found.total_backward == 4 * weights * tokens + 5 * attention // 2  # flash computes scores anew

    def test_llama2_7b_peaks(self) -> None:
        """PEFT's LoRA-FA with fp32 adapters on a bf16 base, where LoRA takes 84.61 GiB and VeRA 89.60; and ours.

        Ours keeps A x in bf16 in each of 224 modules, and from step to step a correction (r, r) in fp32 for each, and
        the one count of steps, in a block of 512 bytes, that it gives the fused kernel.
        """
        of_peft, ours = (observe.step_timeline(llama2_7b(method)) for method in ("lora-fa-peft", "lora-fa"))
        assert round(of_peft.peak / GIB, 2) == 49.32
        corrections = 224 * 64 * 64 * 4
        assert of_peft.peak - ours.peak == 2 * 64 * 8 * 1024 * 224 - corrections - 512
        logits = 8 * 1024 * 32000 * 4
        for timeline in (of_peft, ours):
            assert timeline.peak_phase == timeline.peak_module == "loss"
            # two fp32 gradients beside the log-softmax that is saved
            assert timeline.peak - timeline.after_forward - 2 * logits < 2**20


FAMILIES = [name for name in tiny_configs() if not name.startswith(("t5", "mixtral", "deepseek_v2"))]


class TestMetaBuild:
    @pytest.mark.parametrize("family", tiny_configs())
    @pytest.mark.parametrize(
        ("method", "adapter_dtype"),
        [
            ("full", "auto"),
            ("lora-fa", "auto"),
            ("lora-fa", "bf16"),
            ("lora-qv", "auto"),
            ("vera", "auto"),
            ("vera", "bf16"),
        ],
    )
    def test_is_the_real_build_without_data(self, family: str, method: str, adapter_dtype: str) -> None:
        """Names, shapes, dtypes and requires_grad of all parameters and buffers."""
        run = tiny_run(family, method_for(family, method), adapter_dtype=adapter_dtype, attn="eager")
        cpu, meta = (
            {
                name: (t.shape, t.dtype, t.requires_grad)
                for name, t in itertools.chain(model.named_parameters(), model.named_buffers())
            }
            for model in (build_model(run, "cpu"), build_model(run, "meta"))
        )
        assert cpu == meta

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @pytest.mark.parametrize("method", ["full", "lora-fa", "vera"])
    def test_saves_what_the_cpu_saves(self, method: str, attn: str) -> None:
        """On llama in bf16 they differ only by the random number state that CUDA's flash attention returns."""
        run = tiny_run("llama", method, attn=attn)
        states = 2 * (16 + 8) if attn == "sdpa" else 0
        assert activations(run, "meta") == activations(run, "cpu") + states

    def test_dropout_mask_is_one_byte(self) -> None:
        """The CPU keeps a mask as wide as the activation. Our LoRA-FA keeps none, which it draws again."""
        run = tiny_run("llama", "lora-fa-peft", dropout=0.1)
        # inputs of q, k, v, gate, up; of o; of down: in two layers, where the input needs a gradient
        inputs = BATCH * SEQ * (2 * (5 * D + 96 + D_FF) - 3 * D)
        masks = [s for s in observe.saved_tensors(run, "meta") if s.op.startswith("NativeDropout")]
        assert {s.dtype for s in masks} == {torch.bool}
        assert sum(s.nbytes for s in masks) == inputs
        ours = observe.saved_tensors(run.replace(method=replace(run.method, name="lora-fa")), "meta")
        assert not [s for s in ours if s.dtype == torch.bool]


class TestLiveAfterForward:
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_is_what_is_saved_and_the_loss(self, family: str, device: str) -> None:
        """Without checkpointing two independent observations agree to the byte."""
        run = tiny_run(family, "lora", attn="eager")
        live = observe.live_after_forward(run, device)
        loss = live.blocks[-1].dtype.itemsize
        assert live.nbytes == sum(s.nbytes for s in observe.saved_tensors(run, device)) + loss

    def test_checkpointing_keeps_layer_inputs(self) -> None:
        """One more layer costs its input alone, in 16 bits."""
        few, many = (tiny_run("llama", "lora", changes={"num_hidden_layers": n}, checkpointing="full") for n in (2, 3))
        difference = observe.live_after_forward(many).nbytes - observe.live_after_forward(few).nbytes
        assert difference == BATCH * SEQ * D * 2

    def test_saved_tensors_refuses_checkpointing(self) -> None:
        with pytest.raises(ValueError, match="live_after_forward"):
            observe.saved_tensors(tiny_run("llama", checkpointing="full"))


class TestStepTimeline:
    @pytest.mark.parametrize("checkpointing", ["none", "full"])
    @pytest.mark.parametrize("method", ["full", "lora", "lora-fa"])
    def test_accounts_for_states_and_gradients(self, method: str, checkpointing: str) -> None:
        """A steady step ends where it began; gradients stand between backward and optimizer."""
        run = tiny_run("llama", method, checkpointing=checkpointing, optimizer="adamw")
        found = observe.step_timeline(run)
        trained = [p for p in build_model(run, "meta").parameters() if p.requires_grad]
        gradients = sum(rounded(p.numel() * p.itemsize) for p in trained)
        assert found.start_bytes - found.static_bytes == 2 * gradients
        assert found.end_bytes == found.start_bytes
        held = 0
        if checkpointing == "full" and method != "full":
            # the embedding's output is a leaf: it and its gradient stay with the graph that the loss holds
            held = 2 * rounded(BATCH * SEQ * D * 2)
        assert found.after_backward == found.start_bytes + gradients + 512 + held
        assert found.peak == max(found.phase_peaks.values()) == max(event.live for event in found.events)
        assert sum(block.nbytes for block in found.alive_at_peak) == found.peak

    def test_foreach_adamw_needs_a_copy_of_everything_trained(self) -> None:
        """Weights, gradients, two states and one temporary: five times the weights."""
        run = tiny_run("llama", "full", bs=1, seq=4, optimizer="adamw")
        found = observe.step_timeline(run)
        weights = sum(rounded(p.numel() * p.itemsize) for p in build_model(run, "meta").parameters())
        assert found.peak_phase == "optimizer"
        assert 0 <= found.peak - 5 * weights < 8192
        fused = observe.step_timeline(run.replace(optimizer="adamw-fused"))
        assert fused.phase_peaks["optimizer"] < 4.1 * weights

    def test_cpu_and_meta_agree(self) -> None:
        """But for AdamW's step counters and the random number states of flash attention."""
        run = tiny_run("llama", "lora-fa", attn="eager", optimizer="adamw")
        counters = 512 * 14
        assert observe.step_timeline(run, "cpu").peak == observe.step_timeline(run, "meta").peak + counters


class TestQuantized:
    @pytest.fixture(autouse=True)
    def _needs_bitsandbytes(self) -> None:
        pytest.importorskip("bitsandbytes")

    @pytest.mark.parametrize("quant", ["nf4", "nf4-dq"])
    @pytest.mark.parametrize("method", ["qlora", "qlora-fa"])
    def test_meta_stands_for_the_real_step(self, method: str, quant: Any) -> None:
        """A real NF4 step and its description on meta start from the same bytes and save the same."""
        run = tiny_run("llama", method, quant=quant, attn="eager", optimizer="adamw")
        cpu, meta = (observe.step_timeline(run, device) for device in ("cpu", "meta"))
        assert cpu.static_bytes == meta.static_bytes
        assert activations(run, "cpu") == activations(run, "meta")

    def test_weights_take_half_a_byte_and_scales(self) -> None:
        """Four bits a weight, an fp32 scale for every 64."""
        run = tiny_run("llama", "qlora")
        plain = observe.step_timeline(run.replace(method=MethodSpec(name="lora", rank=4)))
        quantized = observe.step_timeline(run)
        weights = [48 * 96, 48 * 32, 48 * 32, 96 * 48, 48 * 112, 48 * 112, 112 * 48]
        codebook = 512
        saved = sum(rounded(2 * n) - rounded(n // 2) - rounded(4 * n // 64) - codebook for n in weights)
        assert plain.static_bytes - quantized.static_bytes == 2 * saved
