"""`lorafa_prof.predict` and `lorafa_prof.oom`: the commands' answers as values."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lorafa_prof as lp
from lorafa_prof.catalog import load_device
from lorafa_prof.cli import main
from lorafa_prof.cli.options import _OPTIONS, _PADDED, _SIZES
from lorafa_prof.errors import BadInputError, UnknownNameError, UnsupportedError
from lorafa_prof.results import Prediction, Threshold
from lorafa_prof.specs import RunSpec
from tests.support.tool_files import AXOLOTL_QLORA


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert main([*args, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_predict_is_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The same document, option for option."""
    by_command = printed(
        capsys, "predict", "--model", "llama2-7b", "--bs", "8", "--seq", "512", "--method", "lora,lora-fa", "--gpu",
        "rtx4090", "--rank", "8", "--targets", "q_proj,v_proj", "--layers", "16-31", "--amp",
    )  # fmt: skip
    found = lp.predict(
        "llama2-7b", bs=8, seq=512, method=["lora", "lora-fa"], gpus=["rtx4090"], rank=8, targets=["q_proj", "v_proj"],
        layers=range(16, 32), amp=True,
    )  # fmt: skip
    assert found.to_json() == by_command


def test_defaults_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Five methods, and every option as the command line has it."""
    assert lp.predict("llama3.2-1b").to_json() == printed(capsys, "predict", "--model", "llama3.2-1b")


def test_every_run_option_of_the_command_is_there() -> None:
    """By the same name, but for the number of GPUs, since gpus are cards here."""
    from lorafa_prof.api.options import RunOptions

    names = {option.names[-1] for option in (*_SIZES, *_OPTIONS, _PADDED)}
    assert set(RunOptions.__annotations__) == names - {"gpus"} | {"world_size"}


def test_a_single_answer_is_at_hand() -> None:
    """One method is one result; of several `only` says how to take one."""
    one = lp.predict("llama2-7b", method="lora-fa", gpus="rtx4090")
    assert isinstance(one.only, Prediction)
    assert one.only is one[0]
    several = lp.predict("llama2-7b", method=["lora", "full"], gpus=load_device("a100-80gb"))
    assert [p.run.method.name for p in several] == ["lora", "full"]
    assert several.fits is all(p.fit[0].fits for p in several)
    with pytest.raises(BadInputError, match="2 results"):
        _ = several.only
    with pytest.raises(BadInputError, match="on which card"):
        _ = lp.predict("llama2-7b", method="lora").fits


def test_it_shows_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As text what the command prints; as HTML a table, with names escaped; as a frame a row a result and card."""
    monkeypatch.setenv("COLUMNS", "100")
    found = lp.predict("llama2-7b", method=["lora", "lora-fa"], gpus=["rtx4090", "a100-80gb"])
    args = ["predict", "--model", "llama2-7b", "--method", "lora,lora-fa", "--gpu", "rtx4090,a100-80gb"]
    assert main(args) == 0
    assert repr(found).strip() == capsys.readouterr().out.strip()
    html = found._repr_html_()
    assert html.count("<table>") == 1
    assert "<script" not in html
    assert "LoRA-FA" in html
    frame = found.to_frame()
    assert list(frame["device"]) == ["rtx4090", "a100-80gb"] * 2
    assert frame["peak_allocated_bytes"].tolist()[::2] == [p.memory.peak_allocated_bytes for p in found]
    assert "peak" in found.explain()


def test_a_name_cannot_become_markup(tmp_path: Path) -> None:
    """A model's folder is a name that a file system allows, and HTML must escape."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    html = lp.predict(str(folder), method="lora", seq=64)._repr_html_()
    assert "<img" not in html
    assert "&lt;img" in html


def test_figures() -> None:
    """Parts of predictions, frontiers of thresholds; what there is no data for is refused."""
    figure = lp.predict("llama2-7b", method=["lora", "full"]).plot()
    assert figure.axes
    with pytest.raises(UnknownNameError, match="did you mean parts"):
        lp.predict("llama2-7b", method="lora").plot("part")


def test_oom_is_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The same thresholds, with their advice."""
    by_command = printed(
        capsys, "oom", "--model", "llama2-7b", "--method", "lora,lora-fa", "--gpu", "rtx4090", "--axis", "seq"
    )
    found = lp.oom("llama2-7b", method=["lora", "lora-fa"], gpus="rtx4090", axis="seq")
    assert found.to_json() == by_command
    assert all(isinstance(each, Threshold) for each in found)
    assert list(found.to_frame()["max"]) == [each.max for each in found]
    assert lp.oom("llama2-7b", method="lora-fa", cap="24GiB", advice=False).only.max > 0


def test_configuration_files_count_where_nothing_is_said(tmp_path: Path) -> None:
    """And the answer says what was taken from them."""
    path = tmp_path / AXOLOTL_QLORA.name
    path.write_text(AXOLOTL_QLORA.text)
    run = lp.predict(config=path, bs=7).only.run
    assert (run.bs, run.seq, run.method.name, run.quant, run.model.name) == (7, 2048, "qlora", "nf4-dq", "llama3.2-1b")
    assert any("axolotl" in line for line in lp.predict(config=[path]).only.assumptions)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lp.predict("llama2-7b", batch=8), "unknown option 'batch'"),
        (lambda: lp.predict("llama2-8b"), "did you mean .*llama2-7b"),
        (lambda: lp.predict("llama2-7b", method="lorafa"), "unknown method"),
        (lambda: lp.predict("llama2-7b", bs="8"), "batch size must be an integer"),
        (lambda: lp.predict("llama2-7b", targets=[]), "targets must be a text or a list"),
        (lambda: lp.predict("llama2-7b", targets=3), "targets must be a text or a list"),
        (lambda: lp.predict("llama2-7b", engine="magic"), "unknown engine"),
        (lambda: lp.predict("llama2-7b", gpus="rtx4091"), "did you mean rtx4090"),
        (lp.predict, "which model"),
        (lambda: lp.predict("llama2-7b", alloc_conf="x:1"), "goes with engine='simulate'"),
        (lambda: lp.oom("llama2-7b"), "on which card"),
        (lambda: lp.oom("llama2-7b", axis="depth", gpus="rtx4090"), "unknown axis"),
    ],
)
def test_mistakes_are_named(call: Any, words: str) -> None:
    """As the command names them, as an exception."""
    with pytest.raises((BadInputError, UnsupportedError), match=words):
        call()


PROBE = """
import json, sys
import lorafa_prof as lp
first = sorted(sys.modules)
repr(lp.predict("llama2-7b", bs=8, seq=1024, gpus=["rtx4090"]))
print(json.dumps({"imported": first, "predicted": sorted(sys.modules)}))
"""


def test_nothing_is_imported_before_it_is_needed() -> None:
    """Importing the package imports no numpy, and predicting with closed forms neither PyTorch nor pandas."""
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, timeout=300)
    said = json.loads(done.stdout)
    assert not {"numpy", "torch", "pandas", "click", "yaml", "lorafa_prof.specs"} & set(said["imported"])
    assert not {"torch", "transformers", "pandas", "matplotlib", "yaml", "click"} & set(said["predicted"])


def test_it_is_typed_and_documented() -> None:
    """The stub has what the package has, and each call says what it takes, returns and raises."""
    stub = (Path(lp.__file__).with_suffix(".pyi")).read_text("utf-8")
    for name in ("predict", "oom", "Predictions", "Thresholds", "profile", "TrainerCallback"):
        assert f"{name} as {name}" in stub
    for call in (lp.predict, lp.oom):
        text = inspect.getdoc(call) or ""
        for part in ("Args:", "Returns:", "Raises:"):
            assert part in text
        for name in inspect.signature(call).parameters:
            assert f"{name}:" in text
    assert RunSpec.__dataclass_fields__["seq"].default == lp.predict("llama2-7b", method="lora").only.run.seq
