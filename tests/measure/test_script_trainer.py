"""`lorafa_prof.TrainerCallback`, and what a PEFT model is held to in a training of the user's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lorafa_prof
from lorafa_prof.errors import BadInputError
from lorafa_prof.results import PART_FIELDS, Measurement
from tests.scripts.tiny import TOKENS, lora_llama, sequences

PLAN = {"warmup": 1, "steps": 2}
BS = 2


class Failing(transformers.TrainerCallback):
    """Ends a training in the midst of it."""

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        raise ArithmeticError("the loss is not a number")


def a_trainer(folder: Path, model: Any, callback: Any, **options: Any) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BS, max_steps=5, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="no", **options,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=sequences(20), callbacks=[callback],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def trained(folder: Path, model: Any, **options: Any) -> Measurement:
    callback = lorafa_prof.TrainerCallback(**PLAN)
    assert callback.measurement is None
    a_trainer(folder, model, callback, **options).train()
    seen = callback.measurement
    assert isinstance(seen, Measurement)
    return seen


def test_a_callback_looks_at_the_trainer_s_steps(tmp_path: Path) -> None:
    """Tokens a step, the memory of one, the parameters beneath the wrappers; AdamW's states where they are."""
    model = lora_llama()
    seen = trained(tmp_path, model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [step.tokens for step in seen.steps] == [BS * TOKENS] * 2
    assert seen.parameters == {"total": sum(p.numel() for p in model.parameters()), "trainable": trainable}
    assert seen.throughput.model_flops is None
    table = model.get_input_embeddings().weight.numel()
    assert seen.throughput.model_flops_6n == 6 * (seen.parameters["total"] - table) * BS * TOKENS
    assert seen.memory is not None
    tensors = sum(p.requires_grad for p in model.parameters())
    assert seen.memory.optimizer_bytes == 2 * 4 * trainable + 4 * tensors
    assert sum(getattr(seen.memory, part) for part in PART_FIELDS) == seen.memory.peak_allocated_bytes
    assert seen.violations == ()


def test_a_recomputation_is_seen(tmp_path: Path) -> None:
    """Under the Trainer's own checkpointing a step has a phase more, and keeps less."""
    name = "activation_checkpointing"
    if name not in {field.name for field in dataclasses.fields(transformers.TrainingArguments)}:
        name = "gradient_checkpointing"
    plain, again = (trained(tmp_path, lora_llama(), **{name: flag}) for flag in (False, True))
    assert "recompute" in {phase.phase for phase in again.phases}
    assert plain.memory is not None
    assert again.memory is not None
    assert (again.memory.saved_activations_bytes or 0) < (plain.memory.saved_activations_bytes or 0) / 2


def test_a_frozen_matrix_that_is_turned_on_again_is_told(tmp_path: Path) -> None:
    """In half of the layers A is frozen, in the others PEFT has turned it on: nothing else would say so."""
    model = lora_llama()
    for path, parameter in model.named_parameters():
        if "lora_A" in path and "layers.0." in path:
            parameter.requires_grad_(False)
    seen = trained(tmp_path, model)
    assert [promise.name for promise in seen.violations] == ["frozen A"]
    assert "others are frozen" in seen.violations[0].detail


def test_a_training_that_failed_is_over_when_the_next_begins(tmp_path: Path) -> None:
    """Its callback is not told, and would look at the next as well: each step would count twice."""
    callback = lorafa_prof.TrainerCallback(**PLAN)
    trainer = a_trainer(tmp_path, lora_llama(), callback)
    trainer.add_callback(Failing())
    with pytest.raises(ArithmeticError):
        trainer.train()
    seen = trained(tmp_path, lora_llama())
    assert [step.tokens for step in seen.steps] == [BS * TOKENS] * 2
    assert callback.measurement is not None
    assert callback.measurement.outcome == "error"
    assert "another began before it ended" in (callback.measurement.error or "")


def test_two_that_look_at_one_training_see_the_same(tmp_path: Path) -> None:
    """Who looks from further out changes nothing of what the other sees, whichever finds the model first."""
    with lorafa_prof.profile(**PLAN, trace=False) as around:
        seen = trained(tmp_path, lora_llama())
    assert [step.tokens for step in seen.steps] == [BS * TOKENS] * 2
    assert [step.tokens for step in around.measurement.steps] == [BS * TOKENS] * 2


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(BadInputError, match="warmup"):
        lorafa_prof.TrainerCallback(warmup=0)
    with pytest.raises(TypeError):
        lorafa_prof.TrainerCallback(model=torch.nn.Linear(1, 1), step=3)
