"""Files given with --profile that are none, and profiles of something else: exit code 2, in one line, wherever."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import load_device
from lorafa_prof.cli import main
from lorafa_prof.speed.defaults import default_profile

COMMANDS = {
    "predict": ("--model", "qwen2.5-0.5b", "--method", "lora"),
    "oom": ("--model", "qwen2.5-0.5b", "--method", "lora"),
    "sweep": ("--model", "qwen2.5-0.5b", "--method", "lora", "--timed"),
    "capacity": ("--model", "qwen2.5-0.5b", "--method", "lora", "--seq", "128"),
}


def good() -> dict[str, Any]:
    """A profile of an A100."""
    profile = replace(default_profile(load_device("a100-80gb")), measured=True)
    data: dict[str, Any] = json.loads(json.dumps(profile.to_json()))
    return data


def with_value(path: str, value: object) -> str:
    """The file with another value at a place."""
    data = good()
    *places, last = path.split(".")
    inner: Any = data
    for place in places:
        inner = inner[int(place)] if place.isdigit() else inner[place]
    inner[int(last) if last.isdigit() else last] = value
    return json.dumps(data)


P = "device_profile"
BAD: dict[str, tuple[str, str]] = {
    "empty": ("", "the file is empty"),
    "YAML": ("device_profile:\n  name: a100-80gb\n", "not valid JSON"),
    "a list": ("[1, 2]", "must hold a JSON object"),
    "a prediction": ('{"predictions": []}', "not a device profile (lorafa-prof calibrate -o FILE writes one)"),
    "a DeepSpeed configuration": ('{"zero_optimization": {"stage": 2}}', "not a device profile"),
    "a later schema": (with_value("schema", 2), "a device profile of schema 2; this version reads schema 1"),
    "no schema": (json.dumps({P: good()[P]}), "schema is missing"),
    "negative": (with_value(f"{P}.matmul.bf16.flops_per_s", -1e14), "matmul.bf16.flops_per_s must be between"),
    "zero": (with_value(f"{P}.matmul.bf16.flops_per_s", 0), "matmul.bf16.flops_per_s must be between"),
    "zero bandwidth": (with_value(f"{P}.bandwidth.points.0.1", 0), "bandwidth.points[0][1] must be between"),
    "NaN": (with_value(f"{P}.kernel_s", float("nan")), "device_profile holds NaN"),
    "infinity": (with_value(f"{P}.on_chip_bytes_per_s", float("inf")), "device_profile holds Infinity"),
    "beyond a float": (with_value(f"{P}.latency_s", 1).replace('"latency_s": 1', '"latency_s": 1e999'), "not finite"),
    "a text for a number": (with_value(f"{P}.host.view_s", "1 us"), "host.view_s must be a number"),
    "true for a number": (with_value(f"{P}.host.view_s", True), "host.view_s must be a number"),
    "no such dtype": (with_value(f"{P}.matmul.fp4", {"flops_per_s": 1e12, "timed": []}), "fp4 is not a key"),
    "a misspelt key": (with_value(f"{P}.bandwith", 1), "bandwith is not a key that is known here"),
    "the name of a file": (with_value(f"{P}.name", "../card.json"), "must be the name of a device, not of a file"),
    "a card that nobody knows": (with_value(f"{P}.name", "a101"), "a101"),
    "no kind": (with_value(f"{P}.kind", "tpu"), "kind must be cuda or cpu"),
    "a key twice": ('{"schema": 1, "schema": 1, "device_profile": {}}', "'schema' is there twice"),
    "nested without end": ("[" * 100_000, "nested too deeply"),
    "huge": (" " * (2**22 + 1) + "{}", "is too large for a device profile"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_profile_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in one line that names the file, or the card, and the mistake; nothing is written to stdout."""
    for what, (text, said) in BAD.items():
        file = tmp_path / "profile.json"
        file.write_text(text, "utf-8")
        assert main([command, *COMMANDS[command], "--profile", str(file)]) == 2, what
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), what
        assert said in err, (what, err)
        assert "profile.json" in err, (what, err)


@pytest.mark.parametrize("command", COMMANDS)
def test_another_cards_profile_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never are one card's rates taken for another; a profile that is not there is said to be missing."""
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(good()), "utf-8")
    assert main([command, *COMMANDS[command], "--profile", str(file), "--gpu", "h100,rtx4090"]) == 2
    assert "a profile of a100-80gb, which --gpu does not name (h100, rtx4090)" in capsys.readouterr().err
    assert main([command, *COMMANDS[command], "--profile", str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err
    assert main([command, *COMMANDS[command], "--profile", str(tmp_path)]) == 2
    assert str(tmp_path.name) in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_cpus_profile_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Closed forms are of cards, and so are thresholds and plans; the simulation of a CPU takes it."""
    file = tmp_path / "profile.json"
    file.write_text(with_value(f"{P}.kind", "cpu"), "utf-8")
    assert main([command, *COMMANDS[command], "--profile", str(file)]) == 2
    assert "a CPU" in capsys.readouterr().err


def test_a_good_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that the others are made of."""
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(good()), "utf-8")
    assert main(["predict", *COMMANDS["predict"], "--profile", str(file), "--format", "json"]) == 0
    [fit] = json.loads(capsys.readouterr().out)["predictions"][0]["fit"]
    assert (fit["device"], fit["profile"]) == ("a100-80gb", "measured")
    assert fit["step_s"] > 0
