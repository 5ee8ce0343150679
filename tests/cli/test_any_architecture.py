"""`--engine simulate` with models that the catalog does not know, and with Python code of a model's own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils

from lorafa_prof.cli import main
from lorafa_prof.results import Measurement, Prediction, measurements_to_json
from lorafa_prof.thresholds import limit_of
from tests.support.architectures import tiny_architectures, tiny_run_of

#: A model that transformers does not have, whose file says when it has been run.
CODE = """
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

Path(__file__).with_name("was_run").touch()
Path({marker!r}).touch()


class TinyConfig(PretrainedConfig):
    model_type = "tiny_custom"

    def __init__(self, vocab_size=250, width=48, **others):
        self.vocab_size, self.width = vocab_size, width
        super().__init__(**others)


class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.mix = nn.Linear(config.width, config.width)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, **others):
        return {{"input_ids": input_ids}}

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **others):
        logits = self.lm_head(torch.tanh(self.mix(self.embed(input_ids))))
        loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1))
        return CausalLMOutput(loss=loss, logits=logits)
"""
OWN: dict[str, Any] = {
    "model_type": "tiny_custom", "architectures": ["TinyForCausalLM"], "width": 32, "vocab_size": 250,
    "auto_map": {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"},
}  # fmt: skip


def folder(path: Path, config: dict[str, Any]) -> str:
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def opt(tmp_path: Path) -> str:
    return folder(tmp_path, tiny_architectures()["opt"])


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that the model's own code makes when it is run."""
    return tmp_path / "marker"


@pytest.fixture
def own(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a model's own code; transformers' copies of it go to a folder of the test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "modeling_tiny.py").write_text(CODE.format(marker=str(marker)))
    return folder(tmp_path, OWN)


def command(model: str, *args: str, engine: str = "simulate") -> list[str]:
    return ["predict", "--engine", engine, "--model", model, "--bs", "2", "--seq", "32", "--rank", "4", *args]


def predicted(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    assert main([*args, "--format", "json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["predictions"]
    return found


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    assert main(list(args)) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


class TestUnknownArchitecture:
    """What the catalog does not know."""

    def test_is_simulated(self, capsys: pytest.CaptureFixture[str], opt: str) -> None:
        """Every figure is there, and the prediction reads back the same."""
        [data] = predicted(capsys, *command(opt, "--method", "lora", "--gpu", "rtx4090"))
        assert data["run"]["model"]["built_as"] == "OPTForCausalLM"
        assert data["fit"][0]["max_bs"] > 100
        assert Prediction.from_json(data).to_json() == data

    def test_has_no_closed_forms(self, capsys: pytest.CaptureFixture[str], opt: str) -> None:
        """They refuse it by name, and name the engine that takes it."""
        said = refused(capsys, *command(opt, engine="analytic"))
        assert "model_type 'opt' is not modelled" in said
        assert "--engine simulate" in said

    def test_tables_show_it(self, capsys: pytest.CaptureFixture[str], opt: str) -> None:
        """With all default methods beside each other, explained."""
        assert main(command(opt, "--explain")) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert all(name in out for name in ("Full-FT", "LoRA-FA", "QLoRA", "VeRA", "a OPTForCausalLM"))

    def test_a_name_that_is_mistyped(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """Both engines offer the nearest names that they know."""
        model = folder(tmp_path, {"model_type": "gpt_neoxx"})
        assert "did you mean gpt_neox" in refused(capsys, *command(model))
        (tmp_path / "config.json").write_text('{"model_type": "lama"}')
        assert "did you mean llama" in refused(capsys, *command(model, engine="analytic"))
        assert "did you mean" in refused(capsys, *command(model))

    @pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size"])
    def test_absurd_sizes(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str) -> None:
        """One line with the key."""
        model = folder(tmp_path, tiny_architectures()["opt"] | {key: 10**15})
        assert f"{key} must be between" in refused(capsys, *command(model))

    def test_a_family_of_the_catalog_in_an_unknown_form(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """What closed forms refuse of a known family, the model itself may do: GPT-2 with cross-attention layers."""
        config = {"model_type": "gpt2", "n_embd": 48, "n_head": 6, "n_layer": 2, "vocab_size": 250}
        model = folder(tmp_path, config | {"add_cross_attention": True})
        assert "add_cross_attention" in refused(capsys, *command(model, engine="analytic"))
        [data] = predicted(capsys, *command(model, "--method", "full"))
        assert data["run"]["model"]["built_as"] == "GPT2LMHeadModel"


class TestOwnCode:
    """A model with `auto_map`."""

    def test_is_refused_unless_asked_for(
        self, capsys: pytest.CaptureFixture[str], own: str, marker: Path, tmp_path: Path
    ) -> None:
        """No command runs it, and the text says what would."""
        said = refused(capsys, *command(own))
        assert "modeling_tiny.TinyForCausalLM" in said
        assert "--trust-remote-code" in said
        refused(capsys, *command(own, engine="analytic"))
        refused(capsys, "measure", "--model", own, "--device", "cpu", "--seq", "8")
        assert not marker.exists()
        assert not (tmp_path / "modules").exists()

    def test_runs_when_asked_for(self, capsys: pytest.CaptureFixture[str], own: str, marker: Path) -> None:
        """The code in the folder builds the model, and PEFT adapts it."""
        [data] = predicted(capsys, *command(own, "--method", "lora", "--trust-remote-code"))
        assert marker.exists()
        assert data["run"]["model"]["code"] == own
        assert data["parameters"] == {"total": 250 * 32 * 2 + 33 * 32 + 4 * 64, "trainable": 4 * 64}

    def test_a_file_of_results_does_not_make_it_run(
        self, capsys: pytest.CaptureFixture[str], own: str, marker: Path, tmp_path: Path
    ) -> None:
        """Whoever made the file is not the user: compare leaves the simulation out, and says so."""
        [data] = predicted(capsys, *command(own, "--method", "full", "--trust-remote-code"))
        run, environment = Prediction.from_json(data).run, {"device_type": "cpu", "threads": 2}
        measured = Measurement(outcome="ok", run=run, versions={}, environment=environment)
        results = tmp_path / "run.json"
        results.write_text(json.dumps(measurements_to_json([measured])))
        marker.unlink()
        assert main(["compare", str(results)]) == 0
        assert "not because a file of results names it" in " ".join(capsys.readouterr().out.split())
        assert not marker.exists()

    def test_is_not_needed_for_closed_forms(self, capsys: pytest.CaptureFixture[str], own: str) -> None:
        """They run no code, whatever is asked."""
        said = refused(capsys, *command(own, "--trust-remote-code", engine="analytic"))
        assert "--trust-remote-code goes with --engine simulate" in said

    def test_is_left_alone_where_transformers_has_the_type(
        self, capsys: pytest.CaptureFixture[str], own: str, marker: Path, tmp_path: Path
    ) -> None:
        """As from_pretrained does: a checkpoint that came with code before its type was in transformers."""
        folder(tmp_path, tiny_architectures()["opt"] | {"auto_map": OWN["auto_map"]})
        [data] = predicted(capsys, *command(own, "--method", "full"))
        assert data["run"]["model"]["built_as"] == "OPTForCausalLM"
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("reference", "reason"),
        [
            ("somebody/else--modeling.Model", "never downloaded"), ("missing.Model", "'missing.py', which is not"),
            ("../up.Model", "not a class of a file in the folder"), ("no_class", "not a class of a file"),
            ("/etc/hosts.Model", "not a class of a file"), ("inner/file.Model", "not a class of a file"),
        ],
    )  # fmt: skip
    def test_from_elsewhere_is_refused(
        self, capsys: pytest.CaptureFixture[str], own: str, tmp_path: Path, reference: str, reason: str
    ) -> None:
        """Only files that lie in the folder are run."""
        folder(tmp_path, OWN | {"auto_map": {"AutoModelForCausalLM": reference}})
        assert reason in refused(capsys, *command(own, "--trust-remote-code"))

    def test_that_fails(self, capsys: pytest.CaptureFixture[str], own: str, tmp_path: Path) -> None:
        """A package that it needs, a mistake in it: one line that says so."""
        (tmp_path / "modeling_tiny.py").write_text("import a_package_that_is_nowhere\n")
        assert "a_package_that_is_nowhere" in refused(capsys, *command(own, "--trust-remote-code"), code=3)
        (tmp_path / "modeling_tiny.py").write_text("1 / 0\n")
        assert "ZeroDivisionError" in refused(capsys, *command(own, "--trust-remote-code"))


class TestSearchesAndSweeps:
    """The commands over many configurations take such models too."""

    def test_searched_up_to_its_positions(self, capsys: pytest.CaptureFixture[str], opt: str) -> None:
        """A step beyond the table's end is no step: the search ends where the configuration says that it does."""
        args = ("oom", "--engine", "simulate", "--model", opt, "--method", "lora", "--rank", "4", "--gpu", "t4")
        assert main([*args, "--axis", "seq", "--no-advice", "--format", "json"]) == 0
        [found] = json.loads(capsys.readouterr().out)["thresholds"]
        assert (found["max"], found["first_oom"]) == (64, None)
        assert found["limited_by"].endswith("has 64 positions")

    def test_positions_that_begin_behind_the_padding(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """CamemBERT's first position is row 2 of its table of 66: 64 is the longest, as its real step bears out
        (`TestPositions` in tests/simulate), although the configuration speaks of 66 positions.
        """
        model = folder(tmp_path, tiny_architectures()["camembert"])
        args = ("oom", "--engine", "simulate", "--model", model, "--method", "full", "--gpu", "t4")
        assert main([*args, "--axis", "seq", "--no-advice", "--format", "json"]) == 0
        [found] = json.loads(capsys.readouterr().out)["thresholds"]
        assert (found["max"], found["first_oom"], found["limit"], found["at_max"]["fits"]) == (64, None, 64, True)
        assert found["limited_by"].endswith("ends at 64: no longer step runs")

    def test_closed_forms_search_none(self, capsys: pytest.CaptureFixture[str], opt: str) -> None:
        """As they predict none."""
        assert "'opt' is not modelled" in refused(capsys, "oom", "--model", opt, "--gpu", "t4")
        assert "'opt' is not modelled" in refused(capsys, "sweep", "--model", opt)

    def test_any_rank_is_looked_for(self) -> None:
        """How wide a model is that is known by its configuration alone nobody can tell."""
        assert limit_of(tiny_run_of("opt", "lora"), "rank", 1).most == 2**16

    def test_own_code_is_swept_when_asked_for(
        self,
        capsys: pytest.CaptureFixture[str],
        own: str,
        marker: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """In the sweep's processes as in predict: the rows are its figures."""
        monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
        args = ("--engine", "simulate", "--model", own, "--method", "lora", "--bs", "2", "--seq", "32", "--rank", "4")
        refused(capsys, "sweep", *args)
        assert not marker.exists()
        assert main(["sweep", *args, "--trust-remote-code", "-o", str(tmp_path / "s.csv")]) == 0
        assert marker.exists()
        capsys.readouterr()
        [row] = csv.DictReader((tmp_path / "s.csv").read_text().splitlines())
        [data] = predicted(capsys, *command(own, "--method", "lora", "--trust-remote-code"))
        assert row["error"] == ""
        assert int(row["peak_reserved_bytes"]) == data["memory"]["peak_reserved_bytes"]


def test_measured_and_compared(capsys: pytest.CaptureFixture[str], opt: str, tmp_path: Path) -> None:
    """measure takes such a model, and compare holds the simulated CPU to it; closed forms say why they have nothing."""
    file = str(tmp_path / "run.json")
    options = ["--bs", "2", "--seq", "16", "--rank", "4", "--method", "lora", "--device", "cpu"]
    assert main(["measure", "--model", opt, *options, "--steps", "1", "--warmup", "1", "-o", file]) == 0
    capsys.readouterr()
    assert main(["compare", file, "--format", "json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["comparisons"]
    assert [side["engine"] for side in found["sides"]] == ["simulate"]
    assert any("no closed forms for model_type 'opt'" in remark for remark in found["remarks"])
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["total"]["observed"] == rows["total"]["predicted"][0]
