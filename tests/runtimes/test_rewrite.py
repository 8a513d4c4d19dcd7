"""What a runtime makes of a captured graph."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.graph import fold, unfold
from perfmodel.runtimes import rewrite
from tests.graph.modules import TOKENS, Gpt, ids


def runtime(**changes: object) -> pm.Runtime:
    return replace(
        pm.load_runtime("eager"),
        **{"attention": "as-captured", "optimizer": "as-captured", "traffic": "eager", **changes},
    )  # type: ignore[arg-type]


@functools.cache
def gpt(dispatch: str = "neutral", dropout: float = 0.1, checkpointed: bool = False) -> pm.Graph:
    model = Gpt(depth=4, dropout=dropout, checkpointed=checkpointed)
    return pm.capture(model, (ids(4, 64), ids(4, 64)), optimizer="adamw", dynamic_shapes=TOKENS, dispatch=dispatch)


def test_as_captured_changes_nothing() -> None:
    graph = gpt()
    assert rewrite(graph, runtime()) is graph


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_unfused_attention_is_pytorchs_math_path(dropout: float, checkpointed: bool) -> None:
    # With dropout a CPU has no fused kernel, so the capture as on a CPU is the math path itself.
    unfused = rewrite(gpt(dropout=dropout, checkpointed=checkpointed), runtime(attention="unfused"))
    assert not any(op.name.startswith("perfmodel.attention") for op, _ in unfused.ops())
    assert not unfused.coverage.missing
    math_path = gpt("cpu", dropout=0.1, checkpointed=checkpointed)
    assert unfused.flops() == math_path.flops()
    fused = gpt(dropout=dropout, checkpointed=checkpointed)
    assert unfused.flops(recompute=False) == fused.flops(recompute=False)
    assert pm.memory_profile(unfused).peak > 1.2 * pm.memory_profile(fused).peak


def test_unfused_attention_holds_the_memory_that_the_math_path_holds() -> None:
    ours = pm.memory_profile(rewrite(gpt(), runtime(attention="unfused")))
    math_path = pm.memory_profile(gpt("cpu"))
    # The math path's dropout keeps its noise in float32 on a CPU, ours a byte as on an accelerator:
    # 4 layers x 4 x 4 x 64 x 64 scores x 3 bytes, and copies for layout that ours doesn't make.
    assert ours.peak == pytest.approx(math_path.peak - 4 * 4 * 4 * 64 * 64 * 3, rel=0.05)


@pytest.mark.parametrize("kind", ["unfused", "foreach", "fused", "fused traffic"])
def test_rewriting_and_folding_commute(kind: str) -> None:
    changes = {
        "unfused": runtime(attention="unfused"),
        "fused traffic": runtime(attention="unfused", traffic="fused", optimizer="fused"),
    }
    change = changes.get(kind) or runtime(optimizer=kind)
    folded = rewrite(gpt(), change)
    flat = rewrite(unfold(gpt()), change)
    assert folded.flops() == flat.flops()
    a, b = pm.memory_profile(folded), pm.memory_profile(flat)
    assert a.curve[-1] == pytest.approx(b.curve[-1])
    assert a.curve[-1] == pytest.approx(a.resident)
    if kind in ("unfused", "foreach"):
        assert folded.bytes() == flat.bytes()
    assert fold(folded) is folded


def test_every_storage_that_is_made_is_freed() -> None:
    for change in (runtime(attention="unfused"), runtime(optimizer="foreach"), runtime(optimizer="fused")):
        for dropout in (0.0, 0.1):
            profile = pm.memory_profile(rewrite(gpt(dropout=dropout), change))
            assert profile.curve.min() >= 0
            assert profile.curve[-1] == profile.resident


def test_foreach_keeps_a_temporary_of_all_parameters() -> None:
    graph = gpt()
    single, foreach = graph, rewrite(graph, runtime(optimizer="foreach"))

    def in_optimizer(g: pm.Graph) -> float:
        profile = pm.memory_profile(g)
        phases = [op.phase for block in g.blocks for _ in range(block.count) for op in block.ops]
        return max(v for v, i in zip(profile.curve, profile.op_index, strict=True) if phases[i] == "optimizer")

    weights = graph.parameters() * 4
    assert in_optimizer(foreach) - in_optimizer(single) == pytest.approx(weights, rel=0.35)
    calls = [op.name for op, _ in foreach.ops() if op.phase == "optimizer"]
    assert all(name.startswith("aten._foreach_") or name == "aten._local_scalar_dense" for name in calls)


def test_foreach_and_fused_touch_what_torch_optim_touches() -> None:
    graph = gpt()
    single, foreach, fused = (
        g.bytes(phase="optimizer")
        for g in (graph, rewrite(graph, runtime(optimizer="foreach")), rewrite(graph, runtime(optimizer="fused")))
    )
    assert foreach == pytest.approx(single, rel=0.02)
    # A fused AdamW reads weight, gradient and two moments and writes weight and moments: seven tensors.
    assert fused == pytest.approx(7 * 4 * graph.parameters(), rel=0.02)


def test_a_merged_optimizer_is_not_merged_again() -> None:
    model = Gpt(depth=2)
    graph = pm.capture(model, (ids(), ids()), optimizer=lambda p: torch.optim.AdamW(p, foreach=True))
    assert any(op.name.startswith("aten._foreach") for op, _ in graph.ops())
    with pytest.raises(UnsupportedError, match="foreach or fused"):
        rewrite(graph, runtime(optimizer="fused"))


def test_an_optimizer_without_a_fused_kernel_is_refused() -> None:
    graph = pm.capture(Gpt(depth=2), (ids(), ids()), optimizer=torch.optim.Adamax)
    with pytest.raises(UnsupportedError, match="no fused kernel"):
        rewrite(graph, runtime(optimizer="fused"))


def test_fused_traffic_changes_forward_and_backward_only() -> None:
    graph = gpt()
    eager, fused = (rewrite(graph, runtime(optimizer="foreach", traffic=kind)) for kind in ("eager", "fused"))
    assert fused.bytes(phase="optimizer") == eager.bytes(phase="optimizer")
    assert fused.bytes(phase="forward") < eager.bytes(phase="forward")
    assert fused.flops() == eager.flops()


def test_unfused_attention_fuses_its_mask_softmax_and_dropout() -> None:
    saved = [
        rewrite(gpt(), runtime(attention=kind)).bytes(phase="forward")
        - rewrite(gpt(), runtime(attention=kind, traffic="fused")).bytes(phase="forward")
        for kind in ("unfused", "as-captured")
    ]
    scores = 4 * 4 * 4 * 64 * 64  # bytes of a layer's scores: batch 4, 4 heads, 64 positions
    # Eager: mask, softmax and dropout each read the scores and write them. Fused: one kernel reads them once, and
    # writes what backward needs: probabilities, dropped ones and the dropout's mask. 3 passes less in 4 layers.
    assert saved[0] - saved[1] == pytest.approx(4 * 3 * scores, rel=0.02)
