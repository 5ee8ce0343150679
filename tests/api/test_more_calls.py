"""`lorafa_prof.sweep`, `comparison` and `difference`, and that all calls are typed and documented."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import lorafa_prof as lp
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.results import measurements_to_json
from tests.support.configs import tiny_configs
from tests.support.hand_made import measurement, prediction


class TestSweep:
    """Every combination of options."""

    def test_each_combination_is_its_prediction(self) -> None:
        """The last axis fastest, and each what `predict` says of it."""
        found = lp.sweep("llama3.2-1b", method=["lora", "lora-fa"], bs=[1, 4], seq=range(256, 513, 256), gpus="rtx4090")
        assert found.axes == ("bs", "seq")
        assert [(p.run.bs, p.run.seq, p.run.method.name) for p in found] == [
            (bs, seq, name) for bs in (1, 4) for seq in (256, 512) for name in ("lora", "lora-fa")
        ]
        alone = lp.predict("llama3.2-1b", method="lora-fa", bs=4, seq=256, gpus="rtx4090").only
        assert found[5].to_json() == alone.to_json()

    def test_it_shows_itself(self) -> None:
        """A row a prediction: the axes, the peak and the verdict, as text, as HTML and as a frame in bytes."""
        found = lp.sweep("llama2-7b", method="lora", bs=[1, 64], gpus=["rtx4090", "h100"])
        text = repr(found)
        assert "does not fit" in text
        assert "peak allocated" in text
        assert found._repr_html_().count("<tr>") >= 3
        frame = found.to_frame()
        assert list(frame["bs"]) == [1, 1, 64, 64]
        assert frame["peak_allocated_bytes"].iloc[0] == found[0].memory.peak_allocated_bytes
        assert found.plot().axes

    def test_what_is_refused_is_a_remark(self) -> None:
        """The other combinations are answered; where none is, the refusal is the error."""
        found = lp.sweep("llama3.2-1b", method="lora", seq=64, rank=[4, 10**9])
        assert len(found) == 1
        assert "rank 1000000000 is left out" in found.remarks[0]
        assert "rank 1000000000 is left out" in repr(found)
        with pytest.raises(BadInputError):
            lp.sweep("llama3.2-1b", method="lora", rank=[10**9])

    def test_mistakes(self) -> None:
        """An axis without a value, too many combinations, an option that there is not."""
        with pytest.raises(BadInputError, match="bs has no value"):
            lp.sweep("llama3.2-1b", bs=[])
        with pytest.raises(BadInputError, match="more than 10,000 combinations"):
            lp.sweep("llama3.2-1b", bs=range(1, 201), seq=range(1, 201))
        with pytest.raises(BadInputError, match="unknown option 'batch'"):
            lp.sweep("llama3.2-1b", batch=[1, 2])


class TestComparison:
    """A measurement beside predictions."""

    def test_given_predictions(self, tmp_path: Path) -> None:
        """From a file or as a value; the figures are those of both sides."""
        path = tmp_path / "run.json"
        path.write_text(json.dumps(measurements_to_json([measurement()])))
        found = lp.comparison(path, [prediction()])
        assert found.to_json() == lp.comparison(measurement(), [prediction()]).to_json()
        [side] = found.only.sides
        assert (side.engine, side.unexplained_bytes) == ("simulate", 0)
        assert found.misses("0") == []
        assert "peak allocated" in repr(found)
        assert set(found.to_frame()["engine"]) == {"simulate"}

    def test_computed_predictions(self) -> None:
        """Closed forms for the run that was measured, on its card; a tolerance says what is missed."""
        found = lp.comparison(measurement(), engine="analytic")
        assert [side.engine for side in found.only.sides] == ["analytic"]
        assert any("peak allocated" in line for line in found.misses("0.1%"))

    def test_mistakes(self, tmp_path: Path) -> None:
        """A file without a measurement, a card beside given predictions."""
        path = tmp_path / "p.json"
        path.write_text(json.dumps({"predictions": [prediction().to_json()]}))
        with pytest.raises(BadInputError, match="no measurement is in it"):
            lp.comparison(path)
        with pytest.raises(BadInputError, match="not for those that are given"):
            lp.comparison(measurement(), [prediction()], gpu="h100")


def test_simulate_is_an_engine_of_the_calls(tmp_path: Path) -> None:
    """`predict`, `sweep` and `oom` take it; a record made by the command is this environment's own step."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}))
    options: dict[str, Any] = {"method": "lora", "seq": 32, "rank": 4, "engine": "simulate"}
    alone = lp.predict(str(tmp_path), bs=2, **options).only
    assert alone.engine == "simulate"
    assert alone.memory.peak_reserved_bytes is not None
    assert lp.sweep(str(tmp_path), bs=[1, 2], **options)[1].to_json() == alone.to_json()
    found = lp.oom(str(tmp_path), cap="64MiB", advice=False, **options).only
    assert found.engine == "simulate"
    fits, fails = (
        lp.predict(str(tmp_path), bs=bs, **options).only.memory.peak_reserved_bytes for bs in (found.max, found.max + 1)
    )
    assert fits is not None
    assert fails is not None
    assert fits <= 64 * 2**20 < fails


def test_a_difference_is_at_hand(tmp_path: Path) -> None:
    """A record against this environment: nothing differs, and it shows itself."""
    from lorafa_prof.cli import main

    (tmp_path / "config.json").write_text(json.dumps(tiny_configs()["llama"] | {"max_position_embeddings": 512}))
    path = tmp_path / "before.json"
    assert main(["diff", "--record", str(path), "--model", str(tmp_path), "--seq", "32", "--rank", "4"]) == 0
    found = lp.difference(path)
    assert found.only.peak.changes == ()
    assert "No operation differs." in repr(found)
    assert (found.to_frame()["change_bytes"] == 0).all()
    with pytest.raises(BadInputError, match="nothing to draw"):
        found.plot()
    with pytest.raises(BadInputError, match="here are two files"):
        lp.difference(path, path, python="python3")


CALLS = ("predict", "oom", "sweep", "comparison", "difference", "preflight", "preflight_callback")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_documented(name: str) -> None:
    """What it takes, returns and raises; sizes have a unit."""
    call = getattr(lp, name)
    text = inspect.getdoc(call) or ""
    assert {"Args:", "Returns:", "Raises:"} <= set(text.split())
    described = text.partition("Args:")[2].partition("Returns:")[0].replace(",", ":")
    for parameter in inspect.signature(call).parameters:
        assert f"{parameter}:" in described.replace("**", ""), parameter


def test_the_stub_is_the_package() -> None:
    """Type checkers see every public name, and none that is not there; each is the object of its module."""
    stub = Path(lp.__file__).with_suffix(".pyi").read_text("utf-8")
    typed = {part.split(" as ")[0].split()[-1] for part in stub.replace(",", "\n").splitlines() if " as " in part}
    assert typed == set(lp._LAZY)
    for name, module in lp._LAZY.items():
        assert getattr(lp, name).__module__ == module, name
    assert Path(lp.__file__).with_name("py.typed").exists()


def test_modules_are_not_taken_for_calls() -> None:
    """No call is called as a module of the package is: importing that would put it in the call's place."""
    modules = {path.stem for path in Path(lp.__file__).parent.iterdir()}
    assert not modules & set(lp._LAZY)


def test_what_neither_engine_models_is_an_exception() -> None:
    """With the text of the command."""
    with pytest.raises(UnsupportedError):
        lp.sweep("llama3.2-1b", method="lora", shard="fsdp", world_size=2, checkpointing=["selective"], loss="fused")
