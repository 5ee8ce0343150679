"""Parameter counts of every model of the catalog, held to the transformers and PEFT modules built on meta."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lorafa_prof.analytic.methods import modelled_methods
from lorafa_prof.analytic.plan import ParameterCount, count_parameters, plan
from lorafa_prof.catalog import load_model, model_names, spec_from_config
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import MethodSpec, ModelSpec, RunSpec
from lorafa_prof.workload.adapters import FROZEN, add_adapters
from lorafa_prof.workload.models import base_model
from tests.analytic.runs import FAMILIES, run_of
from tests.support import observe
from tests.support.configs import method_for, tiny_configs

#: Methods that wrap the model with the same modules and differ in what they train, or in how the rest is stored.
LOW_RANK = (
    "lora",
    "lora-ga",
    "lora-fa",
    "lora-fa-peft",
    "lora-fb",
    "lora-plus",
    "lora-pro",
    "pissa",
    "qlora",
    "qlora-fa",
)
QUANTIZED = ("qlora", "qlora-fa")
#: PEFT refuses DoRA for the fused parameters of experts and has no decomposition for PiSSA there; LoRA-Pro's optimizer
#: takes pairs of matrices, and our LoRA-FA adapts linear layers. Of Qwen 2 PEFT adapts no routed expert.
NOT_OF_EXPERTS = ("dora", "pissa", "lora-pro", "lora-fa", "qlora-fa")


def refused(method: str, spec: ModelSpec) -> bool:
    return method in NOT_OF_EXPERTS and spec.moe is not None and spec.architecture != "qwen2_moe"


#: What PEFT takes for no part of experts, by family: all that LoRA-GA adapts there.
LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
LINEAR_LAYERS = {
    **dict.fromkeys(("mixtral", "qwen3_moe"), ("q_proj", "k_proj", "v_proj", "o_proj")),
    **dict.fromkeys(("deepseek_v2", "deepseek_v2-flash"), ("q_proj", *LATENT)),
    "deepseek_v2-groups": ("q_a_proj", "q_b_proj", *LATENT),
}


def run_with(spec: ModelSpec, method: str) -> RunSpec:
    return RunSpec(model=spec, method=MethodSpec(name=method, rank=8), seq=16, attn="eager")


def shortened(spec: ModelSpec, depth: int) -> ModelSpec:
    """The model with so many layers, of encoder and decoder each; DeepSeek's first without experts, the next with."""
    depths = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
    config = {key: depth if key in depths else value for key, value in spec.config.items() if key != "layer_types"}
    return spec_from_config(spec.name, config)


@dataclass(frozen=True)
class Real:
    """Parameters of a real model."""

    total: int
    trainable: int
    lora_a: int
    lora_b: int

    def of(self, method: str) -> ParameterCount:
        """What is trained when one matrix of each adapter is frozen; NF4 weights count as what they stand for."""
        frozen = 0 if method not in FROZEN else getattr(self, FROZEN[method].lower())
        return ParameterCount(self.total, self.trainable - frozen)


def real_count(run: RunSpec) -> Real:
    """Build on meta, adapters too: PEFT would draw random numbers for them on the CPU."""
    with torch.device("meta"):
        model = base_model(run, "meta")
        if run.method.name != "full":
            model = add_adapters(model, run)
    named = list(model.named_parameters())
    return Real(
        total=sum(p.numel() for _, p in named),
        trainable=sum(p.numel() for _, p in named if p.requires_grad),
        lora_a=sum(p.numel() for name, p in named if "lora_A" in name),
        lora_b=sum(p.numel() for name, p in named if "lora_B" in name),
    )


class TestCatalog:
    @pytest.mark.parametrize("name", model_names())
    def test_full(self, name: str) -> None:
        """All that the real model holds, and all of it is trained."""
        run = run_with(load_model(name), "full")
        real = real_count(run)
        assert count_parameters(run) == ParameterCount(real.total, real.total)

    @pytest.mark.parametrize("depth", [2, pytest.param(None, marks=pytest.mark.slow)], ids=["two layers", "whole"])
    @pytest.mark.parametrize("name", model_names())
    def test_low_rank(self, name: str, depth: int | None) -> None:
        """LoRA on all linear layers, and its relatives that freeze A or B or quantise the rest.

        PEFT takes some milliseconds for each of up to 560 matrices: of a deep model two layers of its widths are
        adapted by default. That layers are counted as often as they are there is for `test_full`, and for `make
        test-slow`.
        """
        spec = load_model(name) if depth is None else shortened(load_model(name), depth)
        real = real_count(run_with(spec, "lora"))
        left_out = ("lora-ga",) if spec.moe is not None else ()  # which adapts fewer layers there
        methods = [method for method in LOW_RANK if method not in left_out and not refused(method, spec)]
        found = {method: count_parameters(run_with(spec, method)) for method in methods}
        assert found == {method: real.of(method) for method in methods}

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["lora-qv", "vera", "dora", "adalora"])
    @pytest.mark.parametrize("name", model_names())
    def test_other_adapters(self, name: str, method: str) -> None:
        """LoRA on query and value alone; VeRA, whose shared matrices are buffers and no parameters; the rest."""
        run = run_with(load_model(name), method)
        if refused(method, run.spec):
            pytest.skip("PEFT refuses")
        assert count_parameters(run) == real_count(run).of(method)

    def test_every_method_is_here(self) -> None:
        """A method that is registered with the engine appears in one of the tests of this class."""
        assert {*modelled_methods()} == {"full", *LOW_RANK, "lora-qv", "vera", "dora", "adalora"}


class TestFamilies:
    """Tiny models of every family, two of which share no width."""

    @pytest.mark.parametrize("method", modelled_methods())
    @pytest.mark.parametrize("family", tiny_configs())
    def test_all_methods(self, family: str, method: str) -> None:
        """Counted in the model as it is before quantisation, of which adapters see nothing."""
        run = run_of(family, method, attn="eager")
        if refused(method, run.spec):
            with pytest.raises(UnsupportedError, match=f"{method} does not adapt the parameters that experts"):
                count_parameters(run)
            return
        plain = run_of(family, method.removeprefix("q"), attn="eager")
        if method == "lora-ga" and family in LINEAR_LAYERS:
            plain = run_of(family, "lora", attn="eager", targets=LINEAR_LAYERS[family])
        real = observe.parameter_counts(plain)
        assert count_parameters(run) == ParameterCount(real.total, real.trainable)

    @pytest.mark.parametrize(
        ("family", "targets"),
        [
            ("llama", ("q_proj", "down_proj")),
            ("llama", ("mlp.up_proj",)),
            ("phi3", ("qkv_proj",)),
            ("gpt2", ("c_proj",)),
            ("gpt_bigcode", ("attn.c_attn", "c_fc")),
            ("roberta", ("query", "attention.output.dense")),
            ("t5", ("q", "SelfAttention.k", "wo")),
        ],
    )
    def test_named_targets(self, family: str, targets: tuple[str, ...]) -> None:
        """A target is the end of a module's name, in whole parts, as for PEFT."""
        run = run_of(family, "lora", targets=targets, attn="eager")
        real = observe.parameter_counts(run)
        assert count_parameters(run) == ParameterCount(real.total, real.trainable)

    @pytest.mark.parametrize("method", ["full", "lora-fa", "qlora", "vera"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_plan_counts_alike(self, family: str, method: str) -> None:
        """The plan of a step, made of a few layers that stand for all, counts what the model has."""
        run = run_of(family, method_for(family, method), layers=7)
        assert plan(run).parameters == count_parameters(run)


class TestKnownFigures:
    """Figures that were published or counted by others."""

    @pytest.mark.parametrize(
        ("name", "total"),
        [
            ("llama2-7b", 6_738_415_616),
            ("llama3-8b", 8_030_261_248),
            ("llama3-70b", 70_553_706_496),
            ("llama-65b", 65_285_660_672),
        ],
    )
    def test_totals(self, name: str, total: int) -> None:
        assert count_parameters(run_with(load_model(name), "full")).total == total

    @pytest.mark.parametrize(
        ("method", "trainable"),
        [("lora", 159_907_840), ("lora-fa", 87_031_808), ("lora-fb", 72_876_032), ("full", 6_738_415_616)],
    )
    def test_llama2_7b_at_rank_64(self, method: str, trainable: int) -> None:
        """A takes r(6d + f) a layer, B r(5d + 2f), with d = 4096 and f = 11008."""
        run = RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name=method, rank=64))
        assert count_parameters(run).trainable == trainable

    def test_lora_fa_of_twice_the_rank_trains_more_than_lora(self) -> None:
        """B is larger than A, so LoRA-FA trains more than half of what LoRA does."""
        model = load_model("llama2-7b")
        run = RunSpec(model=model, method=MethodSpec(name="lora-fa", rank=128))
        assert count_parameters(run).trainable == 174_063_616
