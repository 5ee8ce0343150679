"""A prepared model stays PEFT's: what stays frozen, what is saved, loaded, merged and quantised."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from lorafa_prof import lorafa
from lorafa_prof.errors import BadInputError, UnknownNameError, UnsupportedError
from tests.lorafa.models import RANK, Net, adapted, inputs, prepared, train, trained


def sides(model: Any) -> set[str]:
    """Which matrices train."""
    return {side for name, p in model.named_parameters() if p.requires_grad for side in "AB" if f"lora_{side}" in name}


class TestFrozen:
    """The side that does not train does not train, whatever PEFT does."""

    @pytest.mark.parametrize("trains", ["A", "B"])
    def test_whatever_peft_turns_on(self, trains: str) -> None:
        """disable_adapter, set_adapter, set_requires_grad, a second adapter; each trains both sides without us."""
        model = prepared(trains=trains)
        assert sides(model) == {trains}
        with model.disable_adapter():
            assert sides(model) == set()
        assert sides(model) == {trains}
        model.set_adapter("default")
        assert sides(model) == {trains}
        if hasattr(model, "set_requires_grad"):
            model.set_requires_grad("default", requires_grad=True)
            assert sides(model) == {trains}
        model.add_adapter("other", peft.LoraConfig(r=RANK, target_modules=["up"]))
        model.set_adapter("other")
        assert sides(model) == {"A", "B"}  # of the other, which is PEFT's
        model.set_adapter("default")
        assert sides(model) == {trains}

    def test_peft_alone_would_train_it(self) -> None:
        """So that the test above can fail."""
        model = adapted()
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        with model.disable_adapter():
            pass
        assert sides(model) == {"A", "B"}

    def test_by_hand_is_an_error(self) -> None:
        """In the next forward that would keep something for it, naming the module; not under no_grad."""
        model = prepared()
        model.base_model.model.left.lora_A["default"].weight.requires_grad_(True)
        with pytest.raises(
            BadInputError, match=r"base_model\.model\.left: A of the adapter 'default' is to stay frozen"
        ):
            model(inputs())
        with torch.no_grad():
            model(inputs())
        with pytest.raises(BadInputError, match=r"model\.left"):
            torch.utils.checkpoint.checkpoint(model, inputs(), use_reentrant=False)
        lorafa.prepare(model)
        model(inputs())

    def test_a_copy_is_prepared_too(self) -> None:
        """copy.deepcopy, which is how some trainers keep a reference model."""
        model = copy.deepcopy(prepared())
        with model.disable_adapter():
            pass
        assert sides(model) == {"B"}
        assert torch.equal(model(inputs()), prepared()(inputs()))

    def test_twice_is_once(self) -> None:
        """`prepare` again changes nothing; with another side it changes the side."""
        model = prepared()
        kind = type(model.base_model.model.up)
        assert type(lorafa.prepare(model).base_model.model.up) is kind
        assert sides(lorafa.prepare(model, trains="A")) == {"A"}


class TestLoraFb:
    """B frozen, A trained."""

    def test_pefts_zeros_change_roles(self) -> None:
        """B of zeros cannot be frozen: it is drawn, and A becomes zero; the model computes what it did, and learns."""
        torch.manual_seed(0)
        model: Any = peft.get_peft_model(Net(), peft.LoraConfig(r=RANK, target_modules=["up", "left"]))
        expected = model(inputs())
        lorafa.prepare(model, trains="A")
        torch.testing.assert_close(model(inputs()), expected)
        optimizer = lorafa.LoraFA(model, lr=1e-2)
        losses = [train(model, optimizer, 1)[0] for _ in range(40)]
        assert losses[-1] < 0.8 * losses[0]


class TestPeftsFormat:
    """Adapters go in and out as PEFT's."""

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        """To a plain PEFT model and back into a prepared one: the same tensors and the same results."""
        model = prepared()
        train(model, lorafa.LoraFA(model, lr=1e-2), 3)
        model.eval().save_pretrained(tmp_path)
        torch.manual_seed(0)
        plain = peft.PeftModel.from_pretrained(Net(), tmp_path).eval()
        torch.testing.assert_close(plain(inputs()), model(inputs()))
        torch.manual_seed(0)
        again = lorafa.prepare(peft.PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True))
        for name, value in peft.get_peft_model_state_dict(model).items():
            assert torch.equal(peft.get_peft_model_state_dict(again)[name], value), name
        assert sides(again) == {"B"}
        assert torch.equal(again.eval()(inputs()), model(inputs()))

    def test_merged(self) -> None:
        """The same weights as PEFT's own layers make of the same adapter; unmerged, the adapter is back."""
        model, plain = prepared(), adapted()
        for each in (model, plain):
            each.merge_adapter()
        expected = plain(inputs())
        assert torch.equal(model(inputs()), expected)
        for each in (model, plain):
            each.unmerge_adapter()
        torch.testing.assert_close(model(inputs()), expected)
        one, other = model.merge_and_unload(), plain.merge_and_unload()
        assert type(one.up) is torch.nn.Linear
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name

    def test_disabled(self) -> None:
        """The base alone."""
        model = prepared()
        with model.disable_adapter():
            out = model(inputs())
        assert torch.equal(out, model.unload()(inputs()))

    def test_an_adapter_a_sequence(self) -> None:
        """`adapter_names`, for inference, is PEFT's."""
        model, plain = prepared().eval(), adapted().eval()
        names = ["default", "__base__"]
        layer, other = model.base_model.model.up, plain.base_model.model.up
        assert torch.equal(layer(inputs(), adapter_names=names), other(inputs(), adapter_names=names))


class TestRefusals:
    """What `prepare` does not take."""

    def test_a_rank_beyond_the_layer(self) -> None:
        """The module and its width are named; LoRA-FB is bound by the other width. Nothing has been changed then."""
        model = adapted(r=25)
        with pytest.raises(BadInputError, match=r"model\.up: rank 25 is larger than the layer's width of 24.*LoRA-FA"):
            lorafa.prepare(model)
        assert sides(model) == {"A", "B"}
        with pytest.raises(BadInputError, match=r"model\.down: rank 25 is larger than the layer's width of 8.*LoRA-FB"):
            lorafa.prepare(model, trains="A")

    def test_other_layers(self) -> None:
        """Embeddings and convolutions."""
        base = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Conv1d(8, 8, 1), torch.nn.Linear(8, 8))
        for target, kind in (("0", "Embedding"), ("1", "Conv1d")):
            model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["2", target]))
            with pytest.raises(UnsupportedError, match=rf"model\.{target}: .*linear layers, not for PEFT's {kind}"):
                lorafa.prepare(model)

    def test_words(self) -> None:
        """Choices and adapters that are not there."""
        with pytest.raises(BadInputError, match="trains='C' is not known"):
            lorafa.prepare(adapted(), trains="C")  # type: ignore[arg-type]
        with pytest.raises(UnknownNameError, match="did you mean default"):
            lorafa.prepare(adapted(), adapters=["defualt"])


def llama(**config: Any) -> Any:
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=251, max_position_embeddings=64, **config,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(shape)


class TestQuantised:
    """Over bitsandbytes' packed weights, on the CPU."""

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_the_same_as_pefts_layers(self, kind: str) -> None:
        """Result and gradients within the rounding of the products' dtype; PEFT's own forward beside it."""
        bnb: Any = pytest.importorskip("bitsandbytes")
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            if kind == "nf4":
                linear = bnb.nn.Linear4bit(64, 48, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            else:
                linear = bnb.nn.Linear8bitLt(64, 48, bias=False, has_fp16_weights=False)
            linear.load_state_dict({"weight": torch.randn(48, 64)}, strict=False)
            base = torch.nn.Sequential(linear.to("cpu"))
            base.is_loaded_in_4bit, base.is_loaded_in_8bit = kind == "nf4", kind == "int8"  # type: ignore[assignment]
            config = peft.LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=False)
            models.append(peft.get_peft_model(base, config))
        ours, theirs = lorafa.prepare(models[0]), models[1]
        assert (
            type(ours.base_model.model[0]).__name__
            == {"nf4": "OneSidedLinear4bit", "int8": "OneSidedLinear8bitLt"}[kind]
        )
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bitsandbytes says that it casts to fp16
            for model in (ours, theirs):
                x = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
                out = model(x)
                out.sin().sum().backward()
                b = model.base_model.model[0].lora_B["default"].weight
                found.append((out, x.grad, b.grad))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    def test_a_qlora_fa_training(self) -> None:
        """A llama with nf4 weights and bf16 products learns a sequence, with checkpointing."""
        pytest.importorskip("bitsandbytes")
        from lorafa_prof.workload import Workload
        from tests.support.configs import tiny_run

        work = Workload.build(tiny_run("llama", "qlora-fa", optimizer="adamw", checkpointing="full"), "cpu")
        model = lorafa.prepare(work.model)
        optimizer = lorafa.LoraFA(model, lr=1e-2)
        losses = []
        for _ in range(15):
            loss = work.loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.2
        assert sides(model) == {"B"}


class TestTrainer:
    """transformers' Trainer."""

    @pytest.mark.parametrize("way", ["optimizers", "optimizer_cls_and_kwargs"])
    def test_it_trains_saves_and_resumes(self, way: str, tmp_path: Path) -> None:
        """Eight steps at once, or six and, from the checkpoint, two more: the same adapter to the bit."""
        ids = torch.randint(0, 251, (16, 12), generator=torch.Generator().manual_seed(1))
        rows = [{"input_ids": row, "labels": row.clone(), "attention_mask": torch.ones_like(row)} for row in ids]

        def trainer(folder: str, steps: int) -> Any:
            config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            model = lorafa.prepare(peft.get_peft_model(llama(), config))
            given: dict[str, Any] = (
                {"optimizers": (lorafa.LoraFA(model, lr=1e-3), None)}
                if way == "optimizers"
                else {"optimizer_cls_and_kwargs": (lorafa.LoraFA, {"model": model, "lr": 1e-3})}
            )
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path / folder), per_device_train_batch_size=2, max_steps=steps, save_steps=6,
                lr_scheduler_type="constant", report_to=[], use_cpu=True, seed=0, disable_tqdm=True, logging_steps=1,
            )  # fmt: skip
            found = transformers.Trainer(model=model, args=arguments, train_dataset=rows, **given)
            found.remove_callback(transformers.PrinterCallback)
            return found

        straight = trainer("straight", 8)
        straight.train()
        assert isinstance(straight.optimizer.optimizer, lorafa.LoraFA)
        first = trainer("parts", 6)
        first.train()
        second = trainer("parts", 8)
        second.train(resume_from_checkpoint=True)
        expected = trained(straight.model)
        assert expected
        for name, value in trained(second.model).items():
            assert torch.equal(value, expected[name]), name
