"""Architectures that the catalog does not know: the step of whatever the installed transformers builds.

A sample of tiny models is held to a real step on the CPU under PyTorch's profiler, to the byte, as the families of the
catalog are (test_real_cpu_step.py). The slow test walks over every type that transformers has: each is simulated, or
refused for a reason that holds without us too.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError, UnknownNameError, UnsupportedError
from lorafa_prof.results import run_from_json, run_to_json
from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.engine import predict
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.trace import Trace
from lorafa_prof.specs import MethodSpec, RunSpec, Task
from lorafa_prof.workload import Workload
from lorafa_prof.workload.architectures import _CLASSES, AUTO_CLASSES, runnable_model
from tests.support.architectures import tiny_architectures, tiny_run_of
from tests.support.profiled import kernels_of_known_size, profile_step

THREADS = 2
#: Their step on the CPU ends in the same bytes, but kernels have buffers inside that are not modelled for the CPU:
#: convolutions (Mamba), gather and scatter (DeBERTa); Falcon's graph saves numbers that were wrapped into tensors.
INSIDE = {"mamba": ("peak",), "deberta-v2": ("peak",), "falcon": ("after_forward", "peak")}
#: What LoRA is put on, where PEFT itself refuses all linear layers.
TARGETS = {"mamba": ("in_proj", "x_proj"), "distilbert": ("q_lin", "v_lin")}
QUICK = ("opt", "bloom", "gpt_neox", "starcoder2", "mpt", "albert", "distilbert", "camembert", "phi", "bart")


def run_of(architecture: str, method: str, **options: Any) -> RunSpec:
    """A tiny run that PEFT takes."""
    targets = {"targets": TARGETS[architecture]} if method != "full" and architecture in TARGETS else {}
    return tiny_run_of(architecture, method, **targets, **options)


def cases() -> list[Any]:
    """Every architecture with both methods; the quick ones with one, the first and the last of them with both."""
    made = []
    for name in tiny_architectures():
        number = QUICK.index(name) if name in QUICK else None
        for i, method in enumerate(("full", "lora")):
            quick = number is not None and (number in (0, len(QUICK) - 1) or number % 2 == i)
            made.append(pytest.param(name, method, id=f"{name}-{method}", marks=() if quick else pytest.mark.slow))
    return made


def live_at(trace: Trace) -> dict[str, int]:
    """Bytes alive at the end of each phase of the second step beyond those at its start, and the most of any moment."""
    first = trace.position("forward")
    curve = [0]
    for event in trace.events[first:]:
        size = trace.blocks[event if event >= 0 else ~event].nbytes
        curve.append(curve[-1] + (size if event >= 0 else -size))
    begins = {phase: curve[position - first] for position, phase in trace.marks if position >= first}
    return {
        "after_forward": begins["backward"], "after_backward": begins["optimizer"],
        "after_optimizer": begins["zero_grad"], "end": curve[-1], "peak": max(curve),
    }  # fmt: skip


@pytest.mark.parametrize(("architecture", "method"), cases())
def test_the_bytes_are_the_profiler_s(architecture: str, method: str) -> None:
    """At the end of each phase and at the peak, as many bytes are alive as in the real step."""
    run = run_of(architecture, method)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        platform = Cpu(THREADS)
        found = live_at(record(run, platform).trace(2, platform))
    real = {name: getattr(step, name) for name in ("after_forward", "after_backward", "after_optimizer", "end")}
    real["peak"] = step.peak.live
    for name in INSIDE.get(architecture, ()):
        assert found.pop(name) <= real.pop(name)
    assert found == real


def test_a_model_s_parameters_are_counted() -> None:
    """All of the real model's, and for LoRA those that PEFT adds."""
    run = run_of("opt", "lora")
    model = Workload.build(run, "cpu").model
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert predict(run).parameters == {"total": total, "trainable": trained}


def test_it_says_what_the_model_is_built_as() -> None:
    """The class is a decision of ours, so it is told."""
    assert (
        "the model is a OPTForCausalLM, built by transformers' own code" in predict(run_of("opt", "full")).assumptions
    )


class TestTask:
    """What a model is fine-tuned for."""

    @pytest.mark.parametrize(
        ("architecture", "named", "task", "built_as"),
        [
            ("bert", None, "seq-cls", "BertForSequenceClassification"),
            ("bert", ["BertForMaskedLM"], "seq-cls", "BertForSequenceClassification"),
            ("bert", ["BertModel"], "seq-cls", "BertForSequenceClassification"),
            ("bert", ["BertForPreTraining"], "seq-cls", "BertForSequenceClassification"),
            ("bert", ["BertLMHeadModel"], "causal-lm", "BertLMHeadModel"),
            ("opt", None, "causal-lm", "OPTForCausalLM"),
            ("opt", ["OPTModel"], "causal-lm", "OPTForCausalLM"),
            ("opt", ["OPTForSequenceClassification"], "seq-cls", "OPTForSequenceClassification"),
            ("bart", None, "seq2seq-lm", "BartForConditionalGeneration"),
            ("bart", ["BartModel"], "seq2seq-lm", "BartForConditionalGeneration"),
            ("bart", ["BartForCausalLM"], "causal-lm", "BartForCausalLM"),
        ],
    )
    def test_is_what_the_configuration_says(
        self, architecture: str, named: list[str] | None, task: Task, built_as: str
    ) -> None:
        """Its `architectures` decide; one that is not fine-tuned yet is taken for what its type is made for."""
        model = runnable_model("m", {"model_type": architecture, "architectures": named}, folder=None)
        assert (model.task, model.built_as) == (task, built_as)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"model_type": "vit"}, "no step is built for a model of the type vit"),
            ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "for ViTForImageClassification"),
            ({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}, "BertForSequenceClassification is"),
            ({"model_type": "canine"}, "no vocab_size"),
            ({"model_type": "opt", "quantization_config": {"bits": 4}}, "quantised already"),
            ({"model_type": "gpt_neoxx"}, "did you mean gpt_neox"),
            ({"model_type": "x" * 5000}, r"no model of the type 'x+\.\.\.'"),
        ],
    )
    def test_what_has_no_step_is_refused_by_name(self, config: dict[str, Any], reason: str) -> None:
        """With what it is, and what there would be."""
        with pytest.raises(UnsupportedError, match=reason):
            runnable_model("m", config, folder=None)


class TestRefusals:
    """What meta tensors cannot run, or the libraries refuse, is told with operator and module."""

    def test_a_value_that_depends_on_the_data(self) -> None:
        """JetMoe asks its router how many tokens each expert has."""
        config = {
            "model_type": "jetmoe", "hidden_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 2,
            "kv_channels": 8, "intermediate_size": 64, "num_local_experts": 4, "vocab_size": 250,
        }  # fmt: skip
        run = RunSpec(model=runnable_model("m", config, folder=None), method=MethodSpec(name="full"), seq=16)
        with pytest.raises(UnsupportedError, match=r"since aten\._to_copy in model\.layers\.0\.\S+router needs data"):
            predict(run)

    def test_code_that_fails_in_any_case(self) -> None:
        """Fourier transforms of bf16 are not there on any device; the reason is PyTorch's."""
        config = {"model_type": "fnet", "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
        run = RunSpec(model=runnable_model("m", config, folder=None), method=MethodSpec(name="full"), seq=16)
        with pytest.raises(RuntimeError, match="Unsupported dtype BFloat16"):
            Workload.build(run, "cpu").loss()
        with pytest.raises(UnsupportedError, match=r"in fnet\.encoder\.layer\.0\S+ raised .*--dtype fp32 may"):
            predict(run)
        assert predict(run.replace(dtype="fp32")).memory.peak_allocated_bytes

    def test_flash_attention(self) -> None:
        """It stands for another package, whose conditions nobody has looked at for these models."""
        with pytest.raises(UnsupportedError, match="flash attention is built for the architectures of the catalog"):
            predict(run_of("opt", "full", attn="flash"))

    def test_projections_by_other_names(self) -> None:
        """qv finds none: the text lists what there is."""
        with pytest.raises(UnsupportedError, match=r"name them with --targets\. .*: .*conv1d.*|in_proj, x_proj"):
            predict(tiny_run_of("mamba", "lora", targets=("qv",)))
        with pytest.raises(UnknownNameError, match=r"fc1.*out_proj|out_proj.*fc1"):
            predict(tiny_run_of("opt", "lora", targets=("c_fc",)))

    @pytest.mark.parametrize("architecture", ["bloom", "gpt_neox", "mpt", "distilbert", "deberta-v2"])
    def test_query_and_value_by_their_names(self, architecture: str) -> None:
        """Fused and other names of query and value projections are known."""
        found = Workload.build(tiny_run_of(architecture, "lora", targets=("qv",)), "meta").model
        names = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in found.named_parameters() if "lora_A" in n}
        assert names <= {"query_key_value", "Wqkv", "q_lin", "v_lin", "query_proj", "value_proj"}
        assert names


class TestPositions:
    """A table of positions that is too short raises on a real device, and not on meta."""

    @pytest.mark.parametrize("architecture", ["opt", "albert", "electra", "gpt_neo", "camembert", "bart", "distilbert"])
    def test_a_sequence_beyond_the_table(self, architecture: str) -> None:
        """As the real step fails, so the simulated one is refused; at the last position both run."""
        run = run_of(architecture, "full", seq=64, bs=1)
        assert predict(run).memory.peak_allocated_bytes
        longer = run.replace(seq=65)
        real = Workload.build(longer, "cpu")
        with pytest.raises((IndexError, RuntimeError)):
            real.loss()
        told = r"too long for this model: .* has \d+ rows, and row \d+|size .* must match|broadcast a dimension"
        with pytest.raises(LorafaProfError, match=told):
            predict(longer)

    @pytest.mark.parametrize("architecture", ["stablelm", "gpt_neox", "bloom"])
    def test_positions_that_are_computed_have_no_end(self, architecture: str) -> None:
        """Rotary positions and ALiBi go on, in the real step as in the simulated one, which keeps more for more."""
        run = run_of(architecture, "full", seq=80, bs=1)
        assert math.isfinite(Workload.build(run, "cpu").loss().item())
        longer, shorter = (predict(run.replace(seq=seq)).memory.saved_activations_bytes or 0 for seq in (80, 64))
        assert longer > shorter > 0


class TestHostileConfigurations:
    """A config.json may say anything."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_hidden_layers": 10**9}, {"vocab_size": 10**15}, {"hidden_size": 2**40},
            {"max_position_embeddings": 2**60}, {"num_attention_heads": 7}, {"hidden_size": "48"},
            {"nested": {"deeper": [{"num_layers": 10**8}]}}, {"hidden_size": -48}, {"vocab_size": None},
            {"num_hidden_layers": None}, {"ffn_dim": []}, {"rope_scaling": {"type": 3}, "hidden_size": 1.5},
            {"activation_function": "none of them"}, {"__class__": "x"}, {"id2label": ["a", "b"]},
        ],
        ids=str,
    )  # fmt: skip
    def test_ends_in_one_clear_line(self, changes: dict[str, Any]) -> None:
        """No traceback, no long wait, and the key or transformers' own reason in the text."""
        config = tiny_architectures()["opt"] | changes
        with pytest.raises(LorafaProfError, match=r"^m: .{10,500}$"):
            predict(RunSpec(model=runnable_model("m", config, folder=None), method=MethodSpec(name="full"), seq=8))

    def test_a_list_without_end_stops_at_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GPT-Neo spells out its layers by a number in a list, which no rule for keys knows."""
        monkeypatch.setattr("lorafa_prof.workload.limits.MOST_MEMORY", 2**28)
        config = {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global"], 10**9]]}
        with pytest.raises(BadInputError, match="too large to be described"):
            runnable_model("m", config, folder=None)

    def test_modules_without_end_stop_at_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However they are asked for."""
        monkeypatch.setattr("lorafa_prof.workload.limits.MOST_MODULES", 50)
        with pytest.raises(BadInputError, match="a model of more than 50 modules"):
            predict(run_of("opt", "full"))

    def test_words_of_labels_are_no_sizes(self) -> None:
        """A label may be called layers, and its number be large."""
        labels = {"label2id": {"layers": 5000}, "architectures": ["OPTForSequenceClassification"]}
        assert runnable_model("m", tiny_architectures()["opt"] | labels, folder=None).task == "seq-cls"

    def test_what_would_fetch_or_run_code_is_left_out(self) -> None:
        """Kernels by name, quantisers and code, at any depth: transformers never sees them."""
        from lorafa_prof.workload.architectures import configuration

        hostile = {
            "auto_map": {"AutoModelForCausalLM": "a/b--c.D"}, "_attn_implementation": "a/kernel",
            "attn_implementation": "a/kernel", "_experts_implementation_internal": "a/kernel", "name_or_path": "a/b",
        }  # fmt: skip
        text = {"model_type": "opt", **hostile}
        config = tiny_architectures()["opt"] | hostile | {"text_config": text}
        made = configuration("m", config, None)
        assert not hasattr(made, "auto_map")
        assert (made._attn_implementation, made.name_or_path) == (None, "")
        assert made.text_config == {"model_type": "opt"}


def test_no_kernel_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package `kernels` is installed transformers takes Mamba's kernels from the hub; not here."""
    from transformers.integrations import hub_kernels

    asked: list[str] = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda name, **options: asked.append(name))
    monkeypatch.setattr(hub_kernels, "_KERNEL_MODULE_MAPPING", {})
    assert predict(run_of("mamba", "full", seq=8)).memory.peak_allocated_bytes
    assert asked == []


def test_a_run_survives_a_file() -> None:
    """Written and read back it is the same, its configuration included; another configuration is another run."""
    run = run_of("opt", "lora")
    assert run_from_json(run_to_json(run)) == run
    assert hash(run_from_json(run_to_json(run))) == hash(run)
    assert run_of("opt", "lora", changes={"ffn_dim": 96}) != run


# -- all of them -----------------------------------------------------------------------------------------------------


def small_config(architecture: str) -> dict[str, Any]:
    """The configuration that transformers has by default for a type, with two layers: widths cost nothing on meta."""

    def few_layers(config: Any) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for name, value in vars(config).items():
            if isinstance(value, transformers.PretrainedConfig):
                keys[name] = {"model_type": value.model_type, **few_layers(value)}
            elif isinstance(value, int) and re.search(r"(layers|n_layer|depth)$", name) and value > 2:
                keys[name] = 2
        return keys

    config: dict[str, Any] = {"model_type": architecture}
    with contextlib.suppress(Exception):  # one that needs to be told something
        default = transformers.CONFIG_MAPPING[architecture]()
        config |= few_layers(default)
        if getattr(default, "pad_token_id", 0) is None:
            config["pad_token_id"] = 0
        if getattr(default, "is_encoder_decoder", False):
            config["decoder_start_token_id"] = 0
    return config | CHANGES.get(architecture, {})


#: What a default configuration lacks to be one that a model is built with.
CHANGES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "deepseek_v2": {"num_experts_per_tok": 2, "num_hidden_layers": 2},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "reformer": {"is_decoder": True, "axial_pos_shape": [4, 6], "pad_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
}


def types(task: Task) -> Iterator[tuple[str, str]]:
    """Every type of the installed transformers that has a class for a task, and the class."""
    for architecture, found in sorted(_CLASSES[task].items()):
        yield architecture, found if isinstance(found, str) else found[0]


def fails_without_us(task: Task, config: dict[str, Any]) -> bool:
    """Whether transformers alone does not build the model either, on meta."""
    keys = dict(config)
    try:
        made = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
        with torch.device("meta"):
            AUTO_CLASSES[task].from_config(made)
    except Exception:  # noqa: BLE001 - whatever it is, it is not ours
        return True
    return False


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Libraries warn of default configurations."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("task", list(AUTO_CLASSES))
def test_every_type_is_simulated_or_refused(task: Task, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No other exception, and by far the most of them run."""
    counts: collections.Counter[str] = collections.Counter()
    refused: list[str] = []
    wrong: list[str] = []
    for architecture, named in types(task):
        config = small_config(architecture) | {"architectures": [named]}
        try:
            model = runnable_model(architecture, config, folder=None)
            predict(RunSpec(model=model, method=MethodSpec(name=method, rank=4), bs=2, seq=24))
        except (UnsupportedError, MissingComponentError) as error:
            outcome, said = "refused", str(error)
        except BadInputError as error:
            outcome, said = "not built by transformers", str(error)
            if not fails_without_us(task, config):
                wrong.append(said)
        else:
            outcome, said = "simulated", ""
        counts[outcome] += 1
        if said:
            refused.append(f"{architecture}: {said[:240]}")
    with capsys.disabled():
        print(f"\n{task}, {method}: {dict(counts)}", *refused, sep="\n  ")  # noqa: T201 - what this is for
    assert not wrong
    assert counts["simulated"] > 0.75 * counts.total()
