"""Formulas written by hand from the dimensions give what is captured, line by line."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.models import catalogue
from perfmodel.models.explain import explain
from perfmodel.models.inputs import batch_inputs
from perfmodel.report.explain import compared, explanation_text

#: One of each way in which the layers differ.
NAMES = (
    *("gpt2", "llama-3.1-8b", "bert-base-uncased", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b"),
    *("gemma-2-2b", "phi-2", "phi-3-mini", "pythia-410m", "olmo-2-7b"),
    *("t5-small", "flan-t5-small", "whisper-tiny", "vit-base-patch16-224", "mamba-130m", "mamba2-130m"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_what_was_captured(name: str) -> None:
    dims = catalogue.get(name).dims
    layers = {stack.path: stack.prefix + 2 * stack.period for stack in dims.stacks}
    symbols = {size for shape, _ in batch_inputs(dims).values() for size in shape}
    sizes = {"seq_len": 96 if "seq" in symbols else None, "target_seq_len": 40 if "target_seq" in symbols else None}
    graph = pm.capture(name, batch=2, **sizes, layers=layers, optimizer=None, implementation="reference", cache=False)
    explanation = explain(dims.with_depths(layers))
    lines, total = compared(explanation, graph)
    products = [line for line in lines if line.formula.flops]
    assert len(products) >= 5
    assert {line.formula.part: line.captured for line in products} == {
        line.formula.part: line.expected for line in products
    }
    assert explanation.total(graph.bindings) == total
    text = explanation_text(name, explanation, graph)
    assert "(equal)" in text
    assert "!" not in text
    for symbol in explanation.legend:
        assert f"  {symbol.meaning} = " in text


def test_a_formula_that_is_wrong_is_seen() -> None:
    graph = pm.capture("gpt2", batch=2, seq_len=96, layers=2, optimizer=None, implementation="reference", cache=False)
    other = explain(catalogue.get("gpt2-medium").dims.with_depths({"layers": 2}))
    assert "(equal)" not in explanation_text("gpt2", other, graph)
    assert "!" in explanation_text("gpt2", other, graph)


def test_a_family_without_formulas_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no formulas are written down for the family 'resnet'"):
        explain(catalogue.get("resnet-50").dims)
