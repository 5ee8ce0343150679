"""Every command that the documentation shows is executed, and the tables that it shows are what is printed.

Each runs in a folder with the files that the pages speak of. Commands of closed forms run in this process, in every
run of the tests; what simulates, measures or draws pages for a minute is for `make test-slow`; and what needs a device
or a download of gigabytes is named in `ELSEWHERE` with the reason, and with what stands in for it.
"""

from __future__ import annotations

import glob
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.cli import main
from lorafa_prof.results import Prediction, measurements_to_json
from tests.docs.pages import BLOCKS, COMMANDS, PAGES, ROOT, TABLES, Block, Command
from tests.fuzz.test_snapshots import recorded
from tests.speed.made import profile
from tests.support.hand_made import measurement
from tests.support.tool_files import ACCELERATE, AXOLOTL_QLORA

CUDA = "measures on a CUDA device; the same command with --device cpu is executed"
#: Patterns of commands that are not executed anywhere, and why.
ELSEWHERE = {
    r"sweep --model M\[": "the options in general, not a command",
    r"measure --model llama2-7b": CUDA,
    r"measure --model qwen3-8b": CUDA,
    r"calibrate -o my-gpu.json": CUDA,
    r"torchrun --nproc-per-node 8": CUDA,
    r"diff --python": "asks another environment; tests/cli/test_diff.py asks this one in its place",
    r"diff before.json": "compares with what a command before it records; tests/cli/test_diff.py does",
}
#: Patterns of commands that take more than some seconds.
SLOW = (
    r"--engine simulate", r"^lorafa-prof measure", r"^lorafa-prof run", r"^torchrun", r"^lorafa-prof calibrate",
    r"^lorafa-prof planner", r"^lorafa-prof compare", r"^lorafa-prof diff",
    r"^lorafa-prof paper -o",
)  # fmt: skip
MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 2048,
}  # fmt: skip
#: Answers of predict, oom and sweep that other commands are shown to read.
MADE = (
    "predict --model llama2-7b --bs 8 --seq 1024 --format json -o llama2-7b.json",
    "predict --model llama2-7b --bs 8 --seq 1024 --method lora --format json -o predictions.json",
    "oom --model llama2-7b --gpu rtx4090 --method lora-fa --no-advice --seq 512 -o oom-512.json",
    "oom --model llama2-7b --gpu rtx4090 --method lora-fa --no-advice --seq 1024 -o oom-1024.json",
    "oom --model llama2-7b --gpu rtx4090 --method lora-fa --no-advice -o oom.json",
    "sweep --model llama2-7b --bs 1:4 --method lora,lora-fa -o sweep.csv",
    "sweep --model llama2-7b --bs 8 --method full,lora --gpus 2,4 --shard ddp,fsdp -o cards.csv",
)
DEEPSPEED = {"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
ARGUMENTS = "output_dir: out\nper_device_train_batch_size: 4\noptim: adamw_torch\nbf16: true\nmax_grad_norm: 0\n"
ADAPTER = {
    "base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16,
    "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], "bias": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of."""
    folder = tmp_path_factory.mktemp("files")
    texts: dict[str, object] = {
        "qlora.yml": AXOLOTL_QLORA.text,
        "accelerate.yaml": ACCELERATE.text, "adapter_config.json": json.dumps(ADAPTER),
        "ds_config.json": json.dumps(DEEPSPEED), "arguments.yaml": ARGUMENTS,
        "lengths.txt": "12\n700\n64\n256\n" * 8, "lengths.csv": "length\n" + "12\n700\n64\n256\n" * 8,
        "train.jsonl": '{"length": 12}\n{"length": 700}\n{"length": 64}\n' * 8,
        "my-gpu.json": json.dumps(replace(profile(), name="a100-80gb").to_json()),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(str(text))
    (folder / "snapshot.pickle").write_bytes(pickle.dumps(recorded()))
    (folder / "my-model").mkdir()
    (folder / "my-model" / "config.json").write_text(json.dumps(MODEL))
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("")
    scripts = ROOT / "tests" / "scripts"
    shutil.copy(scripts / "tiny.py", folder)
    for name in ("train.py", "my_package/train.py"):
        shutil.copy(scripts / "plain_loop.py", folder / name)
    (folder / "docs" / "figures").mkdir(parents=True)
    return folder


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files to work in."""
    here = tmp_path / "here"
    shutil.copytree(files, here)
    monkeypatch.chdir(here)
    return here


@pytest.fixture(scope="module")
def answers(files: Path) -> Path:
    """The files with answers of other commands among them."""
    before = os.getcwd()
    os.chdir(files)
    try:
        for line in MADE:
            assert main([*line.split(), "-q"]) == 0
        (said,) = json.loads(Path("predictions.json").read_text())["predictions"]
        seen = replace(measurement(), run=Prediction.from_json(said).run)
        Path("run.json").write_text(json.dumps(measurements_to_json([seen])))
    finally:
        os.chdir(before)
    return files


def reason(command: Command) -> str:
    """Why it is not executed; "" where it is."""
    return next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, command.text)), "")


def is_slow(command: Command) -> bool:
    return any(re.search(pattern, command.text) for pattern in SLOW)


def cases() -> list[Any]:
    found = {" ".join(command.words): command for command in COMMANDS if not reason(command)}
    return [
        pytest.param(command, id=f"{command.page}: {command.text}", marks=pytest.mark.slow if is_slow(command) else ())
        for command in found.values()
    ]


def globbed(words: list[str]) -> list[str]:
    """What a shell makes of words with an asterisk."""
    return [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]


@pytest.mark.parametrize("command", cases())
def test_a_command_works(command: Command, answers: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and the file that it names is there."""
    program, *args = globbed(command.words)
    if args[0] == "sweep":  # of other options than those of the file that is there
        Path(args[args.index("-o") + 1]).unlink(missing_ok=True)
    if program == "lorafa-prof" and not is_slow(command):
        code = main(args)
        assert code == 0, capsys.readouterr().err
    else:
        start = ["-m", "lorafa_prof"] if program == "lorafa-prof" else ["-m", "torch.distributed.run"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *start, *args], check=False, capture_output=True, text=True, env=environment, timeout=900
        )
        tolerated = (0, 1) if "--tolerance" in args else (0,)  # run.json was not measured: an error is an answer
        assert done.returncode in tolerated, done.stderr[-3000:]
    if "-o" in args:
        assert (folder / args[args.index("-o") + 1]).exists()


def test_what_is_not_executed_is_there() -> None:
    """Each pattern of the tables is one of a command."""
    for pattern in (*ELSEWHERE, *SLOW):
        assert any(re.search(pattern, command.text) for command in COMMANDS) or pattern.endswith("paper -o"), pattern


# -- what they print -------------------------------------------------------------------------------------------------

#: First line of a block with a table, the command that prints it, and the terminal's width.
PRINTED = {
    "llama2-7b: batch 8 x 1,024 tokens": ("predict --model llama2-7b --bs 8 --seq 1024", 100),
    "                               largest": (
        "oom --model llama2-7b --gpu rtx4090 --gpu a100-80gb --method lora,lora-fa",
        100,
    ),
    "rtx4090, LoRA-FA: what would make batch 3 fit": (
        "oom --model llama2-7b --gpu rtx4090 --method lora-fa --seq 1024",
        112,
    ),
}
#: Those of which the command takes a measurement, or the simulation.
NOT_PRINTED = ("                             observed       simulate", "                         before          after")


def printed() -> list[tuple[Block, str, int]]:
    found = []
    for block in TABLES:
        first = block.lines[0]
        if first.startswith(NOT_PRINTED):
            continue
        known = [answer for begin, answer in PRINTED.items() if first.startswith(begin)]
        assert known, f"{block.page}:{block.line}: which command prints this table? Say it in PRINTED"
        found.append((block, *known[0]))
    return found


@pytest.mark.parametrize(("block", "command", "width"), printed(), ids=lambda value: getattr(value, "page", ""))
def test_a_table_is_what_is_printed(
    block: Block, command: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line; a page may leave lines out, but not change any."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(command.split()) == 0
    lines = iter([line.rstrip() for line in capsys.readouterr().out.splitlines()])
    for line in block.lines:
        assert line.rstrip() in lines, f"{block.page}:{block.line}: {line}"


# -- Python, make, flags ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if "import lorafa_prof as lp" in block.lines], ids=lambda block: block.page
)
def test_python_works(block: Block) -> None:
    """What is shown of the calls from Python runs, each line of it."""
    exec("\n".join(block.lines), {})


def test_make_knows_what_is_named() -> None:
    """Each `make TARGET` of the pages is a target."""
    made = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*(?: [a-z-]+)*):", made, re.MULTILINE))
    known = {name for line in targets for name in line.split()}
    for page in PAGES:
        for name in re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", page.read_text("utf-8"), re.MULTILINE):
            assert name in known, f"{page.name}: make {name}"
