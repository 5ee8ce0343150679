"""`lorafa_prof.preflight` and its callback, with real Trainers of a tiny model on the CPU."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.optimizers import create_lorafa_optimizer

import lorafa_prof as lp
from lorafa_prof import lorafa
from lorafa_prof.errors import BadInputError, DeviceError, DoesNotFitError, UnsupportedError
from lorafa_prof.specs import DeviceSpec

VOCABULARY, TOKENS, LONGEST = 251, 22, 40


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 6,
           "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
           "attn_implementation": "sdpa", **changes}
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def adapted(**options: Any) -> Any:
    known = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(llama().to(torch.bfloat16), peft.LoraConfig(**known | options))


def sequences(number: int = 8) -> list[dict[str, torch.Tensor]]:
    ids = torch.zeros(number, LONGEST, dtype=torch.long)
    rows = [ids[n, : TOKENS if n else LONGEST] for n in range(number)]
    return [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in rows]


#: What the Trainer itself takes.
OF_TRAINER = ("optimizers", "optimizer_cls_and_kwargs")


def trainer(folder: Path, model: Any, callbacks: list[Any] | None = None, **arguments: Any) -> Any:
    own = {name: arguments.pop(name) for name in OF_TRAINER if name in arguments}
    known = {
        "output_dir": str(folder), "per_device_train_batch_size": 1, "max_steps": 1, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "optim": "adamw_torch",
    }  # fmt: skip
    args = transformers.TrainingArguments(**known | arguments)
    return transformers.Trainer(model=model, args=args, train_dataset=sequences(), callbacks=callbacks, **own)


def small(total: int) -> DeviceSpec:
    return DeviceSpec(
        name="small", full_name="a small card", vendor="nvidia", architecture="", compute_capability=(8, 0),
        total_bytes=total, bandwidth=None, peak_flops={},
    )  # fmt: skip


def test_a_trainer_is_the_run_of_its_options(tmp_path: Path) -> None:
    """What the model is and what the arguments say make the run that `predict` takes by name; the longest sequence of
    the data is the one that is predicted, since a batch is padded to it, and its mask says so.
    """
    model = adapted(lora_dropout=0.1)
    made = trainer(
        tmp_path, model, per_device_train_batch_size=3, gradient_accumulation_steps=2, activation_checkpointing=True
    )  # fmt: skip
    found = lp.preflight(made, gpu="rtx4090").only
    run = found.run
    assert (run.bs, run.seq, run.accumulation, run.checkpointing, run.clip) == (3, LONGEST, 2, "full", True)
    assert run.padded
    assert (run.method.name, run.method.rank, run.method.dropout) == ("lora", 4, 0.1)
    assert (run.dtype, run.adapter_dtype, run.amp, run.attn, run.optimizer) == ("bf16", "fp32", False, "sdpa", "adamw")
    assert found.engine == "simulate"
    assert found.parameters["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    said = lp.predict(
        str(tmp_path / "config.json"), engine="simulate", gpus="rtx4090", method="lora", bs=3, seq=LONGEST, rank=4,
        dropout=0.1, accumulation=2, clip=True, padded=True, checkpointing="full", optimizer="adamw",
        targets=sorted(model.peft_config["default"].target_modules),
    ).only  # fmt: skip
    assert said.memory == found.memory


def test_full_fine_tuning(tmp_path: Path) -> None:
    """A model without adapters, in fp32 under autocast."""
    run = lp.preflight(trainer(tmp_path, llama(), bf16=True), gpu="rtx4090", engine="analytic").only.run
    assert (run.method.name, run.dtype, run.amp) == ("full", "fp32", True)


def test_what_is_trained_decides(tmp_path: Path) -> None:
    """An A that is frozen by hand is LoRA-FA, whatever the configuration says."""
    model = adapted()
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad = False
    made = lp.preflight(trainer(tmp_path, model), gpu="rtx4090", engine="analytic")
    assert made.only.run.method.name == "lora-fa-peft"
    assert made.only.run.optimizer == "adamw"


class TestLoraFA:
    """LoRA-FA's own layers and optimizers, ours and PEFT's."""

    @pytest.mark.parametrize("engine", ["analytic", "simulate"])
    def test_a_prepared_model_and_our_optimizer(self, tmp_path: Path, engine: Any) -> None:
        """Both by themselves; the bytes are those of `predict` with the method's name, and the parameters' number is
        the model's.
        """
        model = lorafa.prepare(adapted(lora_dropout=0.1))
        made = trainer(tmp_path, model, optimizers=(lorafa.LoraFA(model), None))
        found = lp.preflight(made, gpu="rtx4090", engine=engine).only
        assert (found.run.method.name, found.run.resolved_optimizer) == ("lora-fa", "lorafa")
        (tmp_path / "config.json").write_text(model.config.to_json_string())
        said = lp.predict(
            str(tmp_path / "config.json"), engine=engine, gpus="rtx4090", method="lora-fa", bs=1, seq=LONGEST, rank=4,
            dropout=0.1, clip=True, targets=sorted(model.peft_config["default"].target_modules),
        ).only  # fmt: skip
        assert found.memory == said.memory

    def test_an_optimizer_that_is_to_be_made(self, tmp_path: Path) -> None:
        """A class that the Trainer was given says as much as the optimizer itself; the callback sees the one made."""
        model = lorafa.prepare(adapted())
        callback: Any = lp.preflight_callback(gpu="rtx4090", engine="analytic")
        made = trainer(
            tmp_path, model, [callback], optimizer_cls_and_kwargs=(lorafa.LoraFA, {"model": model, "lr": 1e-4})
        )
        assert lp.preflight(made, gpu="rtx4090", engine="analytic").only.run.optimizer == "lorafa"
        made.train()
        assert callback.predictions.only.run.optimizer == "lorafa"
        assert callback.predictions.only.run.method.name == "lora-fa"

    def test_pefts_optimizer(self, tmp_path: Path) -> None:
        """It freezes A itself; its state counts as `lora-fa-peft` has it."""
        model = adapted()
        optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-4)
        made = trainer(tmp_path, model, optimizers=(optimizer, None))
        found = lp.preflight(made, gpu="rtx4090", engine="analytic").only
        assert (found.run.method.name, found.run.resolved_optimizer) == ("lora-fa-peft", "lorafa-peft")

    def test_adamw_over_prepared_layers(self, tmp_path: Path) -> None:
        """LoRA-FA without the correction is modelled: what the arguments ask for trains it."""
        run = lp.preflight(trainer(tmp_path, lorafa.prepare(adapted())), gpu="rtx4090", engine="analytic").only.run
        assert (run.method.name, run.resolved_optimizer) == ("lora-fa", "adamw")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"dropout": "mask"}, "dropout='mask'.* is not modelled: dropout='recompute' is"),
            ({"products": "adapter"}, "products='adapter'"),
            ({"trains": "A"}, "trains='A'"),
        ],
    )
    def test_layers_prepared_otherwise(self, tmp_path: Path, options: Any, words: str) -> None:
        """What the engines do not know of `prepare` is refused with the argument's name."""
        model = lorafa.prepare(adapted(), **options)
        with pytest.raises(UnsupportedError, match=words):
            lp.preflight(trainer(tmp_path, model), gpu="rtx4090")

    def test_layers_of_both_kinds(self, tmp_path: Path) -> None:
        """A layer that PEFT made anew among prepared ones."""
        model = lorafa.prepare(adapted())
        layer = next(module for module in model.modules() if hasattr(module, "one_sided"))
        layer.one_sided.clear()
        with pytest.raises(UnsupportedError, match=r"of 14 layers with adapters lorafa\.prepare has made 13"):
            lp.preflight(trainer(tmp_path, model), gpu="rtx4090")

    def test_an_optimizer_stepped_otherwise(self, tmp_path: Path) -> None:
        """Without the fused kernel it has other temporaries."""
        model = lorafa.prepare(adapted())
        made = trainer(tmp_path, model, optimizers=(lorafa.LoraFA(model, fused=False), None))
        with pytest.raises(UnsupportedError, match="fused=False"):
            lp.preflight(made, gpu="rtx4090")

    @pytest.mark.parametrize(
        ("optim", "name"),
        [("adamw_8bit", "adamw-8bit"), ("paged_adamw_8bit", "paged-adamw-8bit"), ("paged_adamw_32bit", "paged-adamw")],
    )
    def test_bitsandbytes_as_the_trainer_makes_it(self, tmp_path: Path, optim: str, name: str) -> None:
        """Its plain AdamW, told how many bits and whether to page; and bitsandbytes' own classes."""
        bitsandbytes = pytest.importorskip("bitsandbytes")
        made = trainer(tmp_path, adapted(), optim=optim)
        made.create_optimizer()
        assert type(made.optimizer) is bitsandbytes.optim.AdamW
        assert lp.preflight(made, gpu="rtx4090", engine="analytic").only.run.optimizer == name
        kinds = {"adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit", "paged-adamw": "PagedAdamW"}
        kind = getattr(bitsandbytes.optim, kinds[name])
        own = trainer(tmp_path, adapted(), optimizer_cls_and_kwargs=(kind, {"lr": 1e-4}))
        assert lp.preflight(own, gpu="rtx4090", engine="analytic").only.run.optimizer == name

    def test_an_option_counts_before_an_optimizer_that_is_not_known(self, tmp_path: Path) -> None:
        """As the refusal says."""
        model = adapted()
        made = trainer(tmp_path, model, optimizers=(torch.optim.RMSprop(model.parameters()), None))
        with pytest.raises(UnsupportedError, match=r"RMSprop is not modelled .*say optimizer="):
            lp.preflight(made, gpu="rtx4090")
        assert lp.preflight(made, gpu="rtx4090", engine="analytic", optimizer="sgd").only.run.optimizer == "sgd"


def test_it_stops_with_advice(tmp_path: Path) -> None:
    """On a card that is too small: an error of exit code 4 with what is lacking, the largest batch and what helps; a
    change that is said to fit does fit.
    """
    made = trainer(tmp_path, adapted(), per_device_train_batch_size=64)
    needed = lp.preflight(made, gpu=small(2**40), engine="analytic").only.memory.peak_allocated_bytes
    assert needed is not None
    card = small(needed - 2**20)
    with pytest.raises(DoesNotFitError) as caught:
        lp.preflight(made, gpu=card, engine="analytic")
    assert isinstance(caught.value, DeviceError)
    first, *advice = str(caught.value).splitlines()
    assert "batch 64 x 40 tokens does not fit on small" in first
    assert any("--checkpointing full" in line and line.endswith("and fits") for line in advice)
    assert caught.value.threshold.max < 64
    assert lp.preflight(made, gpu=card, engine="analytic", checkpointing="full").fits
    assert not lp.preflight(made, gpu=card, engine="analytic", stop=False).fits
    with pytest.raises(DoesNotFitError, match="engine simulate"):
        lp.preflight(made, gpu=card, engine="simulate", advice=False)


class TestCallback:
    """`preflight_callback` in a real training."""

    def test_it_lets_train_what_fits(self, tmp_path: Path) -> None:
        """The answer is at hand, and the training takes its step with the optimizer that it has made."""
        callback: Any = lp.preflight_callback(gpu="rtx4090")
        made = trainer(tmp_path, adapted(), [callback], optim="adamw_torch_fused")
        made.train()
        assert callback.predictions.only.run.optimizer == "adamw-fused"
        assert callback.predictions.only.run.seq == LONGEST
        assert made.state.global_step == 1

    def test_it_stops_before_the_first_step(self, tmp_path: Path) -> None:
        """No step is taken, and no weight has moved."""
        model = adapted()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        made = trainer(tmp_path, model, [lp.preflight_callback(gpu=small(2**20), advice=False)])
        with pytest.raises(DoesNotFitError):
            made.train()
        assert made.state.global_step == 0
        assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_a_training_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither random numbers nor the libraries' logging are touched: the check changes no training."""
    made = trainer(tmp_path, adapted())
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "level", logging.INFO)
    torch.manual_seed(7)
    random.seed(7)
    before = torch.get_rng_state(), random.getstate()
    lp.preflight(made, gpu="rtx4090", engine="simulate")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert logger.level == logging.INFO


class TestRefusals:
    """An honest refusal where the run is not known."""

    def test_no_card(self, tmp_path: Path) -> None:
        """On a CPU a card has to be named."""
        with pytest.raises(BadInputError, match="name one with gpu="):
            lp.preflight(trainer(tmp_path, adapted()))

    def test_no_length(self, tmp_path: Path) -> None:
        """A data set that does not tell how long its sequences are."""
        made = trainer(tmp_path, adapted())
        made.train_dataset = [{"text": "a"}]
        with pytest.raises(BadInputError, match="Say seq="):
            lp.preflight(made, gpu="rtx4090")
        assert lp.preflight(made, gpu="rtx4090", seq=32, engine="analytic").only.run.seq == 32

    @pytest.mark.parametrize(
        ("prepare", "words"),
        [
            (lambda model: model.get_input_embeddings().requires_grad_(False), "weights are frozen"),
            (lambda model: model.add_module("more", torch.nn.Linear(4, 4)), "as it was understood"),
            (lambda model: setattr(model.config, "_attn_implementation_internal", "flex_attention"), "flex_attention"),
        ],
    )
    def test_another_model(self, tmp_path: Path, prepare: Any, words: str) -> None:
        """Frozen weights without an adapter, weights that its configuration does not have, other attention code."""
        model = llama()
        prepare(model)
        with pytest.raises(UnsupportedError, match=words):
            lp.preflight(trainer(tmp_path, model, bf16=True), gpu="rtx4090", engine="analytic")

    def test_other_arguments(self, tmp_path: Path) -> None:
        """What no engine models names the argument; an option says what is to be taken in its place."""
        made = trainer(tmp_path, adapted(), optim="rmsprop")
        with pytest.raises(UnsupportedError, match="TrainingArguments: optim: 'rmsprop' is not modelled"):
            lp.preflight(made, gpu="rtx4090")
        assert lp.preflight(made, gpu="rtx4090", engine="analytic", optimizer="sgd").only.run.optimizer == "sgd"
        with pytest.raises(BadInputError, match="unknown option 'batch'"):
            lp.preflight(made, gpu="rtx4090", batch=3)  # type: ignore[call-arg]
