"""Memory profiles against a plain walk over the spelled-out step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.graph import unfold
from perfmodel.graph.ir import RESIDENT_ROLES
from perfmodel.runtimes import rewrite
from perfmodel.symbols import evaluate
from tests.graph.modules import TOKENS, Gpt, Mlp, ids


def walked(graph: pm.Graph) -> tuple[float, float, list[float]]:
    """Peak, end and course of live bytes, one storage at a time."""
    flat = unfold(graph)
    sizes = [int(evaluate(s.nbytes, flat.bindings)) for s in flat.storages]
    alive = {i for i, s in enumerate(flat.storages) if s.role in (*RESIDENT_ROLES, "optimizer")}
    alive -= {ref.storage for block in flat.blocks for op in block.ops for ref in op.allocates}
    course = []
    # A fused kernel's operands needn't be in memory; tests/graph/test_fuse.py looks at those that are.
    fused = any(op.on_chip for block in flat.blocks for op in block.ops)
    for block in flat.blocks:
        for op in block.ops:
            for ref in op.allocates:
                assert ref.storage not in alive, f"{op.name} makes a storage twice"
                alive.add(ref.storage)
            for tensor in () if fused else (*op.inputs.values(), *op.outputs):
                name = flat.storages[tensor.storage].name
                assert tensor.storage in alive, f"{op.name} in {op.module} uses {name}, freed"
            course.append(float(sum(sizes[i] for i in alive)))
            for ref in op.frees:
                alive.remove(ref.storage)
    return max(course), float(sum(sizes[i] for i in alive)), course


@pytest.mark.parametrize("runtime", ["as captured", "eager", "compiled", "unfused"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_equals_a_walk_over_every_storage(checkpointed: bool, runtime: str) -> None:
    model = Gpt(dropout=0.1, checkpointed=checkpointed, depth=13)
    graph = pm.capture(model, (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
    if runtime == "unfused":
        graph = rewrite(graph, replace(pm.load_runtime("eager"), attention="unfused"))
    elif runtime != "as captured":
        graph = rewrite(graph, pm.load_runtime(runtime))
    peak, end, course = walked(graph)
    profile = pm.memory_profile(graph)
    assert profile.peak == peak
    assert profile.curve[0::2].tolist() == course
    assert profile.curve[-1] == end == profile.resident


def test_parts_of_the_peak() -> None:
    graph = pm.capture(Gpt(), (ids(), ids()), optimizer="adamw")
    profile = pm.memory_profile(graph)
    weights = 4 * graph.parameters()
    assert profile.at_peak["parameter"] == weights
    assert 2 * weights <= profile.at_peak["optimizer"] < 2 * weights + 1000
    assert sum(profile.at_peak.values()) == profile.peak
    assert sum(profile.activations_at_peak.values()) == profile.at_peak["activation"] > 0
    assert any(name.startswith("blocks.*") for name in profile.activations_at_peak)
    assert profile.peak_phase == "backward"


def test_the_first_step_has_no_optimizer_state_until_its_end() -> None:
    graph = pm.capture(Mlp(width=64), (torch.randn(4, 64), torch.randn(4, 64)), optimizer="adamw")
    first, steady = pm.memory_profile(graph, first_step=True), pm.memory_profile(graph)
    assert steady.resident - first.resident >= 2 * 4 * graph.parameters()
    assert first.curve[-1] == steady.resident
    assert first.peak_phase == "optimizer"


def test_bf16_halves_and_json_is_plain() -> None:
    def captured(dtype: str) -> pm.Graph:
        return pm.capture(
            "gpt2", batch=2, seq_len=64, optimizer=None, layers=2, dtype=dtype, implementation="reference", cache=False
        )

    half, full = (pm.memory_profile(captured(dtype)) for dtype in ("bfloat16", "float32"))
    assert half.at_peak["parameter"] * 2 == full.at_peak["parameter"]
    assert full.to_dict()["peak"] == full.peak


def test_an_empty_graph_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no ops"):
        pm.memory_profile(pm.Graph(name="nothing", blocks=()))
