"""The model catalog's data: every file has the catalog's form and is the model that it says it is.

The count of every entry is held to the transformers class that its configuration builds, on the meta device:
all of them together take a few seconds, the large ones no longer than the small.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import model_catalog

FOLDER = Path(model_catalog.__file__).with_name("models")
NAMES = [
    "bert-base", "codellama-13b", "codellama-34b", "codellama-7b", "deepseek-v2-lite", "gemma-2b", "gemma-7b",
    "gemma2-27b", "gemma2-2b", "gemma2-9b", "gemma3-1b", "gemma3-4b", "gpt2", "gpt2-large", "gpt2-medium", "gpt2-xl",
    "llama-13b", "llama-33b", "llama-65b", "llama-7b", "llama2-13b", "llama2-70b", "llama2-7b", "llama3-70b",
    "llama3-8b", "llama3.1-405b", "llama3.1-70b", "llama3.1-8b", "llama3.2-1b", "llama3.2-3b", "mistral-7b",
    "mistral-7b-v0.3", "mixtral-8x7b", "phi-4", "powerlm-3b", "qwen1.5-moe-a2.7b", "qwen2.5-0.5b", "qwen2.5-1.5b",
    "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-3b", "qwen2.5-72b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-14b",
    "qwen3-30b-a3b", "qwen3-32b", "qwen3-4b", "qwen3-8b", "roberta-base", "roberta-large", "santacoder-1.1b",
    "smollm2-1.7b", "smollm2-135m", "smollm2-360m", "t5-3b", "t5-base", "t5-large", "t5-small", "tinyllama-1.1b",
]  # fmt: skip

#: The keys of a file, in their order, and the type of each.
FORM = {
    "name": str, "hub_id": str, "aliases": list, "source": str, "parameters": int, "parameters_source": str,
    "config": dict,
}  # fmt: skip
#: What a file may have beside that, after its aliases: hub ids of others with the same configuration.
ALSO = "also"

#: What a configuration holds whatever its type; the keys of a size differ between families.
SIZES = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_hidden_layers", "n_layer", "num_layers"),
    ("num_attention_heads", "n_head", "num_heads"),
    ("vocab_size",),
    ("max_position_embeddings", "n_positions"),
)

#: Keys of the published files that say nothing of shapes, types, dropout, attention or positions.
LEFT_OUT = {
    "_name_or_path", "auto_map", "cache_implementation", "initializer_range", "output_past", "pretraining_tp",
    "task_specific_params", "transformers_version", "use_cache",
}  # fmt: skip

#: Counts that were published, as a second witness beside the class: totals of the Hub, or what was printed of
#: the loaded checkpoint. Left out are totals which also count buffers, or a tied weight twice.
PUBLISHED = {
    "deepseek-v2-lite": 15_706_484_224,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "phi-4": 14_659_507_200,
    "powerlm-3b": 3_512_017_152,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-8b": 8_190_735_360,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "santacoder-1.1b": 1_124_886_528,
    "t5-3b": 2_851_598_336,
    "gemma-7b": 8_537_680_896,
    "gemma2-27b": 27_227_128_320,
    "llama3.1-405b": 405_853_388_800,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def entry_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return loaded


def scalars_of(value: object) -> list[object]:
    """Return what stands at the leaves of a configuration."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [leaf for part in inner for leaf in scalars_of(part)]


class TestTheFiles:
    """What the files say, without any library."""

    def test_the_models_are_those_of_the_contract(self) -> None:
        """No file is missing and none is there by accident."""
        assert sorted(path.stem for path in FOLDER.iterdir()) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_a_file_has_the_form_of_an_entry(self, name: str) -> None:
        """Every key is there, in order and of its type; nothing that is text is empty."""
        entry = entry_of(name)
        also = entry.pop(ALSO, ["a/b"])
        assert also
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) for hub_id in also)
        assert {key: type(value) for key, value in entry.items()} == FORM
        assert list(entry) == list(FORM)
        assert entry["name"] == name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry["hub_id"])
        assert all(isinstance(alias, str) for alias in entry["aliases"])
        assert entry["source"].endswith(".")
        assert entry["parameters_source"].endswith(".")
        assert entry["parameters"] > 0

    @pytest.mark.parametrize("name", NAMES)
    def test_a_file_is_written_as_json_dump_writes_it(self, name: str) -> None:
        """A change shows in a diff as the lines that it changes."""
        text = (FOLDER / f"{name}.json").read_text("utf-8")
        assert text == json.dumps(entry_of(name), indent=2) + "\n"
        assert text.isascii()

    @pytest.mark.parametrize("name", NAMES)
    def test_a_configuration_has_its_sizes_and_no_ballast(self, name: str) -> None:
        """Each size stands there exactly once, as a positive integer; leaves are plain JSON scalars."""
        config = entry_of(name)["config"]
        assert isinstance(config["model_type"], str)
        assert [type(item) for item in config["architectures"]] == [str]
        for keys in SIZES:
            present = [key for key in keys if key in config]
            assert len(present) == 1, keys
            assert type(config[present[0]]) is int
            assert config[present[0]] > 0
        assert all(leaf is None or isinstance(leaf, (bool, int, float, str)) for leaf in scalars_of(config))
        assert config.get("torch_dtype", "float32") in ("bfloat16", "float16", "float32")
        assert isinstance(config["tie_word_embeddings"], bool)
        assert not LEFT_OUT & config.keys()
        # transformers writes this into the dictionary that it is given; the published files do not have it.
        assert "rope_theta" not in (config.get("rope_scaling") or {})

    def test_no_two_models_answer_to_one_name(self) -> None:
        """Names, aliases and hub ids are unique over the whole catalog, in any case of letters."""
        names = Counter(
            called.casefold()
            for entry in map(entry_of, NAMES)
            for called in (entry["name"], entry["hub_id"], *entry["aliases"], *entry.get(ALSO, ()))
        )
        assert [name for name, times in names.items() if times > 1] == []

    @pytest.mark.parametrize("name", NAMES)
    def test_names_are_written_in_small_letters(self, name: str) -> None:
        """The catalog folds what it is asked for, and names a file by it."""
        entry = entry_of(name)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", called) for called in (name, *entry["aliases"]))

    @pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
    def test_a_count_is_the_published_one(self, name: str, published: int) -> None:
        """The figure that was published for the checkpoint stands in the file."""
        assert entry_of(name)["parameters"] == published


class TestTheModels:
    """What transformers builds from the files."""

    @pytest.mark.parametrize("name", NAMES)
    def test_the_real_model_has_the_stated_count(self, name: str) -> None:
        """The count is that of the class built from the configuration, tied weights counted once."""
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        entry = entry_of(name)
        config = dict(entry["config"])
        model_type = config.pop("model_type")
        if model_type not in transformers.CONFIG_MAPPING:
            pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
        masked = dict.fromkeys(("bert", "roberta"), transformers.AutoModelForMaskedLM)
        auto = {"t5": transformers.AutoModelForSeq2SeqLM, **masked}.get(model_type, transformers.AutoModelForCausalLM)
        with torch.device("meta"):
            model = auto.from_config(transformers.AutoConfig.for_model(model_type, **config))
        assert type(model).__name__ == config["architectures"][0]
        assert type(model).__name__ in entry["parameters_source"]
        assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]
