"""Configurations become specs: defaults, biases and widths as the installed transformers has them; no tracebacks."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from lorafa_prof.catalog import config_reader, spec_from_config
from lorafa_prof.catalog.defaults import ACTIVATIONS, ALIASES, DEFAULTS, TRANSFORMERS
from lorafa_prof.catalog.families import FAMILIES
from lorafa_prof.errors import BadInputError, LorafaProfError, UnknownNameError, UnsupportedError
from lorafa_prof.specs import ModelSpec

FAMILY_NAMES = sorted(FAMILIES)

#: Keys that a family honours although transformers' class has no field for them, or that every family has.
EXTRAS = {"head_dim", "sliding_window_pattern", "num_labels", "id2label", "per_layer_config"}
EXTRAS |= {"quantization_config", "rope_scaling", "rope_parameters", "partial_rotary_factor"}

#: The least change that makes a configuration of defaults whole: DeepSeek-V2's class has no usable default.
NEEDED: Mapping[str, Mapping[str, object]] = {"deepseek_v2": {"num_experts_per_tok": 6}}

#: Two layers, and every key that switches something on.
SWITCHED_ON: Mapping[str, Mapping[str, object]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "head_dim": 64},
    "mistral": {"head_dim": None, "sliding_window": None, "num_attention_heads": 16},
    "mixtral": {"sliding_window": 128, "num_local_experts": 4, "head_dim": 64},
    "qwen2": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "head_dim": 64},
    "qwen3": {"attention_bias": True, "layer_types": ["full_attention", "full_attention"]},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1, "qkv_bias": False, "head_dim": 64},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 64, "attention_bias": True, "head_dim": 64},
    "gemma": {"attention_bias": True, "hidden_act": "gelu", "tie_word_embeddings": False},
    "gemma2": {"attention_bias": True, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text": {"attention_bias": True, "sliding_window_pattern": 2, "use_bidirectional_attention": True},
    "phi3": {"num_key_value_heads": 8, "resid_pdrop": 0.25, "embd_pdrop": 0.5, "sliding_window": 2047},
    "gpt2": {"n_inner": 1000, "attn_pdrop": 0.2, "resid_pdrop": 0.25, "embd_pdrop": 0.3},
    "gpt_bigcode": {"multi_query": False, "resid_pdrop": 0.25, "embd_pdrop": 0.3},
    "granite": {"attention_bias": True, "mlp_bias": True, "head_dim": 64, "tie_word_embeddings": True},
    "roberta": {"max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": 5},
    "xlm-roberta": {"hidden_dropout_prob": 0.2, "pad_token_id": 3},
    "bert": {"attention_probs_dropout_prob": 0.3, "id2label": {"0": "a", "1": "b", "2": "c"}},
    "t5": {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 3, "d_kv": 32},
    "deepseek_v2": {"attention_bias": True, "mlp_bias": True, "q_lora_rank": None, "first_k_dense_replace": 1},
}

HOSTILE: list[object] = [
    None, True, False, 0, -1, 1, 3, 10**30, 10**4300, 0.5, 1e9, 4096.0, math.nan, math.inf, -0.1, "", "4096", "x\ny",
    "gated-x-y", "gated", [], [1], ["full_attention"], [10**5000], {}, {"a": 1}, object(), b"x", "\ud800",
]  # fmt: skip


def layers_key(family: str) -> str:
    """Return what the family calls its number of layers."""
    return {"gpt2": "n_layer", "gpt_bigcode": "n_layer", "t5": "num_layers"}.get(family, "num_hidden_layers")


def config_of(family: str, **changes: object) -> dict[str, Any]:
    """Return the family's defaults with two layers and some changes, as a published configuration."""
    return {"model_type": family, layers_key(family): 2, **width_of(family), **NEEDED.get(family, {}), **changes}


def width_of(family: str) -> dict[str, Any]:
    """Return the family's default width under its own name: no file is read without one."""
    key = next(name for name in ("hidden_size", "n_embd", "d_model") if name in DEFAULTS[family])
    return {key: DEFAULTS[family][key]}


def installed_transformers() -> Any:
    """Return transformers; skip where it is missing, or older than the release that the defaults were read from."""
    transformers = pytest.importorskip("transformers")
    if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, TRANSFORMERS.split("."))):
        pytest.skip(f"configurations are read as transformers {TRANSFORMERS} reads them")
    transformers.logging.set_verbosity_error()
    return transformers


def real_config(config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration object of the same dict; of a copy, for it writes into nested ones."""
    keys = copy.deepcopy(dict(config))
    return installed_transformers().AutoConfig.for_model(keys.pop("model_type"), **keys)


def real_model(spec: ModelSpec) -> Any:
    """Return the real model of the spec on meta tensors: shapes without memory."""
    torch, transformers = pytest.importorskip("torch"), installed_transformers()
    classes = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq-cls": transformers.AutoModelForSequenceClassification,
        "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
    }
    with torch.device("meta"):
        return classes[spec.task].from_config(real_config(spec.config))


def same_as_transformers(spec: ModelSpec) -> None:
    """Assert that the spec's plain figures are those of transformers' configuration object."""
    real = real_config(spec.config)
    assert spec.hidden_size == real.hidden_size
    assert spec.num_layers == real.num_hidden_layers
    assert spec.num_heads == real.num_attention_heads
    assert spec.vocab_size == real.vocab_size
    assert spec.tie_word_embeddings == real.tie_word_embeddings
    assert spec.num_labels == real.num_labels
    assert spec.num_kv_heads == getattr(real, "num_key_value_heads", None) or spec.num_heads
    inner = next((getattr(real, k) for k in ("intermediate_size", "n_inner", "d_ff") if hasattr(real, k)), None)
    assert spec.intermediate_size == (inner or 4 * spec.hidden_size)
    if spec.mla is None:  # there, transformers calls the rotated part alone `head_dim`
        assert spec.head_dim == (getattr(real, "head_dim", None) or spec.hidden_size // spec.num_heads)
    acts = ("dense_act_fn", "hidden_activation", "hidden_act", "activation_function")
    assert spec.hidden_act == next(getattr(real, k) for k in acts if hasattr(real, k))
    if getattr(real, "layer_types", None) is not None:
        assert spec.layer_types == (tuple(real.layer_types) if "sliding_attention" in real.layer_types else ())
    assert spec.sliding_window == (getattr(real, "sliding_window", None) if spec.layer_types else None)


#: Suffixes of the names of: a projection that makes q or all of q, k, v; the output projection; the first of the MLP.
PROJECTIONS = {
    "phi3": ("qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc"),
    "gpt_bigcode": ("attn.c_attn", "attn.c_proj", "mlp.c_fc"),
    "roberta": ("self.query", "attention.output.dense", "intermediate.dense"),
    "xlm-roberta": ("self.query", "attention.output.dense", "intermediate.dense"),
    "bert": ("self.query", "attention.output.dense", "intermediate.dense"),
    "t5": ("SelfAttention.q", "SelfAttention.o", ("DenseReluDense.wi", "DenseReluDense.wi_0")),
    "deepseek_v2": ("kv_a_proj_with_mqa", "self_attn.o_proj", "gate_proj"),
    "mixtral": ("self_attn.q_proj", "self_attn.o_proj", None),
    "qwen3_moe": ("self_attn.q_proj", "self_attn.o_proj", None),
    "qwen2_moe": ("self_attn.q_proj", "self_attn.o_proj", "shared_expert.gate_proj"),
}
LLAMA_PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")


def same_as_modules(spec: ModelSpec) -> None:
    """Assert that biases and widths of the spec are those of the modules that transformers builds."""
    model = real_model(spec)
    modules = dict(model.named_modules())

    def first(suffix: Any) -> Any:
        return next(module for name, module in modules.items() if name.endswith(suffix))

    q, out, mlp = PROJECTIONS.get(spec.architecture, LLAMA_PROJECTIONS)
    assert (first(q).bias is not None) == spec.attention_bias
    assert (first(out).bias is not None) == spec.attention_out_bias
    if mlp is not None:
        assert (first(mlp).bias is not None) == spec.mlp_bias
        width = spec.intermediate_size * (2 if spec.architecture == "phi3" else 1)
        if spec.moe is None:  # where all layers have experts, the first plain MLP is a shared expert
            assert sorted(first(mlp).weight.shape) == sorted((width, spec.hidden_size))
    assert q_width(spec, first) == spec.q_width
    assert any("q_norm" in name for name in modules) == spec.qk_norm
    assert any(name.endswith(("gate_proj", "gate_up_proj", "wi_1", "experts")) for name in modules) == spec.gated_mlp
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert tuple(embedding.weight.shape) == (spec.vocab_size, spec.hidden_size)
    if head is not None:
        assert (head.weight is embedding.weight) == spec.tie_word_embeddings


def q_width(spec: ModelSpec, first: Any) -> int:
    """Return the width of all heads' queries in the module tree."""
    fused = {"phi3": "qkv_proj", "gpt2": "attn.c_attn", "gpt_bigcode": "attn.c_attn"}.get(spec.architecture)
    if fused is not None:
        wide = first(fused)
        return int(getattr(wide, "nf", None) or wide.out_features) - 2 * spec.kv_width
    if spec.mla is not None:
        return int(first("q_proj" if spec.mla.q_lora_rank is None else "q_b_proj").out_features)
    return int(first((".q_proj", "self.query", "SelfAttention.q")).out_features)


@pytest.fixture
def keys_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Collect every key that a reader is asked for."""
    seen: set[str] = set()
    plain = config_reader.ConfigReader.get

    def get(self: config_reader.ConfigReader, key: str) -> object:
        seen.add(key)
        return plain(self, key)

    monkeypatch.setattr(config_reader.ConfigReader, "get", get)
    return seen


class TestDefaults:
    """The shipped defaults are those of the installed transformers."""

    @pytest.fixture(autouse=True)
    def recent(self) -> None:
        installed_transformers()

    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_every_default(self, family: str) -> None:
        """Each default equals the default of the field of transformers' class, and each alias its attribute_map."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        cls = CONFIG_MAPPING[family]
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        assert dict(DEFAULTS[family]) == {key: fields.get(key, "no such field") for key in DEFAULTS[family]}
        known = {alias: key for alias, key in cls.attribute_map.items() if key in DEFAULTS[family]}
        assert dict(ALIASES.get(family, {})) == known

    def test_activations(self) -> None:
        """The known activation functions are those of ACT2FN."""
        from transformers.activations import ACT2CLS

        assert sorted(ACTIVATIONS) == sorted(ACT2CLS)

    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_tasks(self, family: str) -> None:
        """Every task offered for a family has a model class in transformers."""
        from transformers.models.auto import modeling_auto as auto

        classes = {
            "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            "seq-cls": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            "seq2seq-lm": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        }
        assert all(family in classes[task] for task in FAMILIES[family].tasks)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_all_defaults_are_read_and_all_reads_have_defaults(family: str, keys_read: set[str]) -> None:
    """A key that a family reads without a default would be silently None; a default that nobody reads is clutter."""
    spec_from_config("m", config_of(family))
    assert keys_read - EXTRAS == set(DEFAULTS[family]) - EXTRAS


class TestAgreement:
    """Specs agree with what the installed transformers builds from the same dict."""

    @pytest.mark.parametrize("family", FAMILY_NAMES)
    @pytest.mark.parametrize("switched", [False, True], ids=["defaults", "switched-on"])
    def test_families(self, family: str, switched: bool) -> None:
        """Every family, bare and with everything that it can switch on."""
        spec = spec_from_config("m", config_of(family, **(SWITCHED_ON[family] if switched else {})))
        same_as_transformers(spec)
        same_as_modules(spec)

    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_classifiers_build(self, family: str) -> None:
        """Each further task of a family is one that its model can be built for."""
        for task in FAMILIES[family].tasks:
            spec = spec_from_config("m", config_of(family), task=task)
            assert spec.task == task
            real_model(spec)

    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_null_labels_are_resolved(self, family: str) -> None:
        """A null, which transformers itself cannot take, means its default of two."""
        same_as_transformers(spec_from_config("m", config_of(family, num_labels=None)))

    @pytest.mark.parametrize("family", ["mistral", "mixtral", "qwen2", "llama", "granite", "phi3"])
    def test_nulls_are_resolved_for_the_engines(self, family: str) -> None:
        """Published nulls for head_dim and key/value heads build the model that was read."""
        config = config_of(family, head_dim=None, num_key_value_heads=None)
        spec = spec_from_config("m", config)
        assert (spec.head_dim, spec.num_kv_heads) == (spec.hidden_size // spec.num_heads, spec.num_heads)
        assert config["head_dim"] is None  # the caller's dict stays as it was
        same_as_modules(spec)

    def test_mistral_slides_in_every_layer(self) -> None:
        """v0.1 leaves its window of 4096 out, since it is the default; v0.3 says null."""
        assert spec_from_config("m", config_of("mistral")).layer_types == ("sliding_attention",) * 2
        assert spec_from_config("m", config_of("mistral", sliding_window=None)).layer_types == ()

    def test_qwen_window_needs_its_switch(self) -> None:
        """Qwen 2.5 publishes a sliding_window that is switched off."""
        spec = spec_from_config("m", config_of("qwen2", sliding_window=131072, use_sliding_window=False))
        assert (spec.sliding_window, spec.layer_types) == (None, ())

    @pytest.mark.parametrize("change", [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}])
    @pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
    def test_layers_without_experts(self, family: str, change: dict[str, Any]) -> None:
        """Refused, and not read as if all had experts."""
        with pytest.raises(UnsupportedError, match="layers without experts between others"):
            spec_from_config("m", config_of(family, **change))

    def test_gemma3_takes_the_text_model(self) -> None:
        """The multimodal configuration is read as its language model, with the text class's defaults."""
        text = {"hidden_size": 2560, "num_hidden_layers": 6, "sliding_window": 1024, "model_type": "gemma3_text"}
        config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 7}}
        spec = spec_from_config("m", config)
        assert (spec.architecture, spec.hidden_size, spec.num_heads, spec.num_kv_heads) == ("gemma3_text", 2560, 8, 4)
        assert spec.layer_types == ("sliding_attention",) * 5 + ("full_attention",)
        same_as_transformers(spec)
        assert not spec_from_config("m", {**config, "tie_word_embeddings": False}).tie_word_embeddings

    def test_aliases_win(self) -> None:
        """transformers lets its common names override the family's own, and so do we."""
        spec = spec_from_config("m", config_of("gpt2", n_embd=768, hidden_size=96, num_attention_heads=8))
        assert (spec.hidden_size, spec.num_heads, spec.head_dim) == (96, 8, 12)
        same_as_transformers(spec)

    @pytest.mark.parametrize(
        "labels",
        [{"num_labels": 7}, {"id2label": {"0": "a"}}, {"id2label": {0: "a", 1: "b", 2: "c"}, "num_labels": 4}],
    )
    def test_labels(self, labels: dict[str, Any]) -> None:
        """num_labels counts, else the entries of id2label, else two."""
        same_as_transformers(spec_from_config("m", config_of("roberta", **labels)))

    def test_t5_ties_whatever_the_file_says(self) -> None:
        """T5 1.1 says that its head is not tied; transformers 5 overrules it."""
        spec = spec_from_config("m", config_of("t5", tie_word_embeddings=False))
        assert spec.tie_word_embeddings
        same_as_modules(spec)

    def test_phi3_never_drops_embeddings(self) -> None:
        """The class has embd_pdrop, the model no such layer."""
        torch = pytest.importorskip("torch")
        spec = spec_from_config("m", config_of("phi3", **SWITCHED_ON["phi3"]))
        dropouts = {m.p for m in real_model(spec).modules() if isinstance(m, torch.nn.Dropout)}
        assert dropouts == {spec.hidden_dropout} == {0.25}
        assert spec.embedding_dropout == 0.0

    @pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode", "roberta", "bert", "t5"])
    def test_dropout_is_active_by_default(self, family: str) -> None:
        """These train with a dropout of 0.1 unless told otherwise."""
        spec = spec_from_config("m", config_of(family))
        assert (spec.attention_dropout, spec.hidden_dropout, spec.embedding_dropout) == (0.1, 0.1, 0.1)


class TestBehaviour:
    """Claims that no configuration object shows: seen on tiny models that run."""

    def test_roberta_positions(self) -> None:
        """A table of 10 positions holds 8 tokens: 8 run and 9 do not."""
        torch, transformers = pytest.importorskip("torch"), installed_transformers()
        small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 30}
        spec = spec_from_config("m", config_of("roberta", max_position_embeddings=10, **small))
        assert spec.max_positions == 8
        model = transformers.AutoModelForSequenceClassification.from_config(real_config(spec.config))
        model(input_ids=torch.full((1, 8), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 9), 5))

    def test_gemma3_ignores_the_attention_softcap(self) -> None:
        """attn_logit_softcapping changes nothing in Gemma 3, so its spec has none; in Gemma 2 it does."""
        assert spec_from_config("m", config_of("gemma3_text", attn_logit_softcapping=5.0)).attention_softcap is None
        assert self._changed_by_softcap("gemma2")
        assert not self._changed_by_softcap("gemma3_text")

    @staticmethod
    def _changed_by_softcap(family: str) -> bool:
        torch, transformers = pytest.importorskip("torch"), installed_transformers()
        small: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        small |= {"intermediate_size": 16, "vocab_size": 30, "initializer_range": 1.0}
        logits = []
        for cap in (0.01, None):
            torch.manual_seed(0)
            config = real_config(config_of(family, attn_logit_softcapping=cap, **small))
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
            logits.append(model(input_ids=torch.arange(2, 8)[None]).logits)
        return not torch.equal(*logits)


class TestRefusals:
    """What cannot be read is refused in one clear line."""

    def test_unknown_model_type(self) -> None:
        """The message names the model_type and the supported ones."""
        with pytest.raises(UnsupportedError, match=r"m: model_type 'mamba' is not modelled; known: .*gemma3, .*llama"):
            spec_from_config("m", {"model_type": "mamba"})

    @pytest.mark.parametrize("config", [[], None, "x", 3, {}, {"model_type": None}, {"model_type": ["llama"]}])
    def test_not_a_configuration(self, config: Any) -> None:
        """Anything but an object with a model_type."""
        with pytest.raises(BadInputError, match=r"^m: "):
            spec_from_config("m", config)

    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_a_file_without_its_shape_is_broken(self, family: str) -> None:
        """Width and depth are in every published file; without them a default would be a guess."""
        for key in (*width_of(family), layers_key(family)):
            config = config_of(family)
            del config[key]
            with pytest.raises(BadInputError, match=f"m: no {key}; is this file complete"):
                spec_from_config("m", config)

    def test_tasks(self) -> None:
        """A task that the family has no model for, and one that nobody has."""
        with pytest.raises(UnsupportedError, match=r"a t5 model does seq2seq-lm, not causal-lm"):
            spec_from_config("m", config_of("t5"), task="causal-lm")
        with pytest.raises(UnknownNameError, match="unknown task 'poetry'"):
            spec_from_config("m", config_of("t5"), task="poetry")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("family", "changes", "message"),
        [
            ("llama", {"num_attention_heads": 3}, "num_attention_heads 3 does not divide hidden_size 4096"),
            ("gpt2", {"n_head": 5}, "n_head 5 does not divide n_embd 768"),
            ("gpt2", {"num_attention_heads": "5"}, "num_attention_heads must be an integer, not '5'"),
            ("llama", {"num_key_value_heads": 5}, "32 heads cannot share 5 key/value heads evenly"),
            ("llama", {"num_key_value_heads": 64}, "32 heads cannot share 64 key/value heads evenly"),
            ("mistral", {"head_dim": 33}, "rotary positions need an even head_dim, not 33"),
            ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok must be between 1 and 8, not 9"),
            ("deepseek_v2", {"num_experts_per_tok": None}, "num_experts_per_tok must be an integer, not null"),
            ("deepseek_v2", {"num_key_value_heads": 8}, "num_key_value_heads must equal num_attention_heads"),
            ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
            ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "need a sliding_window"),
            ("roberta", {"pad_token_id": 511}, "pad_token_id 511 leaves max_position_embeddings 512 no room"),
            ("t5", {"feed_forward_proj": "half-relu"}, "feed_forward_proj must be an activation function or gated"),
            ("llama", {"hidden_size": "4096"}, "hidden_size must be an integer, not '4096'"),
            ("llama", {"hidden_size": 10**4300}, "hidden_size must be between 1 and 16777216, not an integer of"),
            ("llama", {"num_hidden_layers": 10**30}, "num_hidden_layers must be between 1 and 2000"),
            ("gemma2", {"layer_types": [10**5000] * 2}, "layer_types must be a list of strings, not a list"),
            ("bert", {"id2label": ["a"]}, "id2label must be an object, not a list"),
            ("bert", {"id2label": {"a": "a"}}, "id2label must map class numbers to names"),
            ("llama", {"rope_scaling": "linear"}, "rope_scaling must be an object, not 'linear'"),
        ],
    )  # fmt: skip
    def test_values(self, family: str, changes: dict[str, Any], message: str) -> None:
        """The line names the model, the key and what is wrong with it."""
        with pytest.raises(BadInputError) as caught:
            spec_from_config("m", config_of(family, **changes))
        assert str(caught.value).startswith("m: ")
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("family", "changes", "message"),
        [
            ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
            ("qwen3", {"layer_types": ["linear_attention"] * 2}, "layer_types: 'linear_attention' is not modelled"),
            ("llama", {"hidden_act": "hypersilu"}, "hidden_act: no activation function 'hypersilu'"),
            ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantised already"),
            ("llama", {"per_layer_config": {"0": {}}}, "per_layer_config"),
        ],
    )
    def test_what_is_not_modelled(self, family: str, changes: dict[str, Any], message: str) -> None:
        """A well-formed configuration of something that nothing here models is refused rather than read wrongly."""
        with pytest.raises(UnsupportedError, match=message):
            spec_from_config("m", config_of(family, **changes))

    def test_remote_code_is_ignored(self) -> None:
        """Keys that point to code change nothing; nothing runs them."""
        plain = spec_from_config("m", config_of("llama"))
        hostile = config_of("llama", auto_map={"AutoConfig": "evil.Config"}, trust_remote_code=True)
        assert spec_from_config("m", hostile) == plain

    def test_names_stay_on_one_line(self) -> None:
        """A name with control characters, or undecodable bytes, is escaped in the spec and in messages."""
        assert spec_from_config("a\nb\udcff", config_of("llama")).name == r"a\nb\udcff"
        with pytest.raises(BadInputError, match=r"^a\\nb: hidden_size"):
            spec_from_config("a\nb", config_of("llama", hidden_size=0))


def check_outcome(family: str, config: dict[str, Any]) -> ModelSpec | None:
    """Return the spec, or None for an error of ours in one printable line; anything else escapes."""
    try:
        spec = spec_from_config("m", config)
    except LorafaProfError as error:
        message = str(error)
        assert message.startswith("m: ")
        assert message.isprintable()
        assert len(message) < 600
        return None
    assert spec.architecture == family
    return spec


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_each_key_with_each_hostile_value(family: str) -> None:
    """Every key that is read, with every hostile value: a spec or our own error, which names the key."""
    for key in sorted({*DEFAULTS[family], *EXTRAS, *ALIASES.get(family, {})}):
        for value in HOSTILE:
            check_outcome(family, config_of(family, **{key: value}))
    for key in set(DEFAULTS[family]) - {"layer_types", "mlp_only_layers"}:  # which may be lists
        with pytest.raises(BadInputError, match=key):
            spec_from_config("m", config_of(family, **{key: [1]}))


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(HOSTILE)
_values = _scalars | st.lists(_scalars, max_size=3) | st.integers(1, 64).map(lambda n: 2 * n)


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(FAMILY_NAMES))
    keys = [*DEFAULTS[family], *ALIASES.get(family, {}), "head_dim", "num_labels", "id2label"]
    changes = draw(st.dictionaries(st.sampled_from(keys), _values, max_size=4))
    return family, config_of(family, **changes)


@given(_mutated())
@example(("gemma3_text", config_of("gemma3_text", sliding_window_pattern=0)))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_configurations(case: tuple[str, dict[str, Any]]) -> None:
    """Random changes give a spec or our own error; and what gives a spec, transformers can build as well."""
    family, config = case
    spec = check_outcome(family, config)
    if spec is not None:
        real_config(spec.config)


@given(st.dictionaries(st.text(max_size=12), _values, max_size=5), st.sampled_from([*FAMILY_NAMES, "gemma3", "?"]))
@settings(max_examples=100, deadline=None)
def test_random_configurations(config: dict[str, Any], model_type: str) -> None:
    """Unknown keys are left alone, whatever they hold."""
    with contextlib.suppress(LorafaProfError):
        spec_from_config("m", {**config, "model_type": model_type})
