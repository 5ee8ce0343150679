"""What is supported, asked of the engines themselves: each is given a tiny run, and takes it or says why not.

Nothing here is a list of what works. Methods, architectures and the values of options are those of the package, so that
a new one is asked about without a line being added.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from lorafa_prof import specs
from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_device
from lorafa_prof.catalog.families import FAMILIES
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.specs import METHODS, RunSpec
from tests.analytic.runs import run_of
from tests.support.configs import tiny_configs

ARCHITECTURES = tuple(sorted(FAMILIES))
"""Every `model_type` that the catalog reads: the columns."""

#: Of what no tiny configuration is among the tests': a configuration to begin with, and what makes another of it.
_MADE_FROM: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("llama", {"model_type": "gemma", "pad_token_id": 0}),
    "xlm-roberta": ("roberta", {"model_type": "xlm-roberta"}),
}


@dataclass(frozen=True)
class Answer:
    """What an engine says to a run."""

    reason: str | None
    """None: it takes the run. Else the first sentence of its refusal."""


def architecture_run(architecture: str, method: str, **options: Any) -> RunSpec:
    """Return a run of a tiny model of an architecture, options as of `run_of`; KeyError: there is no configuration."""
    known = {str(config["model_type"]): name for name, config in reversed(tiny_configs().items())}
    if architecture in known:
        return run_of(known[architecture], method, **options)
    family, changes = _MADE_FROM[architecture]
    run = run_of(family, method, changes={**changes, **options.pop("changes", {})}, **options)
    return run.replace(model=dataclasses.replace(run.spec, name=architecture))


# -- techniques ------------------------------------------------------------------------------------------------------

#: Options whose values are a list of the package's, each with that list.
_LISTED: Mapping[str, Any] = {
    "quant": specs.Quantization, "prepare_kbit": specs.KbitPreparation, "checkpointing": specs.Checkpointing,
    "dtype": specs.Dtype, "adapter_dtype": specs.AdapterDtype, "attn": specs.Attention, "loss": specs.Loss,
    "optimizer": specs.Optimizer, "shard": specs.Shard,
}  # fmt: skip
#: Numbers and switches: one value that is not the default.
_OTHERS: tuple[tuple[str, Any], ...] = (
    ("amp", True), ("padded", True), ("accumulation", 2), ("clip", True), ("dropout", 0.1), ("adapted", (1,)),
    ("keep", ("attention", "functions", "aten.mm")),
)  # fmt: skip

TECHNIQUES: tuple[tuple[str, Any], ...] = (
    *((option, value) for option, values in _LISTED.items() for value in get_args(values)),
    *_OTHERS,
)
"""(option, value) of every technique: the rows of the second table."""

#: Switches as they are on the command line, where that is another name than the run's.
_SPELLED = {"prepare_kbit": "prepare-kbit", "adapter_dtype": "adapter-dtype", "adapted": "layers"}


def technique_name(option: str, value: Any) -> str:
    """Return a technique as on the command line."""
    switch = "--" + _SPELLED.get(option, option)
    if value is True:
        return switch
    if isinstance(value, tuple):
        return f"{switch} {','.join(map(str, value))}"
    return f"{switch} {value}"


def technique_run(option: str, value: Any) -> RunSpec:
    """Return a run of a tiny Llama with one option set, by a method that has a use for it.

    As many key/value heads as query heads: PyTorch has no fused kernel for fewer in fp32.
    """
    method, more = "lora", {}
    if option == "optimizer":
        method = {
            "lorafa": "lora-fa",
            "lorafa-peft": "lora-fa-peft",
            "lora-pro": "lora-pro",
            "lora-pro-full": "lora-pro",
        }.get(value, "lora")
    if option == "prepare_kbit":
        method, more = "qlora", {"amp": True}  # TRL's SFTTrainer trains under autocast
    if option == "keep":
        more = {"checkpointing": "selective"}
    if option == "shard" and value != "none":
        more = {"gpus": 2, "optimizer": "adamw"}
    return run_of("llama", method, changes={"num_key_value_heads": 6}, **more, **{option: value})


# -- asking ----------------------------------------------------------------------------------------------------------


def analytic(run: RunSpec) -> None:
    """Predict by closed forms, step time among the rest."""
    predict(run, [load_device("a100-80gb")], timed=True)


def simulate(run: RunSpec) -> None:
    """Record the step on meta tensors, with a CUDA card's kernels."""
    from lorafa_prof.simulate.engine import simulate as simulated

    simulated(run)


def measure(run: RunSpec) -> None:
    """Take a real step on the CPU; of several processes only refuse, since they would have to be started."""
    from lorafa_prof.workload import Workload, training_step
    from lorafa_prof.workload.parallel import Group
    from lorafa_prof.workload.step import refuse_unbuilt

    if run.gpus > 1:
        refuse_unbuilt(run, Group(rank=0, world_size=run.gpus))
        return
    training_step(Workload.build(run, "cpu"))


ENGINES: Mapping[str, Callable[[RunSpec], None]] = {"analytic": analytic, "simulate": simulate, "measure": measure}


def ask(engine: str, make_run: Callable[[], RunSpec]) -> Answer:
    """Return what an engine says to a run; of one that fails, where it should refuse, that it does."""
    try:
        run = make_run()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about models that are never trained
            ENGINES[engine](run)
    except LorafaProfError as error:
        return Answer(first_sentence(str(error)))
    except Exception as error:  # noqa: BLE001  # whatever the libraries raise: the page says what it is
        return Answer(f"fails without a refusal, {type(error).__name__}: {first_sentence(str(error))}")
    return Answer(None)


def first_sentence(text: str) -> str:
    """Return a refusal's first sentence, without the model's name, the full stop and lists of what works."""
    sentence = re.sub(r" \(it (does|is|is with): [^)]*\)", "", " ".join(text.split()).partition(". ")[0].rstrip("."))
    name, colon, rest = sentence.partition(": ")
    return rest if colon and name in (*ARCHITECTURES, *tiny_configs()) else sentence


def methods_by_architecture(engine: str) -> dict[tuple[str, str], Answer]:
    """Ask an engine about every (method, architecture)."""
    return {
        (method, architecture): ask(engine, partial(architecture_run, architecture, method))
        for method in METHODS
        for architecture in ARCHITECTURES
    }


def techniques(engine: str) -> dict[tuple[str, Any], Answer]:
    """Ask an engine about every technique."""
    return {(option, value): ask(engine, partial(technique_run, option, value)) for option, value in TECHNIQUES}
