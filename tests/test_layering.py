"""The package keeps to its layers: who may import whom, what the quick engine never loads, what no file contains."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lorafa_prof"

#: Each layer and the layers right beneath it. A layer may use all that it reaches downwards, and itself.
BENEATH: dict[str, set[str]] = {
    "__init__": set(),
    "errors": {"__init__"},
    "units": {"errors"},
    "layers": {"errors"},
    "allocator": {"errors", "units"},
    "specs": {"errors", "units", "layers"},
    "ledger": {"specs"},
    "sharding": {"specs"},
    "contradictions": {"specs"},
    "catalog": {"specs"},
    "cards": {"catalog"},
    "saved_results": {"catalog", "results"},
    "predicting": {"cards", "compare", "engines"},
    "patterns": {"errors"},
    "pattern_targets": {"patterns", "analytic", "workload"},
    "configs": {"catalog", "patterns"},
    "results": {"ledger"},
    "lengths": {"catalog", "results"},
    "search": {"__init__"},
    "registry": {"__init__"},
    "speed": {"results", "catalog"},
    "thresholds": {"results", "search"},
    "advice": {"thresholds"},
    "capacity": {"analytic"},
    "analytic": {"lengths", "thresholds", "registry", "sharding", "contradictions", "speed", "allocator"},
    "claims": {"analytic"},
    "runs": {"pattern_targets"},
    "lorafa": {"specs"},
    "workload": {"specs", "lorafa", "registry", "sharding", "contradictions", "ledger"},
    "simulate": {"workload", "lengths", "thresholds", "speed", "allocator"},
    "measure": {"results", "workload", "speed"},
    "calibrate": {"measure", "simulate"},
    "compare": {"results"},
    "diff": {"results"},
    "engines": {"analytic", "simulate"},
    "elsewhere": {"engines"},
    "reports": {"results"},
    "thresholds_asked": {"advice", "compare", "engines", "runs"},
    "api": {"predicting", "saved_results", "diff", "elsewhere", "configs", "thresholds_asked", "reports"},
    "cli": {"api", "capacity", "claims", "calibrate"},
    "__main__": {"cli"},
}

#: Layers that run the real step: they are reached only when asked for, and may import the extras at the top.
REAL_STEP = {"lorafa", "workload", "simulate", "measure", "calibrate"}
#: Layers of the quick engine: they start at the speed of Python.
QUICK = {
    "__init__",
    "errors",
    "units",
    "search",
    "registry",
    "layers",
    "allocator",
    "specs",
    "ledger",
    "sharding",
    "contradictions",
    "results",
    "thresholds",
    "lengths",
    "catalog",
    "speed",
    "analytic",
}
#: Packages that cost a start more than the whole quick engine does.
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "pandas", "matplotlib"}
#: Dependencies of the core that are imported only where they are used.
WHERE_USED = {"pandas", "matplotlib", "huggingface_hub", "yaml"}
#: Distributions whose module has another name.
MODULE_OF = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}


@dataclass(frozen=True)
class Import:
    """One import statement, or one call of import_module with a literal name."""

    importer: str
    target: str
    line: int
    in_function: bool = False
    for_typing: bool = False

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


class _Imports(ast.NodeVisitor):
    def __init__(self, module: str, is_package: bool, modules: set[str]) -> None:
        self.module, self.modules = module, modules
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: list[Import] = []
        self.in_function = self.for_typing = False

    def add(self, target: str, node: ast.stmt | ast.expr) -> None:
        self.found.append(Import(self.module, target, node.lineno, self.in_function, self.for_typing))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        origin = node.module or ""
        if node.level:
            parents = self.package.split(".")
            origin = ".".join([*parents[: len(parents) - node.level + 1], *([origin] if origin else [])])
        for alias in node.names:
            submodule = f"{origin}.{alias.name}"
            self.add(submodule if submodule in self.modules else origin, node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if called in ("import_module", "__import__") and isinstance(literal, str):
            self.add(literal, node)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        before, self.in_function = self.in_function, True
        self.generic_visit(node)
        self.in_function = before

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef  # noqa: N815 - ast chooses the names

    def visit_If(self, node: ast.If) -> None:
        before = self.for_typing
        self.for_typing = before or ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self.for_typing = before
        for child in node.orelse:
            self.visit(child)


def imports_of(source: str, module: str, modules: set[str], *, is_package: bool = False) -> list[Import]:
    """Every import in `source`, the text of `module`, wherever in it it stands; `modules` are the package's own."""
    visitor = _Imports(module, is_package, modules)
    visitor.visit(ast.parse(source))
    return visitor.found


def source_files() -> dict[str, Path]:
    """The package's modules by name."""
    files = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def all_imports() -> list[Import]:
    files = source_files()
    return [
        found
        for module, path in files.items()
        for found in imports_of(path.read_text("utf-8"), module, set(files), is_package=path.stem == "__init__")
    ]


def layer_of(module: str) -> str:
    """`lorafa_prof.analytic.flops` -> `analytic`; the package itself -> `__init__`."""
    return [*module.split("."), "__init__"][1]


def reach(layer: str) -> set[str]:
    """All layers beneath `layer`, and itself."""
    return {layer}.union(*(reach(below) for below in BENEATH[layer]))


IMPORTS = all_imports()
INTERNAL = [found for found in IMPORTS if found.top == PACKAGE]
EXTERNAL = [found for found in IMPORTS if found.top not in sys.stdlib_module_names | {PACKAGE}]


def shown(wrong: list[Import]) -> str:
    return "\n" + "\n".join(str(found) for found in wrong)


class TestTheTable:
    """The table of layers says what the design promises; a change of it must not lose that on the way."""

    def test_every_module_belongs_to_a_layer(self) -> None:
        """A new module or folder needs its row in BENEATH."""
        assert {layer_of(module) for module in source_files()} <= set(BENEATH)

    def test_an_observation_shares_nothing_with_a_prediction(self) -> None:
        """`measure` reaches neither engine that predicts."""
        assert not reach("measure") & {"analytic", "simulate"}

    def test_reports_only_render(self) -> None:
        """`reports` reaches no engine, and so cannot compute."""
        assert not reach("reports") & {"analytic", "simulate", "measure", "workload"}

    def test_the_quick_engine_reaches_quick_layers_only(self) -> None:
        """Nothing beneath `analytic` runs the real step."""
        assert reach("analytic") == QUICK
        assert reach("catalog") <= QUICK

    def test_the_command_line_reaches_everything(self) -> None:
        """No layer is an island."""
        assert reach("__main__") == set(BENEATH)


class TestTheImports:
    """The code keeps to the table."""

    def test_imports_go_down(self) -> None:
        """A module imports from its own layer or from one beneath, inside functions as well."""
        wrong = [i for i in INTERNAL if layer_of(i.target) not in reach(layer_of(i.importer))]
        assert not wrong, shown(wrong)

    def test_no_module_is_part_of_a_circle(self) -> None:
        """Not within a layer either, and not by way of an import inside a function; a name that is only imported for
        an annotation does not load anything.
        """
        graph: dict[str, set[str]] = {}
        for found in (i for i in INTERNAL if not i.for_typing):
            graph.setdefault(found.importer, set()).add(found.target)
        list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle

    def test_the_quick_engine_imports_nothing_heavy(self) -> None:
        """Not inside a function and not for typing either: the catalog and the closed forms do without."""
        wrong = [i for i in EXTERNAL if i.top in HEAVY and layer_of(i.importer) in QUICK]
        assert not wrong, shown(wrong)

    def test_what_is_rarely_needed_is_imported_where_it_is_used(self) -> None:
        """Outside the layers of the real step, the large dependencies are imported inside functions."""
        wrong = [
            i
            for i in EXTERNAL
            if i.top in HEAVY | WHERE_USED
            and layer_of(i.importer) not in REAL_STEP
            and not (i.in_function or i.for_typing)
        ]
        assert not wrong, shown(wrong)

    def test_the_command_line_reaches_the_real_step_only_when_it_runs_it(self) -> None:
        """Importing `cli`, and with it every command's module, imports no layer that needs an extra."""
        wrong = [
            i
            for i in INTERNAL
            if layer_of(i.target) in REAL_STEP
            and layer_of(i.importer) not in REAL_STEP
            and not (i.in_function or i.for_typing)
        ]
        assert not wrong, shown(wrong)

    def test_every_package_that_is_imported_is_a_declared_dependency(self) -> None:
        """The core uses the core's dependencies; an extra is used by the real step, or inside a function."""
        core, extras = declared()
        wrong = [
            i
            for i in EXTERNAL
            if i.top not in core
            and not (i.top in extras and (i.in_function or i.for_typing or layer_of(i.importer) in REAL_STEP))
        ]
        assert not wrong, shown(wrong)


def declared() -> tuple[set[str], set[str]]:
    """Module names of the core's dependencies, and of the extras that users install."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    lists = dict(re.findall(r"^(dependencies|parquet|torch|qlora) = \[(.*?)\]", text, flags=re.DOTALL | re.MULTILINE))
    names = {key: set(re.findall(r'"([\w-]+)', value)) for key, value in lists.items()}
    modules = {key: {MODULE_OF.get(n, n.replace("-", "_")) for n in value} for key, value in names.items()}
    return modules["dependencies"], modules["parquet"] | modules["torch"] | modules["qlora"]


class TestTheWalker:
    """The walker sees what the rules are about."""

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("import torch.nn", ("torch.nn", False, False)),
            ("import os.path as p", ("os.path", False, False)),
            ("from p.b import thing", ("p.b", False, False)),
            ("from p import b", ("p.b", False, False)),
            ("from . import b", ("p.b", False, False)),
            ("from .b import thing", ("p.b", False, False)),
            ("def f():\n    import torch", ("torch", True, False)),
            ("async def f():\n    import torch", ("torch", True, False)),
            ("class C:\n    def m(self):\n        if self:\n            import torch", ("torch", True, False)),
            ("class C:\n    import torch", ("torch", False, False)),
            ("try:\n    import torch\nexcept ImportError:\n    pass", ("torch", False, False)),
            ("if TYPE_CHECKING:\n    import torch", ("torch", False, True)),
            ("if TYPE_CHECKING:\n    if sys:\n        import torch", ("torch", False, True)),
            ("if typing.TYPE_CHECKING:\n    pass\nelse:\n    import torch", ("torch", False, False)),
            ("importlib.import_module('torch.nn')", ("torch.nn", False, False)),
            ("f = lambda: __import__('torch')", ("torch", True, False)),
        ],
    )
    def test_an_import_is_found_wherever_it_stands(self, source: str, expected: tuple[str, bool, bool]) -> None:
        """In functions, classes, branches, calls; relative or absolute."""
        (found,) = imports_of(source, "p.a", {"p", "p.a", "p.b"})
        assert (found.target, found.in_function, found.for_typing) == expected

    def test_a_package_is_its_own_parent(self) -> None:
        """In an __init__.py one dot is the package itself."""
        (found,) = imports_of("from .b import thing", "p", {"p", "p.b"}, is_package=True)
        assert found.target == "p.b"


PROBE = """
import json, sys
import lorafa_prof.cli
sys.argv = ["lorafa-prof", "predict", "--model", "llama2-7b", "--bs", "8", "--seq", "1024"]
try:
    code = lorafa_prof.cli.main()
except SystemExit as stop:
    code = stop.code
print()
print(json.dumps({"code": code or 0, "loaded": sorted(sys.modules)}))
"""


def test_a_prediction_loads_nothing_heavy() -> None:
    """The whole predict command, run in a process of its own, leaves every heavy package alone."""
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0, done.stderr
    assert not (HEAVY | WHERE_USED) & set(said["loaded"])


#: Folders that are no part of the project: environments, caches, builds.
NOT_OURS = re.compile(r"\.(?!ci$).*|__pycache__|build|dist|node_modules|venv|.*\.egg-info")
TEXT = {
    "",
    ".cfg",
    ".css",
    ".csv",
    ".html",
    ".js",
    ".json",
    ".md",
    ".py",
    ".sh",
    ".svg",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}
#: A path that only exists on the machine of whoever wrote it; the look-behind spares URLs and relative paths.
LOCAL_PATH = re.compile(r"(?<![\w.~])/(?:work|root|tmp|home|Users)/")
#: Where packages come from is the business of each machine's own pip configuration. In two parts, for this file
#: is walked too.
REGISTRY = re.compile(
    "|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org", "ana" + r"conda\.org"])
    + "|--(?:extra-)?index" + "-url"
)  # fmt: skip


def text_files(folder: Path) -> Iterator[Path]:
    """Every text file of the project under `folder`."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir() and not NOT_OURS.fullmatch(path.name):
            yield from text_files(path)
        elif path.is_file() and path.suffix in TEXT:
            yield path


def lines_with(pattern: re.Pattern[str], folder: Path) -> list[str]:
    """Where `pattern` occurs, as file:line."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in text_files(folder)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


class TestTheTree:
    """What no file of the project contains."""

    def test_no_local_path_in_the_package(self) -> None:
        """A path of one machine means nothing on another."""
        assert lines_with(LOCAL_PATH, ROOT / PACKAGE) == []

    def test_no_package_registry_is_named(self) -> None:
        """Neither in the code nor in the build files, the documentation or the tests."""
        assert lines_with(REGISTRY, ROOT) == []

    def test_the_walk_covers_the_tree(self) -> None:
        """The files that most easily go wrong are among those walked, and the environment is not."""
        walked = {str(path.relative_to(ROOT)) for path in text_files(ROOT)}
        assert {"Makefile", "README.md", "constraints.txt", ".ci/run", "tests/test_layering.py"} <= walked
        assert not any("site-packages" in name for name in walked)

    @pytest.mark.parametrize("path", ["'/tmp/x'", "(/root/.cache)", '"/home/me/run.json"', "/work/a"])
    def test_a_local_path_is_seen(self, path: str) -> None:
        """The pattern finds what it is for..."""
        assert LOCAL_PATH.search(path)

    @pytest.mark.parametrize("text", ["https://a.b/home/x", "~/work/x", "out/tmp/x", "./tmp/x", "and/or"])
    def test_other_slashes_are_left_alone(self, text: str) -> None:
        """...and nothing else."""
        assert not LOCAL_PATH.search(text)
