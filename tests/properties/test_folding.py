"""Folding on random patterns of layers: nothing is lost, and few layers tell of many."""

from __future__ import annotations

from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

import perfmodel as pm
from perfmodel.graph import content_hash, fold, probe_depth, unfold, with_depth
from perfmodel.graph.capture import capture_module
from perfmodel.graph.depth import stretches
from perfmodel.graph.ir import Graph
from perfmodel.graph.paths import module_family, numbered, starred
from tests.graph.stacked import Pattern, kinds, sequences
from tests.graph.test_fold import signature


@cache
def flat(layers: str) -> Graph:
    return capture_module(Pattern(layers), sequences(), optimizer="sgd")


@settings(max_examples=8, deadline=None)
@example(prefix="", period="sssa", groups=4, rest=2)
@example(prefix="pp", period="am", groups=4, rest=1)
@given(
    prefix=st.text("pm", max_size=3),
    period=st.text("asm", min_size=1, max_size=4),
    groups=st.integers(1, 5),
    rest=st.integers(0, 3),
)
def test_patterns_fold_and_few_layers_tell_of_many(prefix: str, period: str, groups: int, rest: int) -> None:
    depth = len(prefix) + groups * len(period) + rest % len(period)
    layers = kinds(depth, period, prefix)
    whole = flat(layers)
    folded = fold(whole)
    assert signature(unfold(folded)) == signature(whole)
    few = probe_depth(depth, prefix=len(prefix), period=len(period))
    assert layers.startswith(kinds(few, period, prefix))
    derived = with_depth(fold(flat(layers[:few])), {"layers": depth} if few < depth else {})
    assert content_hash(derived) == content_hash(folded)
    assert (pm.memory_profile(derived).curve == pm.memory_profile(whole).curve).all()


@settings(max_examples=100, deadline=None)
@given(depth=st.integers(1, 200), prefix=st.integers(0, 8), period=st.integers(1, 8))
def test_the_probe_ends_as_the_model_does(depth: int, prefix: int, period: int) -> None:
    few = probe_depth(depth, prefix=prefix, period=period)
    assert 1 <= few <= depth
    assert few == depth or ((depth - few) % period == 0 and few - prefix >= 3 * period + 1)
    assert few < prefix + 4 * period + 1


@settings(max_examples=100, deadline=None)
@given(
    stack=st.sampled_from(["layers", "model.layers", "."]),
    layer=st.integers(0, 99),
    offset=st.integers(-7, 7),
    tail=st.sampled_from(["", ".mlp", ".0.mlp", ":forward:add.1"]),
)
def test_a_star_stands_for_one_layer(stack: str, layer: int, offset: int, tail: str) -> None:
    path = ("" if stack == "." else f"{stack}.") + f"{layer}{tail}"
    general = starred(path, stack, layer, offset)
    assert numbered(general, layer - offset) == path
    assert module_family(general) == starred(path, stack, layer)


def test_cuts_lie_within_their_stretch() -> None:
    graph = fold(flat(kinds(12, "ssa", prefix="p")))
    (stretch,) = stretches(graph, "layers")
    assert stretch.period == 3 and stretch.last - stretch.first + 1 >= 3
    assert all(stretch.first <= cut < stretch.last for cut in stretch.cuts)
