"""`lorafa-prof run`: scripts run as without it, and what was seen of them is in the file, however they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lorafa_prof.cli import main
from lorafa_prof.results import PART_FIELDS
from tests.measure.runs import saved
from tests.scripts.tiny import TOKENS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "scripts"
PLAN = ["--warmup", "2", "--steps", "3"]
#: Warm-up, timed, listened to, traced: the number of the traced step.
TRACED = 7
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def python(*args: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *args], env=environment, cwd=cwd, check=False, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def run(*args: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    return python("-m", "lorafa_prof", "run", *args, cwd=cwd, code=code)


def script(folder: Path, text: str, name: str = "train.py") -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return name


# -- real trainings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        pytest.param("plain_loop", 3 * TOKENS, marks=pytest.mark.slow),
        ("with_trainer", 2 * 2 * TOKENS),  # whose loop is accelerate's
        pytest.param("with_accelerate", 2 * 3 * TOKENS, marks=pytest.mark.slow),
    ],
)
def test_a_script_runs_as_without_it_and_its_peak_is_the_profiler_s(tmp_path: Path, name: str, tokens: int) -> None:
    """stdout is the same to the letter, each loss to the bit. The peak is what torch's allocator holds in that step,
    counted from the beginning of the script on in another process.
    """
    path = str(SCRIPTS / f"{name}.py")
    alone = python(str(SCRIPTS / "under_profiler.py"), "peaks.json", path, cwd=tmp_path)
    looked_at = run("-o", "run.json", *PLAN, path, cwd=tmp_path)
    assert looked_at.stdout == alone.stdout
    [entry] = saved(tmp_path / "run.json")
    memory = entry["memory"]
    assert (entry["outcome"], entry["run"], entry["command"]) == ("ok", None, [path])
    assert len(entry["steps"]) == 3
    assert {step["tokens"] for step in entry["steps"]} == {tokens}
    assert memory["peak_allocated_bytes"] == json.loads((tmp_path / "peaks.json").read_text())[TRACED - 1]
    assert sum(memory[part] for part in PART_FIELDS) == memory["peak_allocated_bytes"]
    assert memory["trained_gradients_bytes"] == 4 * entry["parameters"]["trainable"]
    assert {p["phase"] for p in entry["phases"]} == {"script", "forward", "loss", "backward", "optimizer step"}
    assert {p["name"] for p in entry["promises"]} >= {"base weights without gradients", "training mode"}
    assert entry["unmodelled"] == []
    assert "lorafa-prof: ok, peak allocated" in looked_at.stderr


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Each rank has its entry; gradients are there once more in DDP's bucket. What an earlier run has left is gone."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "lorafa_prof", "run", "-o", "run.json", *PLAN, str(SCRIPTS / "ddp.py")]
    for _ in range(2):
        done = python(*command, cwd=tmp_path)
        first, second = saved(tmp_path / "run.json")
    assert [(m["rank"], m["world_size"], m["outcome"]) for m in (first, second)] == [(0, 2, "ok"), (1, 2, "ok")]
    assert done.stderr.count("lorafa-prof: ok") == 1
    for m in (first, second):
        items = {item["tensor"]: item["bytes"] for item in m["ledger"]["items"] if item["category"] == "workspaces"}
        assert items["DDP bucket"] == 212 * 4
        assert m["memory"]["weights_bytes"] == 212 * 4
        assert sum(m["memory"][part] for part in PART_FIELDS) == m["memory"]["peak_allocated_bytes"]
        assert "module" not in {stretch["module"].partition(".")[0] for stretch in m["timeline"]}


def test_a_process_that_is_gone_leaves_what_it_had_told(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "lorafa_prof", "run", "-o", "run.json", *PLAN, str(SCRIPTS / "ddp.py"), "1"]
    python(*command, cwd=tmp_path, code=1)
    first, second = saved(tmp_path / "run.json")
    assert second["outcome"] == "killed"
    assert len(second["steps"]) == 3
    assert first["outcome"] in ("killed", "error")
    assert first["parameters"] == second["parameters"] == {"total": 212, "trainable": 212}


# -- how a script ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "text"),
    [
        pytest.param("raise", "ValueError: the data are wrong", marks=pytest.mark.slow),
        ("shape", "RuntimeError: mat1 and mat2 shapes"),
    ],
)
def test_a_script_that_raises(tmp_path: Path, end: str, text: str) -> None:
    """Its traceback is Python's own, also from within its model, and what was seen up to there is kept."""
    args = [str(SCRIPTS / "mlp.py"), "5", end]
    alone = python(*args, cwd=tmp_path, code=1)
    looked_at = run("-o", "run.json", *PLAN, *args, cwd=tmp_path, code=1)
    assert alone.stderr in looked_at.stderr
    assert looked_at.stdout == alone.stdout
    [entry] = saved(tmp_path / "run.json")
    assert (entry["outcome"], entry["exit_code"], len(entry["steps"])) == ("error", 1, 3)
    assert entry["error"].startswith(text)
    assert entry["memory"] is None
    assert "the training ended after 5 optimizer steps" in entry["unmodelled"][-1]


@posix
@pytest.mark.parametrize(("end", "code", "outcome"), [("exit", 3, "error"), ("hard", 7, "killed")])
def test_exit_codes_are_the_script_s(tmp_path: Path, end: str, code: int, outcome: str) -> None:
    """Of one that leaves without Python's farewell, what had been written before is there."""
    run("-o", "run.json", *PLAN, str(SCRIPTS / "mlp.py"), "8", end, cwd=tmp_path, code=code)
    [entry] = saved(tmp_path / "run.json")
    assert (entry["outcome"], len(entry["steps"])) == (outcome, 3)
    assert entry["memory"]["weights_bytes"] == 212 * 4


@posix
def test_ctrl_c(tmp_path: Path) -> None:
    """130, and the traceback of where it was."""
    command = [sys.executable, "-m", "lorafa_prof", "run", "-o", "run.json", *PLAN, str(SCRIPTS / "mlp.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "5", "sleep"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("4 "):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in err
    assert "launch.py" not in err
    [entry] = saved(tmp_path / "run.json")
    assert (entry["outcome"], len(entry["steps"])) == ("interrupted", 3)


# -- as Python runs it -------------------------------------------------------------------------------------------

SELF = """
    import sys, os, __main__, dataclasses, pickle
    class Thing: pass
    pickle.loads(pickle.dumps(Thing()))
    print(sys.argv, __name__, __main__.__dict__ is globals(), __package__, __spec__ and __spec__.name)
    print(os.path.relpath(sys.path[0]), os.path.relpath(__file__), sorted(k for k in globals() if k[0] == "_"))
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("args", [[], ["--bs", "3", "-o", "x.json", "--help", "--", "-m"]])
def test_a_script_finds_itself_as_under_python(tmp_path: Path, args: list[str]) -> None:
    """Its arguments, options among them, its name, its folder; and no torch that it has not imported itself."""
    (tmp_path / "sub").mkdir()
    path = "sub/" + script(tmp_path / "sub", SELF)
    assert run("-o", "run.json", path, *args, cwd=tmp_path).stdout == python(path, *args, cwd=tmp_path).stdout
    [entry] = saved(tmp_path / "run.json")
    assert entry["command"] == [path, *args]
    assert (entry["outcome"], entry["steps"], entry["memory"]) == ("ok", [], None)
    assert "did not import torch" in entry["unmodelled"][0]
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("module", ["pack", "pack.train"])
def test_a_module_finds_itself_as_under_python(tmp_path: Path, module: str) -> None:
    (tmp_path / "pack").mkdir()
    script(tmp_path / "pack", "", "__init__.py")
    for name in ("__main__.py", "train.py"):
        script(tmp_path / "pack", SELF, name)
    command = ["-m", module, "--steps", "4"]
    assert run("--steps", "2", *command, cwd=tmp_path).stdout == python(*command, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "text",
    [
        "def f(:\n    pass\n",
        "import sys\nsys.exit('no data')\n",
        "def f():\n    g()\n\ndef g():\n    raise KeyError('x') from ValueError('y')\n\nf()\n",
        "import sys\nsys.excepthook = lambda kind, error, trace: print('mine', kind, trace.tb_lineno)\n1 / 0\n",
        "raise SystemExit(256 + 5)\n",
    ],
    ids=["syntax", "message", "chain", "hook", "large-code"],
)
def test_errors_are_told_as_by_python(tmp_path: Path, text: str) -> None:
    name = script(tmp_path, text)
    code = 5 if "256" in text else 1
    alone, looked_at = python(name, cwd=tmp_path, code=code), run("-o", "r.json", name, cwd=tmp_path, code=code)
    assert looked_at.stdout == alone.stdout
    assert looked_at.stderr.startswith(alone.stderr)
    assert saved(tmp_path / "r.json")[0]["outcome"] == "error"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-o", "run.json", "missing.py"], "there is no script 'missing.py'"),
        (["-o", "run.json", "missing"], "lorafa-prof run -m missing runs a module"),
        (["-o", "run.json", "-m", "no_such_module"], "there is no module 'no_such_module'"),
        (["-o", "run.json", "-m", "train.py"], "to run a file: lorafa-prof run train.py"),
        (["-o", "run.json", "."], "without a __main__.py"),
        (["--format", "json", "train.py"], "stdout is the script's own"),
        (["-o", "no/run.json", "train.py"], "does not exist"),
        (["--steps", "-1", "train.py"], "--steps"),
        ([], "TARGET"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path, "raise SystemExit('not to be run')")
    assert main(["run", *args]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()


# -- the file ----------------------------------------------------------------------------------------------------


def test_a_file_of_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path, "raise SystemExit('not to be run')")
    (tmp_path / "run.json").write_text('{"predictions": []}')
    assert main(["run", "-o", "run.json", "train.py"]) == 2
    assert "choose another file" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == '{"predictions": []}'


def test_other_commands_in_the_file_stay_and_the_same_is_replaced(tmp_path: Path) -> None:
    """Wherever the script goes meanwhile."""
    name = script(tmp_path, "import os, sys; os.chdir('/'); sys.exit(int(sys.argv[1]))")
    for code in (0, 3, 0):
        run("-o", "run.json", name, str(code), cwd=tmp_path, code=code)
    assert [(e["command"], e["outcome"]) for e in saved(tmp_path / "run.json")] == [
        ([name, "3"], "error"), ([name, "0"], "ok"),
    ]  # fmt: skip


def test_without_a_file_there_is_a_table_on_stderr(tmp_path: Path) -> None:
    done = run(*PLAN, str(SCRIPTS / "mlp.py"), "8", cwd=tmp_path)
    assert re.search(r"peak allocated +[\d.,]+ KiB", done.stderr)
    assert "peak allocated" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_other_forms_of_the_result(tmp_path: Path) -> None:
    name = script(tmp_path, "print('hello')")
    assert run("-o", "run.csv", name, cwd=tmp_path).stdout == "hello\n"
    assert (tmp_path / "run.csv").read_text().splitlines()[1].count("train.py") == 1


def test_a_comparison_shows_it_alone_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("-o", "run.json", script(tmp_path, "print('hello')"), cwd=tmp_path)
    assert main(["compare", str(tmp_path / "run.json")]) == 0
    assert "nothing can be predicted" in " ".join(capsys.readouterr().out.split())
