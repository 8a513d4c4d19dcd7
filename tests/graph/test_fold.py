"""Folding keeps everything: ops and their order, storages, counts, memory."""

from __future__ import annotations

import pytest
import torch

import perfmodel as pm
from perfmodel.errors import CaptureError
from perfmodel.graph import content_hash, fold, unfold, with_depth
from perfmodel.graph.capture import capture_module
from perfmodel.graph.ir import Graph
from tests.graph.modules import TOKENS, ConvNet, Gpt, Mlp, ids


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

    derived, captured = with_depth(at_depth(4), "blocks", 9), at_depth(9)
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
        with_depth(folded, "layers", 8)


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
        with_depth(folded, "blocks", 8)
    with pytest.raises(CaptureError, match="captured with 3 layers"):
        with_depth(folded, "layers", 8)
