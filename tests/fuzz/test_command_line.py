"""The command line, given what nobody would type: an answer or a refusal, with the exit code of the contract.

The options of each command are read from the command itself, so that a new one is fed from the day it is there. What
takes a device, a library of some gigabytes or another process is stood in for, and what leads there is not.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import click
import pytest

from lorafa_prof.cli.program import COMMANDS
from lorafa_prof.errors import DeviceError
from lorafa_prof.measure import isolate
from tests.fuzz.feeding import HOSTILE, SEEDS, call, fuzz
from tests.support.tool_files import PARTS, WHOLE

MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
TEXTS = [str(value) for value in HOSTILE] + ["ünï", "-", "--", "-o", "--help", "=", ",", ",,", "1,", "1:", "::", "*"]
#: Where an option's own values are few, or most others would be refused at once.
GOOD: dict[str, tuple[str, ...]] = {
    "model": ("./model", "model/config.json", "gpt2", "t5-small", "llama2-7b", "LLAMA2-7B", "mixtral-8x7b"),
    "method": ("full", "lora", "lora-fa", "lora,vera", "qlora", "dora", "adalora", "lora-ga", "lora-pro", "pissa"),
    "gpu": ("rtx4090", "a100-80gb", "h100,t4", "A100"), "bs": ("1", "8", "3"), "seq": ("16", "512", "1024"),
    "rank": ("1", "8", "64"), "gpus": ("1", "2", "8"), "accumulation": ("1", "4"), "dropout": ("0", "0.1"),
    "targets": ("qv", "all-linear", "q_proj,v_proj"), "layers": ("all", "1", "50%", "0-1", "0,1"),
    "keep": ("products", "attention,casts", "aten.mm"), "lengths": ("lengths.txt",), "config": (),
    "batching": ("random", "grouped", "sorted", "file", "packed", "tokens:2048"), "batching_seed": ("7",),
    "pad_to_multiple_of": ("8",), "profile": (), "cap": ("24GiB", "1GB"), "tokens": ("1B", "500M"),
    "price": ("2", "0.5"), "cards": ("1", "2,4"), "link": ("25GB/s",), "title": ("T",), "tolerance": ("1%", "1MiB"),
    "format": ("json", "csv", "markdown", "table"), "table": ("7", "c3", "text"), "steps": ("1",), "warmup": ("1",),
    "device": ("cpu", "cuda:1"), "timeout_s": ("5",), "kinds": ("parts", "peaks"), "budget_s": ("5",),
}  # fmt: skip
_NAMES = {"models": "model", "methods": "method", "gpus_asked": "gpu", "numbers": "cards"}
#: Files that are written, none of them elsewhere: what a user names outside the folder would be written there.
OUTPUTS = ("out.json", "out.csv", "out.md", "out", "-", "new/", "missing/out.json", ".", "", "a\x00b", "x" * 300,
           "\udc80.json", "lengths.txt", "a b;c.csv", "model/config.json/x")  # fmt: skip
#: Its other values start processes, or take a library that takes ten seconds to import.
ENGINES = ("analytic", "analytic", "Analytic", "", "measured")
NOT_FED = ("--jobs", "--help")


class Commands:
    """Makes command lines of one command."""

    def __init__(self, name: str) -> None:
        self.name = name
        command: click.Command = importlib.import_module(f"lorafa_prof.cli.{name}").command
        self.options = [
            option
            for option in command.params
            if isinstance(option, click.Option) and not set(option.opts) & set(NOT_FED)
        ]
        self.arguments = [each for each in command.params if isinstance(each, click.Argument)]

    def line(self, chance: random.Random, always: tuple[str, ...] = ()) -> list[str]:
        """Return a command line: some options, most with values they know, and at times a slip."""
        args = list(always)
        for option in chance.sample(self.options, min(len(self.options), chance.choice((0, 1, 1, 2, 3, 5, 8)))):
            args += self._given(option, chance)
        for argument in self.arguments:
            args += self._argument(argument, chance)
        if chance.random() < 0.25:
            self._slip(args, chance)
        return [self.name, *args]

    def _given(self, option: click.Option, chance: random.Random) -> list[str]:
        name = chance.choice([*option.opts, *option.secondary_opts])
        if option.is_flag or option.count:
            return [name]
        value = self._value(option, chance)
        return [f"{name}={value}"] if name.startswith("--") and chance.random() < 0.2 else [name, value]

    def _value(self, option: click.Option, chance: random.Random) -> str:
        name = _NAMES.get(str(option.name), str(option.name))
        if name in ("output", "snapshot", "figure"):
            return chance.choice(OUTPUTS)
        if name in ("engine", "engines"):
            return chance.choice(ENGINES)
        if chance.random() < 0.3:
            return chance.choice(TEXTS)
        if isinstance(option.type, click.Choice):
            return str(chance.choice(option.type.choices))
        if name in ("config", "profile", "lengths") and chance.random() < 0.7:
            return chance.choice(FILES)
        known = GOOD.get(name, ())
        return chance.choice(known or TEXTS)

    def _argument(self, argument: click.Argument, chance: random.Random) -> list[str]:
        if isinstance(argument.type, click.Choice) and chance.random() < 0.8:
            return [str(chance.choice(argument.type.choices))]
        return [chance.choice((*FILES, *TEXTS)) for _ in range(chance.choice((0, 1, 1, 2)))]

    @staticmethod
    def _slip(args: list[str], chance: random.Random) -> None:
        """Leave a word out, say it twice, misspell it, or put another one in."""
        at = chance.randrange(len(args) + 1)
        deed = chance.randrange(4)
        if deed == 0 and at < len(args) and args[at] not in ("-o", "--output"):
            del args[at]
        elif deed == 1 and at < len(args):
            args.insert(at, args[at])
        elif deed == 2 and at < len(args) and args[at].startswith("--"):
            args[at] = args[at][:-1] + chance.choice("xyz-")
        else:
            args.insert(at, chance.choice([text for text in TEXTS if text not in ("-o", "/etc/passwd")]))


#: What `prepare` lays down, and what is not there.
FILES = (
    "run.json", "sweep.csv", "lengths.txt", "model/config.json", "qlora.yml", "adapter_config.json", "accelerate.yaml",
    "ds_config.json", "recipe.yaml", "model", "missing.json", "empty", "broken.json",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """Lay down files that commands take."""
    if (folder / "model").exists():
        return
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    (folder / "lengths.txt").write_text("12\n700\n64\n256\n" * 4)
    (folder / "empty").write_text("")
    (folder / "broken.json").write_text('{"predictions": [')
    for file in (*WHOLE, *PARTS):
        (folder / file.name).write_text(file.text)
    call(["predict", "--model", "gpt2", "--method", "lora", "--format", "json", "-o", "run.json"])
    call(["sweep", "--model", "gpt2", "--method", "lora", "--bs", "1:2", "-o", "sweep.csv"])


def feed(folder: Path, command: Commands, seed: int, always: tuple[str, ...] = ()) -> None:
    """Run one command line; JSON that it prints is JSON, and nothing but it."""
    prepare(folder)
    chance = random.Random(seed)
    args = command.line(chance, always if chance.random() < 0.9 else ())
    answer = call(args)
    elsewhere = any(word in ("-h", "--help") or word.startswith(("-o", "--output")) for word in args)
    if answer.code == 0 and not elsewhere and args.count("--format") == 1:
        at = args.index("--format") + 1
        if at < len(args) and args[at] == "json":
            json.loads(answer.out)


PREDICT, OOM, CAPACITY, SWEEP = Commands("predict"), Commands("oom"), Commands("capacity"), Commands("sweep")
SMALL = ("--model", "./model", "--method", "lora,lora-fa")


@fuzz(1500, seed=SEEDS)
def test_predict(folder: Path, seed: int) -> None:
    """Any options of a prediction by closed forms."""
    feed(folder, PREDICT, seed, SMALL)


@fuzz(100, seed=SEEDS)
def test_oom(folder: Path, seed: int) -> None:
    """Any options of a search by closed forms."""
    feed(folder, OOM, seed, (*SMALL, "--gpu", "t4"))


@fuzz(150, seed=SEEDS)
def test_capacity(folder: Path, seed: int) -> None:
    """Any options of a plan."""
    feed(folder, CAPACITY, seed, (*SMALL, "--gpu", "t4"))


@fuzz(300, seed=SEEDS)
def test_sweep(folder: Path, seed: int) -> None:
    """Any options of a grid."""
    feed(folder, SWEEP, seed, SMALL)


@fuzz(400, seed=SEEDS)
def test_commands_of_files(folder: Path, seed: int) -> None:
    """Files of other kinds, files that are not there, and options that do not go together."""
    feed(folder, random.Random(-seed).choice(OF_FILES), seed)


OF_FILES = [Commands(name) for name in ("list", "paper", "replay", "report", "plot", "compare")]
#: What begins with them would measure, draw pages for half a minute, or run the file.
STOOD_IN_FOR = [Commands(name) for name in ("measure", "calibrate", "run", "planner")]


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device answers, and nothing is computed for the planner's page or run as a script."""

    def refuse(*_: object, **__: object) -> Any:
        raise DeviceError("there is no device")

    monkeypatch.setattr(isolate, "find_place", refuse)
    measuring = types.ModuleType("lorafa_prof.calibrate.measuring")  # the real one imports torch
    measuring.calibrate = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, measuring.__name__, measuring)
    monkeypatch.setattr("lorafa_prof.analytic.export.export", refuse)
    monkeypatch.setattr("lorafa_prof.measure.script.launch.run_program", refuse)
    monkeypatch.delenv("RANK", raising=False)


@fuzz(600, seed=SEEDS)
def test_commands_that_measure(folder: Path, seed: int) -> None:
    """All that comes before the device: options, models, files that are there already."""
    feed(folder, random.Random(-seed).choice(STOOD_IN_FOR), seed, ())


@fuzz(600, seed=SEEDS)
def test_any_words(folder: Path, seed: int) -> None:
    """Words of the program's own, and others, in any order."""
    prepare(folder)
    chance = random.Random(seed)
    words = [*COMMANDS, *TEXTS, *FILES, "-q", "--version", "-h", "--model", "--bs", "--format", "json", "--gpu"]
    args = [chance.choice(words) for _ in range(chance.randint(0, 5))]
    if args and args[0] in ("planner", "calibrate", "measure", "run", "compare", "plot"):
        args[0] = "list"
    call(args)
