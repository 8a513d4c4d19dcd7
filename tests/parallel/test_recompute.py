from __future__ import annotations

import pytest

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.recompute import with_recompute
from perfmodel.parallel.shard import shard
from tests.parallel.steps import BATCH, DIMS, SEQ, step


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_full_recompute_is_what_pytorch_s_checkpoint_does(name: str) -> None:
    planned = with_recompute(step(name, optimizer=None), "full")
    captured = step(name, optimizer=None, checkpointing=True)
    for phase in ("forward", "backward", "recompute"):
        assert planned.flops(phase=phase) == captured.flops(phase=phase), phase
    sizes = {"batch": 16, "seq": 128}
    ours, theirs = pm.memory_profile(planned.at(**sizes)).peak, pm.memory_profile(captured.at(**sizes)).peak
    assert ours == pytest.approx(theirs, rel=0.02)


def test_recompute_trades_memory_for_flops() -> None:
    graph = step("llama", optimizer=None).at(batch=16, seq=128)
    modes = ["none", ("layers.*.mlp",), 2, "full"]
    peaks = [pm.memory_profile(with_recompute(graph, mode)).peak for mode in modes]
    flops = [with_recompute(graph, mode).flops() for mode in modes]
    assert peaks[0] > max(peaks[1], peaks[2]) > min(peaks[1], peaks[2]) > peaks[3]
    assert flops[0] < min(flops[1], flops[2]) < flops[3]
    every_second = with_recompute(graph, 2).flops(phase="recompute")
    assert every_second * 2 == with_recompute(graph, "full").flops(phase="recompute")


def test_selective_repeats_attention_s_core() -> None:
    graph = with_recompute(step("llama", optimizer=None), "selective")
    dims = DIMS["llama"]
    core = 4 * BATCH * dims.num_attention_heads * SEQ * SEQ * dims.head_dim
    assert graph.flops(phase="recompute") == core * dims.num_hidden_layers


def test_captured_or_planned_but_not_both() -> None:
    with pytest.raises(UnsupportedError, match="captured with activation checkpoints"):
        with_recompute(step("llama", optimizer=None, checkpointing=True), "full")
    with pytest.raises(UnsupportedError, match="chooses no op"):
        with_recompute(step("llama", optimizer=None), ("layers.*.experts",))


def test_recompute_communicates_again_under_tensor_parallelism() -> None:
    plain = shard(step("llama"), Plan(tp=2, dp=1, micro_batch=BATCH))
    again = shard(step("llama"), Plan(tp=2, dp=1, micro_batch=BATCH, recompute="full"))
    extra = [c for c in again.collectives() if c.phase == "recompute"]
    # The attention block's all-reduce; that of the layer's end isn't needed again.
    assert sum(c.count for c in extra) == DIMS["llama"].num_hidden_layers
    assert len(again.collectives()) - len(plain.collectives()) == len(extra)


def test_a_deep_stack_is_rewritten_from_a_few_layers() -> None:
    from perfmodel.graph.depth import with_depth
    from perfmodel.parallel.recompute import _rewritten

    deep = with_depth(step("llama"), {"layers": 41})
    for mode in ("full", 3, ("layers.*.mlp",)):
        quick, plain = with_recompute(deep, mode), _rewritten(deep, mode)
        assert quick.flops(phase="recompute") == plain.flops(phase="recompute") > 0
        assert quick.depth == plain.depth
        assert pm.memory_profile(quick).peak == pm.memory_profile(plain).peak
