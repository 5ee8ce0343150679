"""What the wheel and the sdist hold, by the rules of pyproject.toml, as the build tool reads them."""

from __future__ import annotations

import subprocess
from importlib import metadata, resources
from pathlib import Path

import pytest

from lorafa_prof import __version__
from lorafa_prof.catalog import device_names, load_device, load_model, model_names

ROOT = Path(__file__).resolve().parents[2]


def tracked(*paths: str) -> set[str]:
    """The files of the repository below some paths."""
    done = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no repository: an unpacked sdist")
    return set(done.stdout.split())


def test_the_wheel_holds_the_package() -> None:
    """Every file of the package, data and type information among them, and nothing else."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    held = {file.distribution_path for file in builder.recurse_included_files()}
    held = {path for path in held if "__pycache__" not in path}
    assert held >= tracked("lorafa_prof")
    assert all(path.startswith("lorafa_prof/") for path in held)
    assert "lorafa_prof/py.typed" in held
    assert any(path.endswith(".html") for path in held)
    assert any(path.startswith("lorafa_prof/catalog/models/") for path in held)


def test_the_sdist_holds_what_tests_need() -> None:
    """Package, tests and documents: the tests can be run from it. README and licence come with the metadata."""
    sdist = pytest.importorskip("hatchling.builders.sdist")
    builder = sdist.SdistBuilder(str(ROOT))
    held = {file.distribution_path for file in builder.recurse_included_files()}
    assert held >= tracked("lorafa_prof", "tests", "docs", "CHANGELOG.md", "Makefile")


def test_the_installed_package_has_its_data() -> None:
    """As installed, from wherever it is: each model and card is read, and pages have their templates."""
    for name in model_names():
        assert load_model(name).name == name
    for name in device_names():
        assert load_device(name).name == name
    package = resources.files("lorafa_prof")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("reports", "head.html").is_file()


def test_the_licence_and_the_version_are_in_the_metadata() -> None:
    """As pip and an index show them."""
    try:
        found = metadata.metadata("lorafa-prof")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert found["Version"] == __version__
    assert found["License-Expression"] == "MIT"
    assert {"torch", "qlora", "parquet"} <= set(found.get_all("Provides-Extra") or [])
