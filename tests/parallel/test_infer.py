from __future__ import annotations

from typing import Any

import pytest
import torch

from perfmodel.parallel.infer import find_weights
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.shard import shard
from tests.parallel.steps import BATCH, captured, step

_LLAMA_COLUMNS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"}


def _names(graph: Any, numbers: Any) -> set[str]:
    return {graph.storages[n].name.removesuffix(".weight").rpartition(".")[2] for n in numbers}


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("llama", _LLAMA_COLUMNS, {"o_proj", "down_proj"}),
        ("grouped", _LLAMA_COLUMNS, {"o_proj", "down_proj"}),
        ("gpt2", {"qkv_proj", "up_proj", "embed_tokens"}, {"o_proj", "down_proj"}),
        # The transform before BERT's head is followed by a norm: it's split neither way.
        ("bert", {"q_proj", "k_proj", "v_proj", "up_proj", "tokens"}, {"o_proj", "down_proj"}),
    ],
)
def test_weights_are_split_as_megatron_splits_them(name: str, columns: set[str], rows: set[str]) -> None:
    graph = step(name)
    weights = find_weights(graph, graph.bindings)
    assert _names(graph, weights.columns) == columns
    assert _names(graph, weights.rows) == rows
    assert {s.packed for n, s in weights.columns.items() if "qkv" in graph.storages[n].name} <= {True}
    tables = {graph.storages[n].name for n, by_tokens in weights.embeddings.items() if by_tokens}
    assert len(tables) == 1
    assert "tokens" in tables.pop()


def test_latent_attention_keeps_its_compressions_whole() -> None:
    """DeepSeek-V3: heads are split where they come out of the latents, which all ranks have, as in Megatron-LM."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DeepseekV3Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=128, use_cache=False, moe_intermediate_size=64,
        n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=32,
        q_lora_rank=48, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, n_shared_experts=1,
        experts_implementation="grouped_mm",
    )  # fmt: skip
    with torch.device("meta"):
        module = transformers.DeepseekV3ForCausalLM(config).to(torch.bfloat16)
    graph = captured(module, optimizer=None)
    weights = find_weights(graph, graph.bindings)
    attention = {name for name in _names(graph, weights.columns) if name.endswith("_b_proj")}
    assert attention == {"q_b_proj", "kv_b_proj"}
    assert "o_proj" in _names(graph, weights.rows)
    for plan in (
        Plan(tp=4, dp=1, micro_batch=BATCH),
        Plan(tp=2, sp=True, ep=4, etp=1, dp=4, zero=1, micro_batch=BATCH),
    ):
        program = shard(graph, plan)
        excess = program.replicated_flops()
        assert {module.rsplit(".", 1)[-1] for module in excess} <= {"q_a_proj", "kv_a_proj_with_mqa", "gate"}
        assert program.graph.flops() * plan.tp == program.source.flops() + sum(excess.values())


def test_a_fused_projection_with_fewer_key_value_heads_is_packed() -> None:
    """Phi-3: query, key and value of different widths in one product, and gate beside up."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Phi3Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=128, use_cache=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        module = transformers.Phi3ForCausalLM(config).to(torch.bfloat16)
    graph = captured(module, optimizer=None)
    program = shard(graph, Plan(tp=4, dp=1, micro_batch=BATCH))
    assert not program.replicated_flops()
    assert program.graph.flops() * 4 == graph.flops()
