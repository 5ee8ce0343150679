"""Which of transformers' models a configuration is, for architectures that the catalog does not know.

The answer is transformers' own: its configuration class for the `model_type`, and its auto classes for what the model
is fine-tuned for. Nothing here is specific to one architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError, UnsupportedError, nearest_names
from lorafa_prof.specs import RunnableModel, RunSpec, Task
from lorafa_prof.workload import remote_code
from lorafa_prof.workload.limits import bounded, refuse_absurd
from lorafa_prof.workload.versions import installed_versions

AUTO_CLASSES: dict[Task, Any] = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "seq-cls": transformers.AutoModelForSequenceClassification,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
}

#: transformers' tables of classes, by what is fine-tuned; configuration's `model_type` -> name of the class.
_CLASSES: dict[Task, Mapping[str, Any]] = {
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq-cls": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}

#: Keys that do not describe the model: a dtype (the run says which), where it was loaded from, and what would have
#: transformers run code or fetch kernels from elsewhere.
_NOT_OF_THE_MODEL = (
    "torch_dtype", "dtype", "model_type", "transformers_version", "name_or_path", "_name_or_path", "_commit_hash",
    "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_attn_implementation_autoset", "experts_implementation", "_experts_implementation",
    "_experts_implementation_internal", "custom_generate",
)  # fmt: skip


def runnable_model(name: str, config: Mapping[str, Any], *, folder: str | None, trust: bool = False) -> RunnableModel:
    """Return the model that the installed transformers builds from a configuration.

    Args:
        name: what the user calls the model, in one printable line.
        config: the parsed config.json.
        folder: where it lies, if it does not come from a hub's cache: code of the model's own is taken from there.
        trust: run that code if there is any.

    Raises:
        UnsupportedError: a type, or a kind of model, for which no step is built; code that is not trusted.
        BadInputError: sizes that no model has, or values that transformers refuses.
        MissingComponentError: the model's own code needs a package that is not there.
    """
    refuse_absurd(name, config)
    architecture = _model_type(name, config)
    code = remote_code.folder_of(name, config, folder, trust=trust, known=architecture in transformers.CONFIG_MAPPING)
    if code is None:
        _refuse_unknown_type(name, architecture)
    _refuse_quantized(name, config)
    hf_config = configuration(name, config, code)
    if code is not None:
        names = {task: auto.__name__ for task, auto in AUTO_CLASSES.items()}
        task, built_as = remote_code.task_of(name, config, names)
    else:
        task = _task(name, architecture, hf_config)
        built_as = _class_names(task, architecture)[0]
    vocabulary = _vocabulary(name, hf_config)
    return RunnableModel(
        name=name, architecture=architecture, task=task, built_as=built_as, vocab_size=vocabulary, config=config,
        depth=_depth(hf_config), code=code,
    )  # fmt: skip


def configuration(name: str, config: Mapping[str, Any], code: str | None) -> Any:
    """Return transformers' configuration object, its class from the folder `code` where there is one.

    Raises:
        BadInputError: values that the class refuses.
        UnsupportedError: no such type in the installed transformers.
    """
    keys = _plain(config)
    with explained(name), bounded(name, memory=True), remote_code.without_hub():
        if code is not None:
            return remote_code.configuration(config, keys, code)
        return transformers.AutoConfig.for_model(config["model_type"], **keys)


def build(run: RunSpec, model: RunnableModel, device: str, options: dict[str, Any]) -> torch.nn.Module:
    """Return the run's model on `device`, with the attention that transformers takes for it by itself.

    Raises:
        UnsupportedError: flash attention, which is built for the architectures of the catalog alone.
        BadInputError: transformers cannot build it.
    """
    if run.attn == "flash":
        raise UnsupportedError(
            f"{model.name}: flash attention is built for the architectures of the catalog, not for "
            f"{model.architecture}; --attn sdpa runs PyTorch's flash kernel where the model can take it"
        )
    refuse_absurd(model.name, model.config)
    config = configuration(model.name, model.config, model.code)
    for part in _parts(config):
        if hasattr(part, "use_cache"):  # off, as it is in training
            part.use_cache = False
    if run.attn == "eager":
        options["attn_implementation"] = "eager"
    bounds = bounded(model.name, memory=device == "meta")
    with explained(model.name), bounds, remote_code.without_hub(), torch.device(device):
        made: torch.nn.Module = AUTO_CLASSES[model.task].from_config(
            config, trust_remote_code=model.code is not None, **options
        )
    return made


def _parts(config: Any) -> Iterator[Any]:
    """Yield a configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, transformers.PretrainedConfig):
            yield from _parts(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without what does not describe the model, at any depth (nested objects describe parts of it)."""

    def copied(value: Any, top: bool = False) -> Any:
        if isinstance(value, Mapping):
            left_out = _NOT_OF_THE_MODEL if top else tuple(k for k in _NOT_OF_THE_MODEL if k != "model_type")
            return {key: copied(inner) for key, inner in value.items() if key not in left_out}
        return [copied(each) for each in value] if isinstance(value, (list, tuple)) else value

    plain: dict[str, Any] = copied(config, top=True)
    return plain


def _model_type(name: str, config: Mapping[str, Any]) -> str:
    found = config.get("model_type")
    if not isinstance(found, str):
        raise BadInputError(f"{name}: no model_type; is this the config.json of a Hugging Face model?")
    return found


def _refuse_unknown_type(name: str, architecture: str) -> None:
    if architecture in transformers.CONFIG_MAPPING:
        return
    near = nearest_names(architecture, list(transformers.CONFIG_MAPPING))
    shown = architecture if len(architecture) <= 60 else architecture[:57] + "..."
    raise UnsupportedError(
        f"{name}: transformers {installed_versions()['transformers']} has no model of the type {shown!r}; "
        + (f"did you mean {', '.join(near)}? " if near else "")
        + "A later release may have it: pip install --upgrade transformers"
    )


def _refuse_quantized(name: str, config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise UnsupportedError(
            f"{name}: this checkpoint is quantised already (quantization_config); "
            "name the original model and choose the form with --quant"
        )


def _task(name: str, architecture: str, hf_config: Any) -> Task:
    """Return what a model is fine-tuned for: what its `architectures` say, else the one that its type is made for."""
    able: list[Task] = [task for task, table in _CLASSES.items() if architecture in table]
    named = [each for each in getattr(hf_config, "architectures", None) or () if isinstance(each, str)]
    for task in able:
        if set(_class_names(task, architecture)).intersection(named):
            return task
    others = [each for each in named if not _is_pretrained_text(architecture, each)]
    if not able or others:
        what = ", ".join(others or named) or f"a model of the type {architecture}"
        raise UnsupportedError(
            f"{name}: no step is built for {what[:120]}; it is for {', '.join(AUTO_CLASSES)} models"
            + (f", as {', '.join(_class_names(task, architecture)[0] for task in able)} is" if able else "")
        )
    if getattr(hf_config, "is_encoder_decoder", False) and "seq2seq-lm" in able:
        return "seq2seq-lm"
    # An encoder has a class for masked words, and is fine-tuned to classify; its causal class is for decoders that are
    # made of it.
    if architecture in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and "seq-cls" in able:
        return "seq-cls"
    return able[0]


def _class_names(task: Task, architecture: str) -> tuple[str, ...]:
    """Return the classes that transformers has for a task of a type, the first its choice."""
    found = _CLASSES[task][architecture]
    return (found,) if isinstance(found, str) else tuple(found)


def _is_pretrained_text(architecture: str, named: str) -> bool:
    """Return whether a class is one that checkpoints are published as before they are fine-tuned for anything."""
    tables = (
        modeling_auto.MODEL_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    )  # fmt: skip
    found = (table.get(architecture) for table in tables)
    return any(named == each or (isinstance(each, (tuple, list)) and named in each) for each in found)


def _depth(hf_config: Any) -> int | None:
    """Return how many layers there are, of an encoder-decoder in the deeper stack; None where that is not said."""
    text = hf_config
    with contextlib.suppress(ValueError):  # several of them
        text = hf_config.get_text_config()
    names = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
    found = [number for name in names if isinstance(number := getattr(text, name, None), int)]
    return max(found, default=None)


def _vocabulary(name: str, hf_config: Any) -> int:
    text = hf_config
    with contextlib.suppress(ValueError):  # several of them
        text = hf_config.get_text_config()
    found = getattr(text, "vocab_size", None) or getattr(hf_config, "vocab_size", None)
    if not isinstance(found, int):
        raise UnsupportedError(f"{name}: its configuration has no vocab_size, which a batch of tokens needs")
    return found


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn whatever a configuration or model class raises while it is made into an error that says so."""
    try:
        yield
    except LorafaProfError:
        raise
    except ImportError as error:
        raise MissingComponentError(f"{name}: {' '.join(str(error).split())[:300]}") from error
    except MemoryError:
        raise BadInputError(f"{name}: its configuration asks for a model that is too large to be described") from None
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise BadInputError(
            f"{name}: transformers cannot build this configuration: {type(error).__name__}: {text}"
        ) from error
