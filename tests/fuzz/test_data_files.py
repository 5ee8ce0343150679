"""Devices, models, profiles, lengths and training configurations as files that somebody else wrote."""

from __future__ import annotations

import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lorafa_prof.catalog import device_names, load_device, load_model, model_names
from lorafa_prof.configs import read_configs
from lorafa_prof.configs.reading import OPTIONS
from lorafa_prof.lengths import read_lengths
from lorafa_prof.specs import DeviceSpec, ModelSpec
from lorafa_prof.speed.profile import MatmulRates, TimedProduct
from lorafa_prof.speed.profile_file import read_profile
from tests.fuzz.feeding import HOSTILE, SEEDS, altered, damaged, fuzz, read_or_refused
from tests.speed.made import profile
from tests.support.tool_files import PARTS, WHOLE

CATALOG = resources.files("lorafa_prof.catalog")
CARDS = [json.loads((CATALOG / "devices" / f"{name}.json").read_text()) for name in device_names()]
MODELS = [json.loads((CATALOG / "models" / f"{name}.json").read_text())["config"] for name in model_names()]
TIMED = TimedProduct(batch=1, m=8, n=8, k=8, seconds=1e-5, over_model=1.25)
PROFILE = profile(
    matmul={"bf16": MatmulRates(flops_per_s=1e14, timed=(TIMED,))}, sources={"host": "measured"},
    environment={"torch": "2.13.0", "threads": 2, "clock": None},
).to_json()  # fmt: skip


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def written(folder: Path, data: bytes, name: str = "file.json") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def some_json(good: Any, chance: random.Random) -> bytes:
    """Return good data with other values, or with other bytes."""
    return as_bytes(altered(good, chance)) if chance.random() < 0.7 else damaged(as_bytes(good), chance)


@fuzz(1000, seed=SEEDS)
def test_cards(folder: Path, seed: int) -> None:
    """A card that is read can be computed with: memory and rates within what there is."""
    chance = random.Random(seed)
    path = written(folder, some_json(chance.choice(CARDS), chance))
    card: DeviceSpec | None = read_or_refused(lambda: load_device(path))
    if card is not None:
        assert 2**20 <= card.total_bytes <= 2**50


@fuzz(1200, seed=SEEDS)
def test_models(folder: Path, seed: int) -> None:
    """A config.json that is read has the sizes of a model."""
    chance = random.Random(seed)
    path = written(folder, some_json(chance.choice(MODELS), chance), "config.json")
    model: ModelSpec | None = read_or_refused(lambda: load_model(path))
    if model is not None:
        assert 1 <= model.hidden_size <= 2**20
        assert 1 <= model.num_layers <= 2000


@fuzz(800, seed=SEEDS)
def test_profiles(folder: Path, seed: int) -> None:
    """A profile that is read is written again as it was."""
    chance = random.Random(seed)
    path = written(folder, some_json(PROFILE, chance))
    found = read_or_refused(lambda: read_profile(path))
    if found is not None:
        json.dumps(found.to_json(), allow_nan=False)


LENGTHS = (
    b"12\n700\n1\n2048\n", b'text,length\r\n"a ""b"",\r\nc",12\r\nd,700\r\n', b"[12, 700, 1]",
    b'[{"length": 12}, {"length": 700}]', b'{"length": 12}\n{"length": 700, "x": [null]}\n',
    b'{"input_ids": [1, 2, 3]}\n{"input_ids": [4]}\n', b"\xef\xbb\xbf12\r\n700\r\n\r\n",
)  # fmt: skip


@fuzz(1000, seed=SEEDS)
def test_lengths(folder: Path, seed: int) -> None:
    """Lengths that are read are lengths."""
    chance = random.Random(seed)
    path = written(folder, damaged(chance.choice(LENGTHS), chance), "lengths")
    found = read_or_refused(lambda: read_lengths(path))
    if found is not None:
        assert found.size
        assert found.min() >= 1


# -- --config --------------------------------------------------------------------------------------------------------

FILES = [(file.name, file.text.encode(), yaml.safe_load(file.text)) for file in (*WHOLE, *PARTS)]
KEYS = sorted({key for _, _, parsed in FILES for key in parsed})


def check_configs(paths: list[str]) -> None:
    """A reading has options of ours with plain values, and lines that are text."""
    reading = read_or_refused(lambda: read_configs(paths))
    if reading is not None:
        assert set(reading.options) <= set(OPTIONS)
        assert all(isinstance(value, (str, int, float, bool)) for value in reading.options.values())
        assert all(isinstance(line, str) for line in reading.lines())


@fuzz(1000, seed=SEEDS)
def test_training_configurations_with_other_values(folder: Path, seed: int) -> None:
    """Every format's own file, some of its values others, and keys of other formats among its own."""
    chance = random.Random(seed)
    _, _, parsed = chance.choice(FILES)
    found = altered(parsed, chance, most=2)
    if isinstance(found, dict):
        for _ in range(chance.randrange(3)):
            found[chance.choice(KEYS)] = chance.choice(HOSTILE)
    check_configs([written(folder, as_bytes(found), "f.yml")])


@fuzz(700, seed=SEEDS)
def test_damaged_training_configurations(folder: Path, seed: int) -> None:
    """YAML and JSON with other bytes, and two files of which the second one is whole."""
    chance = random.Random(seed)
    name, text, _ = chance.choice(FILES)
    paths = [written(folder, damaged(text, chance), f"a-{name}")]
    if chance.random() < 0.3:
        name, text, _ = chance.choice(FILES)
        paths.append(written(folder, text, f"b-{name}"))
    check_configs(paths)
