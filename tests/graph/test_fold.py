"""Folding keeps everything: ops and their order, storages, counts, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import perfmodel as pm
from perfmodel.errors import CaptureError
from perfmodel.graph import content_hash, fold, probe_depth, unfold, with_depth
from perfmodel.graph.capture import capture_module
from perfmodel.graph.ir import Graph
from tests.graph.modules import TOKENS, ConvNet, Gpt, Mlp, ids
from tests.graph.stacked import Between, Collects, EncoderDecoder, Pattern, SideBySide, Tuned, kinds, sequences


def flat_capture(module: torch.nn.Module, *args: torch.Tensor, dynamic_shapes: object = None) -> Graph:
    return capture_module(module, args, optimizer="adamw", dynamic_shapes=dynamic_shapes)


def signature(graph: Graph) -> list[object]:
    """Every op with its operands' storages under numbers by first sight."""
    numbers: dict[int, int] = {}

    def number(storage: int) -> int:
        return numbers.setdefault(storage, len(numbers))

    result: list[object] = []
    for blocks in (graph.blocks, graph.first_optimizer):
        for block in blocks:
            for op in block.ops:
                tensors = [(t.shape, t.dtype, t.strides, number(t.storage)) for t in (*op.inputs.values(), *op.outputs)]
                made, freed = [number(ref.storage) for ref in op.allocates], [number(ref.storage) for ref in op.frees]
                result.append((op.name, op.phase, op.module, op.attrs, tensors, made, freed))
    return result


@pytest.mark.parametrize("checkpointed", [False, True])
def test_unfold_is_the_inverse(checkpointed: bool) -> None:
    flat = flat_capture(Gpt(checkpointed=checkpointed, dropout=0.1), ids(), ids(), dynamic_shapes=TOKENS)
    folded = fold(flat)
    assert sum(len(block.ops) for block in folded.blocks) < 0.85 * sum(len(block.ops) for block in flat.blocks)
    assert_equal(folded, flat)


def assert_equal(folded: Graph, flat: Graph) -> None:
    """Same ops in the same order, same counts, same memory at every moment."""
    assert signature(unfold(folded)) == signature(flat)
    assert folded.flops() == flat.flops() and folded.bytes() == flat.bytes()
    assert folded.parameters() == flat.parameters()
    for first in (False, True):
        a, b = pm.memory_profile(folded, first_step=first), pm.memory_profile(flat, first_step=first)
        assert (a.curve == b.curve).all()
        assert a.at_peak == b.at_peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_four_layers_tell_of_nine(checkpointed: bool) -> None:
    def at_depth(depth: int) -> Graph:
        return fold(flat_capture(Gpt(depth=depth, checkpointed=checkpointed), ids(), ids(), dynamic_shapes=TOKENS))

    derived, captured = with_depth(at_depth(4), {"blocks": 9}), at_depth(9)
    assert content_hash(derived) == content_hash(captured)
    assert derived.stacks == {"blocks": 9}


def test_layers_that_differ_are_not_folded_together() -> None:
    model = Mlp(depth=6)
    model.layers[2] = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
    x = torch.randn(2, 16)
    flat = flat_capture(model, x, x)
    folded = fold(flat)
    assert signature(unfold(folded)) == signature(flat)
    with pytest.raises(CaptureError, match="differ"):
        with_depth(folded, {"layers": 8})


def test_a_model_without_repetition_stays_as_it_is() -> None:
    flat = flat_capture(ConvNet(), torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
    assert signature(unfold(fold(flat))) == signature(flat)


def test_fold_twice_is_fold_once() -> None:
    folded = fold(flat_capture(Gpt(), ids(), ids()))
    assert fold(folded) is folded


def test_with_depth_refuses_what_it_cannot_know() -> None:
    x = torch.randn(2, 16)
    folded = fold(flat_capture(Mlp(depth=3), x, x))
    with pytest.raises(CaptureError, match="no layer stack"):
        with_depth(folded, {"blocks": 8})
    with pytest.raises(CaptureError, match="captured with 3 layers"):
        with_depth(folded, {"layers": 8})


# The layers of a model, made with a depth; how many come first, and after how many they repeat; share of ops stored.
REPEATING: dict[str, tuple[Callable[[int], torch.nn.Module], int, int, float]] = {
    "dense layers first": (lambda depth: Pattern(kinds(depth, "m", prefix="ppp")), 3, 1, 0.6),
    "two masks in turn": (lambda depth: Pattern(kinds(depth, "sa")), 0, 2, 0.5),
    "one of three": (lambda depth: Pattern(kinds(depth, "ssa")), 0, 3, 0.5),
    "more storages in every second": (lambda depth: Pattern(kinds(depth, "am")), 0, 2, 0.55),
    "checkpointed in turn": (lambda depth: Pattern(kinds(depth, "sa"), checkpointed=True), 0, 2, 0.6),
    "every second frozen": (lambda depth: Pattern(kinds(depth, "am"), frozen="m"), 0, 2, 0.55),
    "encoder and decoder": (lambda depth: EncoderDecoder(depth, depth), 1, 1, 0.6),
    "residual added between": (Between, 0, 1, 0.5),
    "adapters in a Sequential": (lambda depth: Tuned(depth // 2), 0, 2, 0.5),
}


@pytest.mark.parametrize("name", REPEATING)
def test_layers_that_repeat_in_groups_fold_and_few_tell_of_many(name: str) -> None:
    make, prefix, period, share = REPEATING[name]
    few = probe_depth(1000, prefix=prefix, period=period)
    few += few % 2 if name == "adapters in a Sequential" else 0
    depth = few + 2 * period
    flat = flat_capture(make(depth), *sequences())
    folded = fold(flat)
    assert_equal(folded, flat)
    assert sum(len(block.ops) for block in folded.blocks) < share * sum(len(block.ops) for block in flat.blocks)
    small = fold(flat_capture(make(few), *sequences()))
    derived = with_depth(small, folded.stacks)
    assert content_hash(derived) == content_hash(folded)
    assert_equal(derived, flat)


def test_a_group_says_which_layer_each_op_is_in() -> None:
    folded = fold(flat_capture(Pattern(kinds(12, "am")), *sequences()))
    (forward,) = (b for b in folded.blocks if b.count > 1 and b.ops[0].phase == "forward")
    assert (forward.first, forward.step, forward.layers, forward.span) == (1, 2, range(1, 11, 2), range(1, 11))
    assert {op.module.split(".")[1] for op in forward.ops} == {"*", "*+1"}
    (backward,) = (b for b in folded.blocks if b.count > 1 and b.ops[0].phase == "backward")
    assert (backward.first, backward.step, backward.span) == (10, -2, range(1, 11))
    assert {op.module.split(".")[1] for op in backward.ops} == {"*", "*-1"}
    only_m = [s for s in folded.storages if s.name.startswith("layers.*.products.1.weight")]
    assert {s.layers for s in only_m} == {(1, 3, 5, 7, 9, 11)} and {s.count for s in only_m} == {6}
    assert {s.role for s in only_m} == {"parameter", "gradient", "optimizer"}


def test_lists_of_layers_that_run_in_turn_fold_but_grow_only_together() -> None:
    flat = flat_capture(SideBySide(9), *sequences())
    folded = fold(flat)
    assert folded.stacks == {"norms": 9, "feeds": 9}
    assert_equal(folded, flat)
    assert max(block.count for block in folded.blocks if block.ops[0].phase == "forward") == 7
    with pytest.raises(CaptureError, match="can't be derived"):
        with_depth(folded, {"norms": 12, "feeds": 12})


def test_layers_that_are_used_by_number_tell_of_no_others() -> None:
    flat = flat_capture(Collects(9), *sequences())
    folded = fold(flat)
    assert_equal(folded, flat)
    with pytest.raises(CaptureError, match="can't be derived"):
        with_depth(folded, {"layers": 12})


def test_a_pattern_tells_of_whole_groups_only() -> None:
    folded = fold(flat_capture(Pattern(kinds(9, "ssa")), *sequences()))
    for depth in (10, 11):
        with pytest.raises(CaptureError, match="after how many"):
            with_depth(folded, {"layers": depth})


def test_a_frame_of_unlike_parts_is_no_stack() -> None:
    block = lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())  # noqa: E731
    body = torch.nn.Sequential(*(block() for _ in range(6)))
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), body, Sum())
    folded = fold(flat := flat_capture(model, sequences()[0]))
    assert folded.stacks == {"1": 6}
    assert_equal(folded, flat)
    alike = torch.nn.Sequential(*(block() for _ in range(6)), Sum())
    folded = fold(flat := flat_capture(alike, sequences()[0]))
    assert folded.stacks == {".": 7}
    assert_equal(folded, flat)
    assert max(block.count for block in folded.blocks) >= 4


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()
