"""The paper's tables: formulas that print what they evaluate, figures against the reconstruction and real models."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from itertools import product
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lorafa_prof.analytic.paper import (
    CERTAINTY,
    LETTERS,
    TABLES,
    Dims,
    Formula,
    PaperCell,
    dims_of,
    llama_dims,
    paper_table,
    table_1,
    table_6,
    table_7,
    table_c3,
    text_figures,
)
from lorafa_prof.catalog import load_model, model_names
from lorafa_prof.errors import UnsupportedError

LLAMA2_7B = llama_dims("llama2-7b", hidden=4096, ffn=11008, layers=32, vocab=32000, heads=32)
GIB = 2**30

#: Written out by hand, so that the tables' own numbers are not what they are tested with.
SYMBOLS = {
    "b": 8, "s": 1024, "r": 64, "d": 4096, "f": 11008, "a": 4096, "h": 32, "L": 32, "l": 7, "v": 32000,
    "M": 11008, "K": 11008, "Σm": 6 * 4096 + 11008, "Σk": 5 * 4096 + 2 * 11008,
    "Σmk": 4 * 4096**2 + 3 * 4096 * 11008, "P": 6_738_415_616, "Q": 6_476_005_376, "U": 262_410_240,
}  # fmt: skip


def evaluate(text: str, numbers: dict[str, int]) -> Fraction:
    """Evaluate a printed formula by other means: turn it into Python and let Python compute."""
    names = sorted(numbers, key=len, reverse=True)
    python = text
    for index, name in enumerate(names):
        python = re.sub(re.escape(name), f"*<{index}>", python)
    python = python.replace("²", "**2")
    python = re.sub(r"(^|[+-])\*", r"\1 1*", python)
    python = re.sub(r"<(\d+)>", lambda match: f"numbers[names[{match[1]}]]", python)
    python = re.sub(r"(?<![\w\[])(\d+)(?![\d\]])", r"Fraction(\1)", python)
    return Fraction(eval(python, {"Fraction": Fraction, "numbers": numbers, "names": names}))


def is_dense(name: str) -> bool:
    spec = load_model(name)
    return not (spec.moe or spec.mla or spec.num_decoder_layers)


def all_cells(dims: Dims = LLAMA2_7B) -> list[tuple[str, PaperCell]]:
    return [(key, cell) for key in TABLES for cell in paper_table(key, dims).cells]


class TestFormula:
    """Formulas as data."""

    @pytest.mark.parametrize(
        "text", ["2bsd+2bsr", "5sd", "9bhss", "Q/64", "3Q/2", "Lld²+vd", "mk-2r²", "LrΣm+LrΣmk", "0", "7", "ΣmΣk"]
    )
    def test_it_prints_as_it_was_written(self, text: str) -> None:
        """Nothing is rearranged: a printed cell stays as printed."""
        assert str(Formula.parse(text)) == text

    def test_like_terms_merge_in_any_spelling(self) -> None:
        """bsd and dbs are one product, dd and d² as well; what cancels is gone."""
        assert str(Formula.parse("bsd+2dbs+bhss")) == "3bsd+bhss"
        assert str(Formula.parse("dd") + Formula.parse("d²")) == "2dd"
        assert str(Formula.parse("2mk+r-2mk")) == "r"

    @pytest.mark.parametrize("text", ["+", "b+", "b++s", "2*b", "b²²", "Σ", "b/", "(b+s)", "1.5b", "2²"])
    def test_what_is_no_formula(self, text: str) -> None:
        """Only sums of products are understood."""
        with pytest.raises(ValueError, match=re.escape(text)):
            Formula.parse(text)

    def test_spaces_do_not_matter(self) -> None:
        """They may stand anywhere."""
        assert str(Formula.parse(" 2bs d + r ")) == "2bsd+r"

    def test_products_keep_sums_apart(self) -> None:
        """Σm times k is not Σmk."""
        formula = Formula.parse("Σm") * Formula.parse("k")
        assert formula.evaluate({"Σm": 10, "k": 3, "Σmk": 999}) == 30
        assert Formula.parse(str(formula)) == formula

    def test_a_missing_number_is_an_error(self) -> None:
        """No symbol counts as zero by default."""
        with pytest.raises(KeyError, match="d"):
            Formula.parse("bsd").evaluate({"b": 1, "s": 1})

    terms = st.tuples(
        st.integers(-99, 99),
        st.lists(st.sampled_from(["b", "s", "d²", "Σm", "Σmk", "r"]), max_size=4),
        st.integers(1, 9),
    )
    formulas = st.lists(terms, max_size=5).map(
        lambda found: sum((Formula.parse(f"{n}{''.join(names)}/{q}") for n, names, q in found), Formula(()))
    )
    NUMBERS: ClassVar = {"b": 3, "s": 5, "d": 7, "Σm": 11, "Σmk": 13, "r": 17}

    @given(formulas)
    def test_text_and_value_agree(self, formula: Formula) -> None:
        """What is printed, evaluated by other means, is the value; and it parses back."""
        assert evaluate(str(formula), self.NUMBERS) == formula.evaluate(self.NUMBERS)
        assert Formula.parse(str(formula)).evaluate(self.NUMBERS) == formula.evaluate(self.NUMBERS)

    @given(formulas, formulas)
    def test_sums_and_products(self, one: Formula, other: Formula) -> None:
        """Adding and multiplying formulas adds and multiplies their values."""
        values = one.evaluate(self.NUMBERS), other.evaluate(self.NUMBERS)
        assert (one + other).evaluate(self.NUMBERS) == values[0] + values[1]
        assert (one * other).evaluate(self.NUMBERS) == values[0] * values[1]


class TestEveryCell:
    """What holds for all cells of all tables."""

    @pytest.mark.parametrize("key", TABLES)
    def test_the_printed_formula_is_the_number(self, key: str) -> None:
        """Evaluated from its text with the cell's own symbols."""
        for cell in paper_table(key, LLAMA2_7B).cells:
            assert evaluate(str(cell.formula), dict(cell.symbols)) == cell.value, cell

    def test_the_numbers_are_llama2_7b(self) -> None:
        """The symbols have the values written out above; m and k are one linear layer's."""
        for key, cell in all_cells():
            if key == "text":
                continue
            common = {name: value for name, value in cell.symbols.items() if name not in "mk"}
            assert common == {name: SYMBOLS[name] for name in common}

    def test_every_symbol_is_explained(self) -> None:
        """And every certainty."""
        assert {name for _, cell in all_cells() for name in cell.symbols} <= set(LETTERS)
        assert {cell.certainty for _, cell in all_cells()} == set(CERTAINTY)

    def test_cells_are_found_by_one_name(self) -> None:
        """Row, column and group name exactly one cell; anything else is an error."""
        for key in TABLES:
            table = paper_table(key, LLAMA2_7B)
            for cell in table.cells:
                assert table.cell(cell.row, cell.column, cell.group) is cell
        with pytest.raises(KeyError, match="0 cells"):
            table_1(LLAMA2_7B).cell("LoRA", "B")
        with pytest.raises(KeyError, match="3 cells"):
            table_1(LLAMA2_7B).cell("LoRA", "A")


class TestTable1:
    """One linear layer."""

    EXPECTED: ClassVar = {
        "Full-FT": ("mk", "2mk", "2mk", "8mk", "12mk", "2bsm"),
        "LoRA": ("rm+rk", "2mk+2rm+2rk", "2rm+2rk", "8rm+8rk", "12rm+12rk", "2bsm+2bsr"),
        "LoRA-FB": ("rm", "2mk+2rm+2rk", "2rm", "8rm", "12rm", "2bsm"),
        "LoRA-FA": ("rk", "2mk+2rm+2rk", "2rk", "8rk", "12rk", "2bsr"),
    }
    COLUMNS: ClassVar = ("#TP", "W", "G", "O", "O + master", "A")

    def test_formulas(self) -> None:
        """As reconstructed."""
        table = table_1(LLAMA2_7B)
        group = table.cells[0].group
        found = {
            method: tuple(str(table.cell(method, column, group).formula) for column in self.COLUMNS)
            for method in self.EXPECTED
        }
        assert found == self.EXPECTED

    def test_square_layer(self) -> None:
        """A query projection at b = 8, s = 1024, r = 64."""
        table = table_1(LLAMA2_7B)
        group = "q, k, v, o: m = 4096, k = 4096"
        assert table.cell("LoRA", "A", group).value == 68_157_440
        assert table.cell("LoRA-FA", "A", group).value == 1_048_576
        assert table.cell("Full-FT", "O + master", group).value == 12 * 4096**2

    def test_only_what_the_paper_is_known_to_print_is_called_printed(self) -> None:
        """Its A column for LoRA and LoRA-FA."""
        printed = {(c.row, c.column) for c in table_1(LLAMA2_7B).cells if c.certainty == "as printed"}
        assert printed == {("LoRA", "A"), ("LoRA-FA", "A")}

    def test_each_shape_of_a_block_has_its_numbers(self) -> None:
        """Layers of one shape share a group."""
        groups = dict.fromkeys(cell.group for cell in table_1(LLAMA2_7B).cells)
        assert list(groups) == [
            "q, k, v, o: m = 4096, k = 4096", "gate, up: m = 4096, k = 11008", "down: m = 11008, k = 4096",
        ]  # fmt: skip


class TestTable6:
    """Parameters, gradients, optimizer states."""

    @pytest.mark.parametrize(
        ("method", "total", "trained"),
        [
            ("Full-FT", 6_738_415_616, 6_738_415_616),
            ("LoRA", 6_898_323_456, 159_907_840),
            ("LoRA-FA", 6_898_323_456, 87_031_808),
            ("QLoRA", 6_898_323_456, 159_907_840),
            # vectors: 32 x (42,496 + 7 x 64); the frozen pair 64 x (11,008 + 11,008)
            ("VeRA", 6_738_415_616 + 1_409_024 + 1_374_208, 1_374_208),
        ],
    )
    def test_exact_counts(self, method: str, total: int, trained: int) -> None:
        """Counted on the real models."""
        table = table_6(LLAMA2_7B)
        assert (table.cell(method, "#P exact").value, table.cell(method, "#TP exact").value) == (total, trained)

    def test_twice_the_rank_trains_more_than_lora(self) -> None:
        """LoRA-FA at r = 128 against LoRA at 64: equal for square layers, more for Llama's."""
        doubled, plain = table_6(LLAMA2_7B, rank=128), table_6(LLAMA2_7B, rank=64)
        assert doubled.cell("LoRA-FA", "#TP square").value == plain.cell("LoRA", "#TP square").value
        assert doubled.cell("LoRA-FA", "#TP exact").value == 174_063_616 > plain.cell("LoRA", "#TP exact").value

    @pytest.mark.parametrize(
        ("precision", "full", "lora", "gradients"),
        [
            ("FP32", "16P", "4P+16LrΣm+16LrΣk", "4LrΣk"),
            ("pure 16-bit", "8P", "2P+8LrΣm+8LrΣk", "2LrΣk"),
            ("autocast", "16P", "4P+16LrΣm+16LrΣk", "4LrΣk"),
            ("mixed with master", "16P", "2P+16LrΣm+16LrΣk", "2LrΣk"),
            ("PEFT default", None, "2P+16LrΣm+16LrΣk", "4LrΣk"),
        ],
    )
    def test_bytes_under_each_precision(self, precision: str, full: str | None, lora: str, gradients: str) -> None:
        """Sums of M_P, M_G and M_O; PEFT's default is no way of full fine-tuning."""
        table = table_6(LLAMA2_7B)
        assert str(table.cell("LoRA", "sum", precision).formula) == lora
        assert str(table.cell("LoRA-FA", "M_G", precision).formula) == gradients
        if full is None:
            with pytest.raises(KeyError):
                table.cell("Full-FT", "sum", precision)
        else:
            assert str(table.cell("Full-FT", "sum", precision).formula) == full

    def test_nf4_with_double_quantisation(self) -> None:
        """4.127 bits a quantised parameter: 3.341 GB for the 7B model, and 1.05 GB for the rest in fp32."""
        cell = table_6(LLAMA2_7B).cell("QLoRA", "M_P", "PEFT default")
        adapters = 4 * 159_907_840
        assert cell.value - adapters - 4 * SYMBOLS["U"] == SYMBOLS["Q"] * 4.126953125 / 8
        assert round(SYMBOLS["Q"] * 4.126953125 / 8 / 1e9, 3) == 3.341
        assert round(4 * SYMBOLS["U"] / 1e9, 2) == 1.05

    def test_the_parts_add_up(self) -> None:
        """Each sum is M_P + M_G + M_O."""
        table = table_6(LLAMA2_7B)
        for cell in table.cells:
            if cell.column == "sum":
                parts = [table.cell(cell.row, name, cell.group).value for name in ("M_P", "M_G", "M_O")]
                assert cell.value == sum(parts)


class TestTable7:
    """Activations of a GPT block."""

    @pytest.mark.parametrize(
        ("data_type", "printed", "cells", "corrected", "fused"),
        [
            ("FP32", "114bsd+9bhss", "114bsd+9bhss", "114bsd+9bhss", "66bsd+9bhss"),
            ("Pure-FP16", "58bsd+5bhss", "34bsd+5bhss", "58bsd+5bhss", "34bsd+5bhss"),
            ("Autocast-BF16", "86bsd+7bhss", "30bsd+7bhss+5sd", "86bsd+7bhss", "38bsd+7bhss"),
        ],
    )
    def test_sums(self, data_type: str, printed: str, cells: str, corrected: str, fused: str) -> None:
        """The corrected cells make every printed sum exact; the printed ones make one of three."""
        table = table_7(LLAMA2_7B)
        assert str(table.cell("sum", f"{data_type} printed").formula) == printed
        assert str(table.cell("printed cells added up", f"{data_type} printed").formula) == cells
        assert str(table.cell("sum", f"{data_type} corrected").formula) == corrected
        assert str(table.cell("with a fused GELU", f"{data_type} corrected").formula) == fused

    def test_two_cells_are_wrong_and_no_other(self) -> None:
        """What the saved tensors say differs from the print in two gelu cells."""
        table = table_7(LLAMA2_7B)
        wrong = {}
        for cell in table.cells:
            if cell.group != "sum" and cell.column.endswith(" printed"):
                right = table.cell(cell.row, cell.column.replace("printed", "corrected"), cell.group)
                if str(right.formula) != str(cell.formula):
                    wrong[cell.row, cell.column.removesuffix(" printed")] = str(cell.formula), str(right.formula)
        assert wrong == {("gelu", "Pure-FP16"): ("8bsd", "32bsd"), ("gelu", "Autocast-BF16"): ("5sd", "56bsd")}

    def test_every_printed_cell(self) -> None:
        """The rows as they stand in the paper, left to right."""
        rows = {
            "FP32": "4bsd 4bsd 12bsd 4bhss bhss 4bhss 4bsd bsd 4bsd 4bsd 64bsd 16bsd bsd",
            "Pure-FP16": "2bsd 2bsd 6bsd 2bhss bhss 2bhss 2bsd bsd 2bsd 2bsd 8bsd 8bsd bsd",
            "Autocast-BF16": "4bsd 2bsd 6bsd 4bhss bhss 2bhss 2bsd bsd 4bsd 2bsd 5sd 8bsd bsd",
        }
        cells = [cell for cell in table_7(LLAMA2_7B).cells if cell.group != "sum"]
        for name, row in rows.items():
            assert " ".join(str(c.formula) for c in cells if c.column == f"{name} printed") == row

    def test_each_discrepancy_is_explained(self) -> None:
        """In one remark each."""
        remarks = "\n".join(table_7(LLAMA2_7B).remarks)
        for fragment in ("8bsd", "58bsd", '"5sd"', "56bsd", "up is no misprint", "64bsd", "66, 34 and 38"):
            assert fragment in remarks


class TestSaving:
    """C.3 and the claims of the running text."""

    @pytest.mark.parametrize(
        ("rule", "block", "total", "gb", "gib"),
        [
            ("own inputs, 16-bit", "12bsd+2bsf", 18_656_264_192, 18.66, 17.375),
            ("shared once, eager attention", "6bsd+2bsf", 12_213_813_248, 12.21, 11.375),
            ("shared once, SDPA or flash", "4bsd+2bsf", 10_066_329_600, 10.07, 9.375),
            ("own inputs, fp32", "24bsd+4bsf", 37_312_528_384, 37.31, 34.75),
        ],
    )
    def test_llama2_7b(self, rule: str, block: str, total: int, gb: float, gib: float) -> None:
        """Batch 8, sequence 1024, all linear layers, 32 blocks."""
        table = table_c3(LLAMA2_7B)
        cell = table.cell(rule, "all blocks")
        assert str(table.cell(rule, "per block").formula) == block
        assert cell.value == total == 32 * table.cell(rule, "per block").value
        assert (round(cell.value / 1e9, 2), cell.value / GIB) == (gb, gib)

    def test_the_paper_is_quoted_for_its_own_sizes_only(self) -> None:
        """At other sizes its 18 GB say nothing."""
        assert [c.paper for c in table_c3(LLAMA2_7B).cells if c.paper] == ["at least 18 GB"]
        assert not [c for c in table_c3(LLAMA2_7B, bs=4).cells if c.paper]

    def test_heads_wider_than_the_hidden_size(self) -> None:
        """Qwen3-0.6B's attention output has a width of its own, which only the output projection reads."""
        table = table_c3(dims_of(load_model("qwen3-0.6b")))
        assert str(table.cell("own inputs, 16-bit", "per block").formula) == "10bsd+2bsa+2bsf"
        assert str(table.cell("shared once, SDPA or flash", "per block").formula) == "4bsd+2bsf"

    def test_text(self) -> None:
        """130 GB of a 65B model, the terabyte of Llama3-70B, the 8 KB inverse."""
        values = {(c.row, c.group): c for c in text_figures(LLAMA2_7B).cells}
        weights = values["weights, 16-bit", "llama-65b"]
        assert (weights.value, weights.paper) == (2 * 65_285_660_672, "130 GB")
        assert (round(weights.value / 1e9, 1), round(weights.value / GIB, 1)) == (130.6, 121.6)
        full = values["full fine-tuning: W, G, O with master", "llama3-70b"]
        assert full.value == 16 * 70_553_706_496
        assert round(full.value / 1e12, 3) == 1.129
        assert [c.value for c in text_figures(LLAMA2_7B).cells if "inverse" in c.row] == [8192, 16384, 224 * 8192]

    def test_the_8_kb_belong_to_rank_64(self) -> None:
        """At another rank the paper is not quoted."""
        assert [c.paper for c in text_figures(LLAMA2_7B, rank=32).cells if "inverse" in c.row] == ["", "", ""]


class TestDims:
    """How sizes are read off a model."""

    def test_llama2_7b(self) -> None:
        """The catalog's model has the sizes that the paper's appendix speaks of."""
        assert dims_of(load_model("llama2-7b")) == LLAMA2_7B
        assert dict(LLAMA2_7B.symbols(8, 1024, 64)) == SYMBOLS

    @pytest.mark.parametrize("name", [name for name in model_names() if is_dense(name)])
    def test_parameters_are_the_published_ones(self, name: str) -> None:
        """For every dense model of the catalog, also where P is a formula."""
        spec = load_model(name)
        dims = dims_of(spec)
        assert dims.symbols(1, 1, 1)["P"] == spec.parameters

    @pytest.mark.parametrize("name", [name for name in model_names() if not is_dense(name)])
    def test_what_is_no_stack_of_dense_blocks(self, name: str) -> None:
        """The paper's formulas do not speak of it, and the error says so."""
        with pytest.raises(UnsupportedError, match=re.escape(name)):
            dims_of(load_model(name))

    def test_a_model_without_a_count(self) -> None:
        """Where P is neither a formula nor published, Table 6 makes nothing up, and the others do without."""
        dims = dims_of(dataclasses.replace(load_model("gpt2"), parameters=None))
        with pytest.raises(UnsupportedError, match=r"gpt2.*--table 1, 7, c3 or text"):
            table_6(dims)
        for key in set(TABLES) - {"6"}:
            assert paper_table(key, dims).cells


class TestAgainstRealModels:
    """The derived cells are what autograd keeps; needs torch."""

    @pytest.mark.parametrize(
        ("rule", "options"),
        [
            ("own inputs, 16-bit", {"amp": True}),
            ("own inputs, 16-bit", {"amp": True, "attn": "eager"}),
            ("shared once, eager attention", {"adapter_dtype": "bf16", "attn": "eager"}),
            ("shared once, SDPA or flash", {"adapter_dtype": "bf16"}),
            ("own inputs, fp32", {}),
            ("own inputs, fp32", {"attn": "eager"}),
        ],
    )
    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    def test_what_lora_fa_saves_over_lora(self, family: str, rule: str, options: dict[str, Any]) -> None:
        """The difference of a real model's saved bytes under PEFT is the rule's, to the byte.

        Ours is the same, but for fp32 adapters on a bf16 model: there it keeps every A x in bf16, 2 bytes less.
        """
        pytest.importorskip("peft")
        from tests.support import observe
        from tests.support.configs import tiny_run

        def saved(method: str) -> int:
            run = tiny_run(family, method, **options)
            return sum(s.nbytes for s in observe.saved_tensors(run) if s.kind == "activation")

        run = tiny_run(family)
        cell = table_c3(dims_of(run.model), bs=run.bs, seq=run.seq).cell(rule, "all blocks")
        narrower = 2 * 7 * run.model.num_layers * run.bs * run.seq * run.method.rank if "fp32" in rule else 0
        assert saved("lora") - saved("lora-fa-peft") == cell.value
        assert saved("lora") - saved("lora-fa") == cell.value + narrower

    @pytest.mark.parametrize(
        ("data_type", "fused"), list(product(("FP32", "Pure-FP16", "Autocast-BF16"), (False, True)))
    )
    def test_gelu(self, data_type: str, fused: bool) -> None:
        """The disputed cell, on GPT-2's own activation: 64, 32 and 56 bsd; 16, 8 and 8 where it is one kernel."""
        torch = pytest.importorskip("torch")
        activations = pytest.importorskip("transformers.activations")
        from tests.support import observe

        b, s, d = 2, 5, 16
        dtype = {"FP32": torch.float32, "Pure-FP16": torch.float16}.get(data_type, torch.bfloat16)
        up = torch.nn.Linear(d, 4 * d, dtype=dtype)
        function = torch.nn.GELU(approximate="tanh") if fused else activations.NewGELUActivation()
        if data_type == "Autocast-BF16" and not fused:
            function = _AutocastGelu()
        x = torch.randn(b, s, d, dtype=dtype)
        block = torch.nn.Sequential(up, function)
        found = {
            kept.storage: kept.nbytes
            for kept in observe.saved_by(block, {"x": x}, lambda: block(x).float().sum())
            if kept.kind == "activation"
        }
        table = table_7(LLAMA2_7B, bs=b, seq=s)
        column = f"{data_type} corrected"
        cell = table.cell("gelu", column)
        expected = cell.formula.evaluate({"b": b, "s": s, "d": d})
        if fused:
            rows = (table.cell(row, column).formula for row in ("sum", "with a fused GELU"))
            both = [formula.evaluate({"b": b, "s": s, "d": d, "h": 0}) for formula in rows]
            expected -= both[0] - both[1]
        assert sum(found.values()) == expected


def _AutocastGelu() -> Any:  # noqa: N802 - stands for a module class, made where torch is known to be there
    """Return GPT-2's activation with the casts that CUDA's autocast puts in: pow runs in fp32."""
    import math

    import torch

    class Gelu(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x.float(), 3.0))
            return 0.5 * x * (1.0 + torch.tanh(inner))

    return Gelu()
