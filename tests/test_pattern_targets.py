"""Targets that are a pattern: PEFT's own choice, and the same run as that of the words for it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model, spec_from_config
from lorafa_prof.cli import main
from lorafa_prof.errors import BadInputError, ContradictionError, LorafaProfError, UnsupportedError
from lorafa_prof.pattern_targets import chosen_by
from lorafa_prof.runs import run_spec
from lorafa_prof.specs import ModelSpec
from tests.support.configs import tiny_configs

AXOLOTL = r"model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj"
OPTIONS: dict[str, Any] = {"rank": 4, "dropout": 0.0, "bs": 2, "seq": 16}


@pytest.mark.parametrize(
    ("name", "pattern", "targets", "layers"),
    [
        ("llama", AXOLOTL, "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "all"),
        ("llama", r".*\.(q|v)_proj$", "q_proj,v_proj", "all"),
        ("llama", r"^model\.layers\.1\..*\.(q|v)_proj", "q_proj,v_proj", "1-1"),
        ("llama", r".*self_attn.*|lm_head", None, ""),
        ("llama", r".*\.q_proj|lm_head", "q_proj,lm_head", "all"),
        ("gemma2", r".*layers.(0|2).self_attn.[kv]_proj", "k_proj,v_proj", "0,2"),
        ("phi3", r"(?!.*mlp).*_proj", "o_proj,qkv_proj", "all"),
        ("gpt2", r".*\.attn\.c_(attn|proj)", "attn.c_attn,attn.c_proj", "all"),
        ("gpt2", r"transformer\.h\.0\.(attn|mlp)\.c_proj", "c_proj", "0-0"),
        ("roberta", r".*attention\.self\.(query|value)", "query,value", "all"),
        ("roberta", r".*dense|classifier.*", "dense", "all"),
        ("bert", r".*\.attention\.output\.dense", "attention.output.dense", "all"),
        ("t5", r".*SelfAttention\.[qv]", "SelfAttention.q,SelfAttention.v", "all"),
        ("mixtral", r".*self_attn.(q|v)_proj", "q_proj,v_proj", "all"),
    ],
)  # fmt: skip
def test_a_pattern_is_the_words_for_it(name: str, pattern: str, targets: str | None, layers: str) -> None:
    """The run is that of --targets and --layers, and so is every figure; and PEFT adapts the same modules by both."""
    model = tiny_spec(name)
    if targets is None:
        with pytest.raises(UnsupportedError, match=r"also matches model\.layers\.0\.self_attn of .*no linear layer"):
            chosen_by(pattern, model, "lora", "all")
        return
    by_pattern = run_spec(model, "lora", targets=pattern, **OPTIONS)
    by_words = run_spec(model, "lora", targets=targets, layers=layers, **OPTIONS)
    assert set(by_pattern.method.targets) == set(by_words.method.targets)
    assert by_pattern.method.layers == by_words.method.layers
    assert predict(by_pattern, []).memory == predict(by_words, []).memory
    assert adapted(model, pattern) == adapted_by(by_pattern)


def tiny_spec(name: str) -> ModelSpec:
    return spec_from_config(name, tiny_configs()[name])


def adapted(model: ModelSpec, pattern: str) -> set[str]:
    """Return the modules that PEFT itself adapts in the real model, given the pattern."""
    import peft
    import torch

    from lorafa_prof.workload.adapted_layers import adapted_paths
    from lorafa_prof.workload.adapters import TASK_TYPES, quiet
    from lorafa_prof.workload.models import base_model

    with torch.device("meta"), quiet():
        base = base_model(run_spec(model, "full", targets="all-linear", **OPTIONS), "meta")
        config = peft.LoraConfig(r=4, target_modules=pattern, task_type=TASK_TYPES[model.task])
        return adapted_paths(peft.get_peft_model(base, config))  # type: ignore[arg-type]


def adapted_by(run: Any) -> set[str]:
    """Return the modules that the engines adapt in the real model, given the words."""
    import peft
    import torch

    from lorafa_prof.workload.adapted_layers import adapted_paths
    from lorafa_prof.workload.adapters import peft_config, quiet
    from lorafa_prof.workload.models import base_model

    with torch.device("meta"), quiet():
        base = base_model(run, "meta")
        return adapted_paths(peft.get_peft_model(base, peft_config(base, run)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(tiny_configs()))
def test_the_modules_of_closed_forms_are_the_models(name: str) -> None:
    """Linear layers by the names that the real model has, in its order; and what is around them, but for a few."""
    torch = pytest.importorskip("torch")
    from transformers.pytorch_utils import Conv1D

    from lorafa_prof.pattern_targets import _modules
    from lorafa_prof.workload.models import base_model

    model = tiny_spec(name)
    known = _modules(model)
    real = dict(base_model(run_spec(model, "full", targets="all-linear", **OPTIONS), "meta").named_modules())
    linears = [path for path, module in real.items() if isinstance(module, (torch.nn.Linear, Conv1D))]
    heads = {
        "classifier.dense",
        "classifier.out_proj",
        "classifier",
        "score",
        "encoder.embed_tokens",
        "decoder.embed_tokens",
    }
    assert set(known.linears) - heads == set(linears) - heads
    assert set(known.others) <= {*real, *heads}
    parametrised = {path for path, module in real.items() if list(module.parameters())} - {""}
    assert parametrised - heads <= {*known.linears, *known.others}


@pytest.mark.parametrize(
    ("pattern", "words", "error"),
    [
        (r".*nowhere", "matches no module of llama3-8b, whose names are such as model.layers.", UnsupportedError),
        (r"q_proj|v_proj", "a pattern has to match the whole name", UnsupportedError),
        (".*", "also matches model of llama3-8b, and 164 more like it", UnsupportedError),
        (r".*(embed_tokens|q_proj)", "also matches model.embed_tokens of llama3-8b: no linear layer", UnsupportedError),
        (r".*layers\.0\..*q_proj|.*layers\.1\..*k_proj",
         "matches self_attn.q_proj in 0, self_attn.k_proj in 1 of llama3-8b", UnsupportedError),
        (r".*layers\.0\..*q_proj|lm_head", "matches self_attn.q_proj in 0, lm_head of llama3-8b", UnsupportedError),
        ("(q_proj", "is no regular expression", BadInputError),
        ("(" * 200 + "(.*)*" + ")*" * 200 + "x", "pattern", LorafaProfError),
    ],
)  # fmt: skip
def test_what_words_cannot_say_is_refused(pattern: str, words: str, error: type[LorafaProfError]) -> None:
    """With what the pattern matches."""
    with pytest.raises(error) as raised:
        chosen_by(pattern, load_model("llama3-8b"), "lora", "all")
    assert words in str(raised.value)


def test_experts_and_layers_of_mixtures_are_refused() -> None:
    """PEFT finds experts by their former names, and adapts them in every layer."""
    model = load_model("mixtral-8x7b")
    for pattern in (r".*\.(w1|w2|w3)|.*q_proj", AXOLOTL, r".*layers\.3\..*q_proj"):
        with pytest.raises(UnsupportedError, match="mixtral-8x7b"):
            chosen_by(pattern, model, "lora", "all")


def test_layers_are_not_chosen_beside_a_pattern() -> None:
    """PEFT takes no layers_to_transform then; and for full fine-tuning nothing is chosen."""
    model = load_model("llama3-8b")
    with pytest.raises(ContradictionError, match="leave out --layers"):
        chosen_by(AXOLOTL, model, "lora", "8")
    assert run_spec(model, "full", targets=AXOLOTL, **OPTIONS).method.targets == ("all-linear",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("axolotl.yml", f"adapter: lora\nlora_r: 4\nmicro_batch_size: 2\nlora_target_modules: '{AXOLOTL}'"),
        ("trl.yaml", f"use_peft: true\nlora_r: 4\nlora_target_modules: '{AXOLOTL}'\nmax_length: 64"),
        ("trl_list.yaml", f"use_peft: true\nlora_r: 4\nlora_target_modules: ['{AXOLOTL}']\nmax_length: 64"),
        ("adapter_config.json", json.dumps({"peft_type": "LORA", "r": 4, "target_modules": AXOLOTL})),
    ],
)
def test_files_have_patterns(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's pattern is predicted as the words in its place, and so is the command line's."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    words = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    found = []
    for more in ([], ["--targets", words], ["--targets", AXOLOTL]):
        assert main(["predict", "--config", name, "--model", "llama3-8b", *more, "--format", "json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["predictions"][0])
    assert found[0]["run"] == found[1]["run"] == found[2]["run"]
    assert found[0]["memory"] == found[1]["memory"] == found[2]["memory"]


@pytest.mark.parametrize(
    "text", ["lora_target: '.*(q|v)_proj'\ncutoff_len: 64", "lora_target_modules: ['.*q_proj', v_proj]\nuse_peft: true"]
)
def test_a_pattern_where_names_are_wanted_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a list PEFT takes it for a name, and LLaMA-Factory makes a list of every text."""
    file = tmp_path / "f.yml"
    file.write_text(text)
    with contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        assert main(["predict", "--config", str(file), "--model", "llama3-8b"]) == 2
    assert "a pattern" in capsys.readouterr().err
