"""The page as a file: self-contained, the same each time, and safe whatever names are in it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.analytic.export import OPTIONS, export
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.cli import main
from lorafa_prof.cli.planner import opening
from lorafa_prof.reports.planner import planner_page

FEW = {name: values[:1] for name, values in OPTIONS.items()}


def small(name: str = "gpt2") -> dict[str, Any]:
    """Plans of one model, under any name, with the default options."""
    model = dataclasses.replace(load_model("gpt2"), name=name)
    return export([model], ["lora-fa"], [load_device("t4")], options=FEW)


def page_of(plans: dict[str, Any]) -> str:
    return planner_page(plans, opening(plans))


def carried(page: str) -> dict[str, Any]:
    """Unpack what a page carries."""
    match = re.search(r'<script id="plans" type="text/plain">([A-Za-z0-9+/=]+)</script>', page)
    assert match is not None
    document: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(match[1])))
    return document


def test_the_page_asks_for_nothing() -> None:
    """No address, no source, no import: everything is in the file, and the policy admits only these bytes."""
    page = page_of(small())
    without_namespace = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"https?:|//[a-z]|\bsrc=|@import|url\((?!#|`)|\bimport\b", without_namespace.split("<body>")[0]
    )
    assert "http" not in re.sub(r"<meta http-equiv", "", without_namespace)
    for kind in ("script", "style"):
        text = re.findall(rf"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert len(text) == 1
        assert f"{kind}-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert not re.search(r"\son\w+=|\sstyle=", page.split("<script")[0])


def test_the_same_plans_give_the_same_bytes() -> None:
    """Nothing of the time, the machine or the order of a set is in the page."""
    assert page_of(small()) == page_of(small())


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--", "{{script}}", "a&b\"'\u2028", "\\1"])
def test_a_name_cannot_leave_its_place(name: str) -> None:
    """A model's name comes from a file; it is carried as it is, and is nowhere in the page as text."""
    page = page_of(small(name))
    assert carried(page)["plans"]["models"][0]["name"] == name
    assert page.count("</script>") == page_of(small()).count("</script>")
    assert "alert(1)" not in page


class TestCommand:
    """`lorafa-prof planner`."""

    def test_it_writes_the_page(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """With the models, methods and cards that were named; stdout stays empty, stderr says how far it is."""
        path = tmp_path / "p.html"
        arguments = ["planner", "--model", "gpt2", "--method", "lora,full", "--gpu", "t4,h100", "-o", str(path)]
        assert main(arguments) == 0
        plans = carried(path.read_text("utf-8"))["plans"]
        assert [model["name"] for model in plans["models"]] == ["gpt2"]
        assert list(plans["models"][0]["methods"]) == ["lora", "full"]
        assert [device["name"] for device in plans["devices"]] == ["t4", "h100"]
        said = capsys.readouterr()
        assert said.out == ""
        assert "2/2 gpt2, full" in said.err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--model", "lama3-8b"], "did you mean"),
            (["--method", "lorra"], "did you mean lora"),
            (["--gpu", "rtx4091"], "did you mean"),
            (["-o", "no/such/folder/p.html"], "does not exist"),
        ],
    )
    def test_what_cannot_be_is_told(self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Before any plan is made."""
        assert main(["planner", *arguments]) == 2
        assert said in capsys.readouterr().err

    def test_what_the_engine_refuses_is_on_the_page(self) -> None:
        """A method of which a page cannot have the plans is there with the reason."""
        plans = export([load_model("gpt2")], ["lora-ga", "lora"], [load_device("t4")], options=FEW)
        numbers = plans["models"][0]["methods"]["lora-ga"]
        reason = "depends on the rank in more than its sizes"
        assert all(number < 0 and reason in plans["texts"][-1 - number] for number in numbers)
