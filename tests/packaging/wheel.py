"""Builds the wheel and the sdist, and uses them as somebody would who has nothing else: `make test-wheel`.

For each Python that is given, an environment of its own gets the wheel without extras, in which predictions work, and
what needs PyTorch is refused with the command that installs it. With `--extras`, the first Python also gets each extra,
with what it is for; and the tests that need no more than the core run from an unpacked sdist against the installed
wheel, without the checkout. Packages come from the index that pip is set up with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Tests of the core that read nothing of the checkout but tests/ itself.
TESTS = ("tests/cli/test_list.py", "tests/cli/test_ranges.py", "tests/lengths/test_reading.py", "tests/test_units.py",
         "tests/test_search.py", "tests/test_layers.py", "tests/cli/test_emit.py")  # fmt: skip
PREDICT = ("predict", "--model", "llama2-7b", "--bs", "8", "--seq", "1024", "--gpu", "a100-80gb")
#: A step that is small enough for any machine.
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip


def run(*words: str | os.PathLike[str], cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; another exit code than `code` ends everything."""
    # Neither the checkout nor anything else of the caller's is on the way to the installed package.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        words, cwd=cwd, check=False, capture_output=True, text=True, env=clean | (env or {}), timeout=3000
    )
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def build(folder: Path) -> tuple[Path, Path]:
    """Build both, each in an environment of its own as pip makes them; return the wheel and the sdist."""
    out = folder / "dist"
    maker = venv(sys.executable, folder / "build")
    run(maker, "-m", "pip", "install", "--quiet", "build", cwd=folder)
    run(maker, "-m", "build", "--outdir", out, ROOT, cwd=folder)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def venv(python: str, folder: Path) -> Path:
    """Make an environment and return its interpreter."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def check_core(python: Path, folder: Path) -> None:
    """Predictions and all that is made of them work; what needs an extra is refused with the way to it."""
    program = python.with_name("lorafa-prof")
    assert "torch is not installed" in run(program, "--version", cwd=folder)
    assert "peak allocated" in run(program, *PREDICT, cwd=folder)
    run(program, *PREDICT, "-o", "a.json", cwd=folder)
    assert len(json.loads((folder / "a.json").read_text())["predictions"]) == 5
    run(program, "sweep", "--model", "gpt2", "--bs", "1:4", "-o", "a.csv", cwd=folder)
    run(program, "oom", "--model", "gpt2", "--gpu", "t4", "--no-advice", "-o", "oom.json", cwd=folder)
    run(program, "report", "a.json", "oom.json", "-o", "a.html", cwd=folder)
    run(program, "plot", "a.json", "-o", "figures", cwd=folder)
    run(program, "planner", "--model", "gpt2", "--method", "lora", "--gpu", "t4", "-o", "p.html", cwd=folder)
    assert (folder / "a.html").stat().st_size > 10_000
    assert "pip install 'lorafa-prof[torch]'" in run(program, *PREDICT, "--engine", "simulate", cwd=folder, code=3)
    assert "lorafa-prof[torch]" in run(program, "measure", "--model", "gpt2", "--device", "cpu", cwd=folder, code=3)
    assert "lorafa-prof[torch]" in run(program, "calibrate", cwd=folder, code=3)
    assert "pyarrow" in run(program, "sweep", "--model", "gpt2", "-o", "a.parquet", cwd=folder, code=3)
    run(python, "-c", "import lorafa_prof as lp; lp.predict('gpt2', method='lora').to_frame()", cwd=folder)


def check_parquet(python: Path, folder: Path) -> None:
    """Sweeps as Parquet."""
    run(python.with_name("lorafa-prof"), "sweep", "--model", "gpt2", "-o", "a.parquet", cwd=folder)


def check_torch(python: Path, folder: Path) -> None:
    """The simulation, and a measurement on the CPU that it is held against."""
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(TINY))
    program = python.with_name("lorafa-prof")
    tiny = ("--model", "./tiny", "--bs", "2", "--seq", "32", "--rank", "4", "--method", "lora")
    assert "peak reserved" in run(program, "predict", *tiny, "--engine", "simulate", cwd=folder)
    run(program, "measure", *tiny, "--device", "cpu", "--steps", "2", "-o", "run.json", cwd=folder)
    run(program, "compare", "run.json", "--engine", "simulate", "--tolerance", "1%", cwd=folder)


def check_qlora(python: Path, folder: Path) -> None:
    """A real step over 4-bit weights, on the CPU."""
    tiny = ("--model", "./tiny", "--bs", "2", "--seq", "32", "--rank", "4", "--method", "qlora")
    run(
        python.with_name("lorafa-prof"), "measure", *tiny, "--device", "cpu", "--steps", "1", "-o", "q.json", cwd=folder
    )


def check_tests(python: Path, sdist: Path, folder: Path) -> None:
    """Tests of the unpacked sdist, whose own package is taken away, against the installed wheel."""
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    shutil.rmtree(unpacked / "lorafa_prof")
    run(python, "-m", "pip", "install", "--quiet", "hypothesis", "pytest", cwd=folder)
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=unpacked)
    print(said.strip().splitlines()[-1])


def check(python: str, wheel: Path, sdist: Path, folder: Path, extras: Sequence[str]) -> None:
    """Make the environment of one Python, and use it."""
    folder.mkdir()
    inside = venv(python, folder / "venv")
    print(run(inside, "--version", cwd=folder).strip(), flush=True)
    install = (inside, "-m", "pip", "install", "--quiet")
    run(*install, wheel, cwd=folder)
    check_core(inside, folder)
    print("  without extras: ok", flush=True)
    if extras:
        check_tests(inside, sdist, folder)
    for extra in extras:
        run(*install, f"{wheel}[{extra}]", cwd=folder)
        {"parquet": check_parquet, "torch": check_torch, "qlora": check_qlora}[extra](inside, folder)
        print(f"  with {extra}: ok", flush=True)


def main() -> None:
    """Read the arguments and go through all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters to try it with")
    parser.add_argument(
        "--extras", default="parquet,torch,qlora", help="comma list, for the first of them; '' for none"
    )
    options = parser.parse_args()
    extras = [extra for extra in options.extras.split(",") if extra]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; {sdist.name}: {sdist.stat().st_size:,} bytes", flush=True)
        for number, python in enumerate(options.pythons):
            check(python, wheel, sdist, folder / str(number), extras if number == 0 else [])


if __name__ == "__main__":
    main()
