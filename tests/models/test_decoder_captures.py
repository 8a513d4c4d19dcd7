"""Decoders captured from both implementations: the same work and the same memory."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import perfmodel as pm

#: What differs from GPT-2 and Llama in more than elementwise ops, with as many layers as it has kinds of them.
NAMES = {
    "mixtral-8x7b": 2,
    "qwen3-30b-a3b": 2,
    "deepseek-v3": 4,
    "gpt-oss-20b": 2,
    "mistral-7b-v0.1": 2,
    "gemma-3-1b": 6,
}
#: Longer than the windows of gpt-oss and Gemma 3.
SEQ = 640


@functools.cache
def captured(name: str, implementation: str) -> pm.Graph:
    return pm.capture(
        name,
        batch=2,
        seq_len=SEQ,
        layers=NAMES[name],
        optimizer="sgd",
        implementation=implementation,
        folded=False,
        cache=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_same_matrix_flops_and_memory(name: str) -> None:
    ours, theirs = captured(name, "reference"), captured(name, "huggingface")
    assert ours.flops(unit="matrix") == theirs.flops(unit="matrix") > 0
    for phase in ("forward", "backward"):
        assert ours.flops(phase=phase) == theirs.flops(phase=phase)
    assert pm.memory_profile(ours).peak == pytest.approx(pm.memory_profile(theirs).peak, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_a_rule(name: str) -> None:
    for implementation in ("reference", "huggingface"):
        coverage = captured(name, implementation).coverage
        assert not coverage.missing
        assert (coverage.ops, coverage.bytes) == (1, 1)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-20b", "deepseek-v3"])
def test_close_to_the_closed_form(name: str) -> None:
    """The few layers have the head's share too; what is left is a kernel's recompute of attention scores."""
    graph = captured(name, "reference")
    closed_form = pm.closed_form_flops(graph)
    assert closed_form is not None
    assert graph.flops(recompute=False) == pytest.approx(closed_form, rel=0.001)


def windows(graph: pm.Graph) -> list[int | None]:
    """The window of each attention of forward."""
    return [op.attrs.get("window") for op, n in graph.ops() for _ in range(n) if op.name == "perfmodel.attention"]


@pytest.mark.parametrize("implementation", ["reference", "huggingface"])
def test_windows_reach_the_captured_op(implementation: str) -> None:
    assert windows(captured("gemma-3-1b", implementation)) == [*5 * [512], None]
    assert windows(captured("mistral-7b-v0.1", implementation)) == 2 * [4096]
