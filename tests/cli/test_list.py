"""`lorafa-prof list`: what is known by name."""

from __future__ import annotations

import csv
import io
import json

import pytest

from lorafa_prof.catalog import device_names, load_device, load_model, model_names
from lorafa_prof.cli import main
from lorafa_prof.cli.list import METHOD_LINES
from lorafa_prof.specs import METHODS


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["list", *args]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


def test_every_model_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON holds each model of the catalog with its sizes and its source."""
    entries = {entry["name"]: entry for entry in json.loads(listed(capsys, "models", "--format", "json"))["models"]}
    assert sorted(entries) == model_names()
    llama = entries["llama2-7b"]
    assert (llama["hidden_size"], llama["num_layers"], llama["parameters"]) == (4096, 32, 6_738_415_616)
    assert llama["hub_id"] == "meta-llama/Llama-2-7b-hf"
    assert all(entry["source"] for entry in entries.values())


def test_the_model_table_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a model, counts with a prefix, an encoder-decoder's two stacks, "-" for what is unbounded."""
    lines = {line.split()[0]: line.split() for line in listed(capsys, "models").splitlines() if line.strip()}
    assert lines["llama2-7b"] == [
        "llama2-7b", "6.74", "B", "llama", "4,096", "32", "4,096", "meta-llama/Llama-2-7b-hf",
    ]  # fmt: skip
    assert lines["t5-base"][4:9] == ["768", "12", "+", "12", "-"]


def test_csv_holds_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """No separators, no prefixes, empty where nothing is known."""
    records = {
        r["name"]: r for r in csv.DictReader(io.StringIO(listed(capsys, "models", "--format", "csv"), newline=""))
    }
    assert records["llama2-7b"]["parameters"] == "6738415616"
    assert records["t5-base"]["max_positions"] == ""
    assert records["t5-base"]["layers"] == "24"
    spec = load_model("qwen3-8b")
    assert int(records["qwen3-8b"]["hidden_size"]) == spec.hidden_size


def test_every_gpu_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are the catalog's, unknown ones null, and JSON says where they come from."""
    entries = {entry["name"]: entry for entry in json.loads(listed(capsys, "gpus", "--format", "json"))["gpus"]}
    assert sorted(entries) == device_names()
    for name, entry in entries.items():
        device = load_device(name)
        assert entry["total_bytes"] == device.total_bytes
        assert entry["context_bytes"] == device.context_bytes
        assert entry["peak_flops"].get("bf16") == device.peak_flops.get("bf16")
        assert entry["sources"]
    assert entries["v100-32gb"]["peak_flops"]["bf16"] is None


def test_an_unknown_figure_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    """A V100 has no bf16 units: its cell says so instead of 0."""
    (line,) = [line for line in listed(capsys, "gpus").splitlines() if line.startswith("v100-32gb")]
    memory, bf16, bandwidth = line.split("SXM2")[1].split()[:3]
    assert (memory, bf16, bandwidth) == ("31.73", "-", "0.90")


def test_every_method_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """The methods of the contract, in its order, each with a line."""
    assert tuple(METHOD_LINES) == METHODS
    entries = json.loads(listed(capsys, "methods", "--format", "json"))["methods"]
    assert [entry["name"] for entry in entries] == list(METHODS)
    assert all(entry["trains"] and entry["description"] for entry in entries)


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe table whose figures are right-justified."""
    lines = listed(capsys, "gpus", "--format", "markdown").splitlines()
    assert lines[3] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert len(lines) == 4 + len(device_names()) + 2


def test_an_unknown_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage names the choices."""
    assert main(["list", "cards"]) == 2
    assert "'models', 'gpus', 'methods'" in capsys.readouterr().err
