"""The readers know the keys of the installed transformers, PEFT and accelerate, and agree with them on defaults."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.configs import Reading, read_configs
from lorafa_prof.configs.draft import NOT_KNOWN
from lorafa_prof.configs.shared import OPTIMIZERS


def read(tmp_path: Path, data: dict[str, Any]) -> Reading:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(data))
    return read_configs([str(path)])


def unknown(reading: Reading) -> list[str]:
    return [unused.key for unused in reading.unused if unused.reason == NOT_KNOWN]


def test_every_training_argument_is_known() -> None:
    """Each field of TrainingArguments is used, or listed with a reason; none is new to the reader."""
    transformers = pytest.importorskip("transformers")
    from lorafa_prof.configs import trainer
    from lorafa_prof.configs.draft import Draft

    fields = {
        field.name: _something(field) for field in dataclasses.fields(transformers.TrainingArguments) if field.init
    }
    draft = Draft("f", "t", fields)
    trainer.training_arguments(draft, trl=False)
    assert unknown(draft.finish()) == []


def _something(field: Any) -> Any:
    """A value for a field that changes nothing: its default, or what turns it off."""
    if field.name == "optim":
        return "sgd"
    if field.name.endswith(("_kwargs", "_config")):
        return {}
    default = field.default if field.default is not dataclasses.MISSING else None
    return default if isinstance(default, (bool, int, float)) else False


def test_defaults_are_those_of_the_trainer(tmp_path: Path) -> None:
    """What the reader assumes where a file says nothing is what the installed TrainingArguments assume."""
    transformers = pytest.importorskip("transformers")
    defaults = {field.name: field.default for field in dataclasses.fields(transformers.TrainingArguments)}
    options = read(tmp_path, {"num_train_epochs": 1}).options
    assert options["bs"] == defaults["per_device_train_batch_size"]
    assert options["accumulation"] == defaults["gradient_accumulation_steps"]
    assert options["optimizer"] == OPTIMIZERS[str(getattr(defaults["optim"], "value", defaults["optim"]))]
    assert options["clip"] == (defaults["max_grad_norm"] > 0)
    assert (options["amp"], options["checkpointing"]) == (False, "none")
    assert not defaults["bf16"]


def test_optimizers_are_the_trainers() -> None:
    """Each name in the table is one that the Trainer takes."""
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}


@pytest.mark.parametrize("kind", ["LoraConfig", "AdaLoraConfig", "VeraConfig"])
def test_what_peft_saves_is_read(kind: str, tmp_path: Path) -> None:
    """An adapter_config.json that PEFT itself has written: every key is known, rank and targets are its own."""
    peft = pytest.importorskip("peft")
    more = {"total_step": 10} if kind == "AdaLoraConfig" else {}
    config = getattr(peft, kind)(
        target_modules=["q_proj", "v_proj"], base_model_name_or_path="meta-llama/Llama-2-7b-hf", **more
    )
    config.save_pretrained(str(tmp_path))
    reading = read_configs([str(tmp_path / "adapter_config.json")])
    assert unknown(reading) == []
    assert set(str(reading.options["targets"]).split(",")) == {"q_proj", "v_proj"}
    rank = config.init_r if kind == "AdaLoraConfig" else config.r
    assert reading.options["rank"] == rank
    assert reading.options["method"] == {"LoraConfig": "lora", "AdaLoraConfig": "adalora", "VeraConfig": "vera"}[kind]


def test_what_accelerate_saves_is_read(tmp_path: Path) -> None:
    """A file that accelerate itself has written."""
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig(
        compute_environment="LOCAL_MACHINE", distributed_type="MULTI_GPU", mixed_precision="bf16", use_cpu=False,
        debug=False, num_processes=2,
    )  # fmt: skip
    path = tmp_path / "a.yaml"
    config.to_yaml_file(str(path))
    reading = read_configs([str(path)])
    assert unknown(reading) == []
    assert reading.options == {"amp": True, "gpus": 2, "shard": "ddp"}
