"""PEFT's adapters for a run's method, frozen and cast as the method and PEFT's defaults say."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lorafa_prof import lorafa
from lorafa_prof.errors import BadInputError, UnknownNameError, UnsupportedError
from lorafa_prof.specs import PREPARED, RunSpec
from lorafa_prof.workload.adapted_layers import check_layers, within_layers
from lorafa_prof.workload.methods import configure
from lorafa_prof.workload.models import DTYPES
from lorafa_prof.workload.versions import installed_versions, release

TASK_TYPES = {"causal-lm": "CAUSAL_LM", "seq-cls": "SEQ_CLS", "seq2seq-lm": "SEQ_2_SEQ_LM"}

#: Query and value projections by the names that model families give them; the first pair found is taken. Where
#: q, k and v (or, in MLA, the way to v) share one matrix, that matrix is what "query and value" can mean.
QV_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_proj", "kv_b_proj"),
    ("q_b_proj", "kv_b_proj"),
    ("qkv_proj",),
    ("c_attn",),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("query_key_value",),
    ("Wqkv",),
)

#: The matrix of an adapter pair that a method leaves untrained.
FROZEN = {"lora-fa": "lora_A", "lora-fa-peft": "lora_A", "qlora-fa": "lora_A", "lora-fb": "lora_B"}


def add_adapters(model: torch.nn.Module, run: RunSpec, config: peft.PeftConfig | None = None) -> torch.nn.Module:
    """Return the model wrapped with the adapters of the run's method.

    Args:
        model: the base.
        run: the configuration.
        config: PEFT's, where it has been made already.

    Raises:
        UnsupportedError: a method that this version builds no adapters for, targets that PEFT finds nowhere, or
            quantised weights that the installed PEFT does not adapt.
    """
    keep_16_bit = run.resolved_adapter_dtype != "fp32"
    if run.resolved_quant != "none":
        _refuse_unmatched_releases(run)
    with quiet():
        wrapped = _wrapped(model, run, config, autocast_adapter_dtype=not keep_16_bit)
    if run.method.name == "pissa":
        _refuse_undecomposed(wrapped, run)
    for name, parameter in wrapped.named_parameters():
        if FROZEN.get(run.method.name, "\0") in name:
            parameter.requires_grad_(False)
    if run.method.layers is not None:
        check_layers(wrapped, run)
    if next(wrapped.parameters()).is_meta:
        _cast_meta_adapters(wrapped, DTYPES[run.resolved_adapter_dtype])
    return _prepared(wrapped) if run.method.name in PREPARED else wrapped


def _prepared(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return lorafa.prepare(model)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; PEFT's LoRA-FA is --method lora-fa-peft") from None


def _refuse_undecomposed(model: torch.nn.Module, run: RunSpec) -> None:
    """Refuse PiSSA of what PEFT has no decomposition for and fails at: here it is not asked to decompose anything."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and not hasattr(layer.get_base_layer(), "weight"):
            raise UnsupportedError(
                f"PEFT cannot adapt {run.model.name}: pissa decomposes the weights of layers, and the parameters that "
                "experts share are in none; name --targets without them"
            )


def _refuse_unmatched_releases(run: RunSpec) -> None:
    """Refuse what PEFT before 0.14 cannot do.

    It has no VeRA for packed weights, which it takes for plain ones, and asks int8 layers for a setting that
    bitsandbytes 0.45 dropped.
    """
    if release("peft") >= (0, 14):
        return
    versions = installed_versions(quantized=True)
    if run.method.name == "vera":
        raise UnsupportedError(
            f"PEFT {versions['peft']} has no VeRA over quantised weights; 0.14 has it: pip install --upgrade peft"
        )
    if run.resolved_quant == "int8" and release("bitsandbytes") >= (0, 45):
        raise UnsupportedError(
            f"PEFT {versions['peft']} adapts int8 weights of bitsandbytes up to 0.44; with the installed one, "
            f"{versions['bitsandbytes']}, goes PEFT 0.14 or later: pip install --upgrade peft"
        )


def _wrapped(model: torch.nn.Module, run: RunSpec, config: peft.PeftConfig | None, **options: Any) -> torch.nn.Module:
    # PEFT makes adapters on the default device and moves them to their layer's: on meta no random numbers are drawn.
    on_meta = torch.device("meta") if next(model.parameters()).is_meta else nullcontext()
    try:
        with on_meta:
            config = peft_config(model, run) if config is None else config
            wrapped: torch.nn.Module = peft.get_peft_model(model, config, **options)
    except (ValueError, TypeError) as error:  # VeRA refuses a module that is no linear layer by a TypeError
        raise UnsupportedError(f"PEFT cannot adapt {run.model.name}: {error}") from error
    return wrapped


def peft_config(model: torch.nn.Module, run: RunSpec) -> peft.PeftConfig:
    """Return the PEFT configuration of the run's method.

    Raises:
        as `targets` and `configure`.
    """
    chosen = targets(model, run)
    options: dict[str, Any] = {"target_modules": chosen}
    if run.method.layers is not None:
        options = within_layers(model, run, chosen, fused=names_of_fused_experts(run.model.architecture))
    return configure(run.method, **options, task_type=TASK_TYPES[run.model.task])


def targets(model: torch.nn.Module, run: RunSpec) -> str | list[str]:
    """Return what PEFT is asked to adapt.

    PEFT itself is content with one name of a list that it finds, and takes "all-linear" and "qv" within a list for
    names of modules: a list of which a part does nothing is refused, or spelled out.

    Raises:
        BadInputError: all-linear among other names.
        UnknownNameError: a name that is nowhere in the model.
        UnsupportedError: no query and value projections by a name that is known.
    """
    wanted = ("qv",) if run.method.name == "lora-qv" else run.method.targets
    if wanted == ("all-linear",):
        return "all-linear"
    if "all-linear" in wanted:
        raise BadInputError("the target all-linear stands alone; name modules, or nothing else")
    paths = [path for path, _ in model.named_modules()]
    fused = names_of_fused_experts(run.model.architecture)
    named: dict[str, None] = {}
    for name in wanted:
        if name == "qv":
            named.update(dict.fromkeys(_query_and_value(model, paths)))
        elif name in fused or any(path == name or path.endswith("." + name) for path in paths):
            named[name] = None
        else:
            known = _adaptable(model)
            raise UnknownNameError("target module", name, known, f"Modules that can be adapted: {', '.join(known)}.")
    return list(named)


def names_of_fused_experts(architecture: str) -> frozenset[str]:
    """Return the names that PEFT takes for parts of fused experts, of a `model_type`; none where it knows of no such.

    transformers 5 holds a layer's experts in fused parameters; a PEFT that knows such models translates their former
    names, also where modules of those names (DeepSeek's shared experts) are there beside them.
    """
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:
        return frozenset()
    alike: dict[str, str] = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    table: dict[str, dict[str, str]] = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return frozenset(table.get(alike.get(architecture, ""), ()))  # not itself: Qwen 2's names stand in it in vain


def _adaptable(model: torch.nn.Module) -> list[str]:
    """Return the last names of the modules that hold a matrix, each once, in order."""
    modules: Any = model.named_modules()
    matrices = (path for path, module in modules if getattr(getattr(module, "weight", None), "ndim", 0) == 2)
    return list(dict.fromkeys(path.rpartition(".")[2] for path in matrices))


def _query_and_value(model: torch.nn.Module, paths: list[str]) -> tuple[str, ...]:
    present = {path.rpartition(".")[2] for path in paths}
    pair = next((pair for pair in QV_TARGETS if present.issuperset(pair)), None)
    if pair is None:
        known = ", ".join(_adaptable(model))
        raise UnsupportedError(
            "no query and value projections found by name; name them with --targets. "
            f"Modules that can be adapted: {known}."
        )
    return pair


def _cast_meta_adapters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give adapters on meta the dtype that real ones have; PEFT skips both its casts for them."""
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for name in (*layer.adapter_layer_names, *layer.other_param_names):
            adapter = getattr(layer, name, None)
            if isinstance(adapter, torch.nn.ParameterDict) and _moving_trains():
                _make_anew(adapter)
            if isinstance(adapter, torch.nn.Module):  # ModuleDict, ParameterDict or BufferDict
                adapter.to(dtype)


def _make_anew(adapter: torch.nn.ParameterDict) -> None:
    # Moved from the host, where PEFT makes it, a parameter is a tensor, which its dictionary makes a parameter again,
    # a trained one: so does AdaLoRA's ranknum, meant to be frozen, become a divisor that has its dividend saved.
    for key, parameter in list(adapter.items()):
        if not parameter.requires_grad:
            adapter[key] = parameter.detach().clone()


@functools.cache
def _moving_trains() -> bool:
    """Whether a frozen parameter of an adapter is trained once it is moved or cast: the installed PEFT is asked.

    Up to 0.18 it freezes again what is no adapter's weight after that; 0.21 does not.
    """
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16))
    config = peft.AdaLoraConfig(init_r=1, target_r=1, tinit=1, total_step=4, target_modules=["0"])
    with torch.device("cpu"):
        wrapped = peft.get_peft_model(layer, config)
    return any(parameter.requires_grad for name, parameter in wrapped.named_parameters() if "ranknum" in name)


@contextmanager
def quiet() -> Iterator[None]:
    """Let PEFT do what is wanted without a warning.

    It warns that it set fan_in_fan_out for GPT-2's Conv1D; and its hooks that count LoRA-GA's gradients have PyTorch
    warn of the first layers, whose input needs no gradient.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
