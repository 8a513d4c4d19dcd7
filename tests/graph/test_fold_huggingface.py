"""Models whose layers come in several kinds or stacks, as transformers writes them: a few layers tell of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from perfmodel.graph import content_hash, fold, fuse, huggingface, probe_depth, unfold, with_depth
from perfmodel.graph.capture import capture_module
from perfmodel.graph.ir import Graph
from tests.graph.test_fold import assert_equal

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "use_cache": False,
}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "experts_implementation": "grouped_mm",
}


def deepseek(depth: int) -> torch.nn.Module:
    """Three dense layers, then experts; latent attention."""
    config = transformers.DeepseekV3Config(
        **SMALL,
        **EXPERTS,
        num_hidden_layers=depth,
        first_k_dense_replace=3,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    return transformers.DeepseekV3ForCausalLM(config).bfloat16()


def qwen3_moe(depth: int) -> torch.nn.Module:
    """Experts in every layer."""
    config = transformers.Qwen3MoeConfig(**SMALL, **EXPERTS, num_hidden_layers=depth, head_dim=8, num_experts=8)
    return transformers.Qwen3MoeForCausalLM(config).bfloat16()


def gemma3(depth: int) -> torch.nn.Module:
    """One layer in three attends to everything, the others to a window."""
    kinds = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(depth)]
    config = transformers.Gemma3TextConfig(
        **SMALL, num_hidden_layers=depth, head_dim=8, sliding_window=8, layer_types=kinds
    )
    return transformers.Gemma3ForCausalLM(config)


def t5(depth: int) -> torch.nn.Module:
    """Encoder and decoder, whose first layers own the relative positions."""
    config = transformers.T5Config(
        vocab_size=128,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=depth,
        num_decoder_layers=depth,
        num_heads=4,
        use_cache=False,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def capture(module: torch.nn.Module) -> Graph:
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with huggingface.traceable():
        return capture_module(module, kwargs={"input_ids": tokens, "labels": tokens}, optimizer="sgd")


@pytest.mark.parametrize(
    ("make", "prefix", "period"), [(deepseek, 3, 1), (qwen3_moe, 0, 1), (gemma3, 0, 3), (t5, 1, 1)]
)
def test_few_layers_tell_of_all(make: Callable[[int], torch.nn.Module], prefix: int, period: int) -> None:
    few = probe_depth(1000, prefix=prefix, period=period)
    depth = few + period
    flat = capture(make(depth))
    folded = fold(flat)
    assert_equal(folded, flat)
    derived = with_depth(fold(capture(make(few))), folded.stacks)
    assert content_hash(derived) == content_hash(folded)


@pytest.mark.parametrize(("make", "prefix", "period"), [(gemma3, 0, 3), (t5, 1, 1)])
def test_groups_and_stacks_are_fused_as_if_spelled_out(
    make: Callable[[int], torch.nn.Module], prefix: int, period: int
) -> None:
    small = fold(capture(make(probe_depth(1000, prefix=prefix, period=period))))
    graph = with_depth(small, {stack: depth + 4 * period for stack, depth in small.stacks.items()})
    folded = fuse(graph)
    assert_equal(folded, fuse(unfold(graph)))
    # More would be stored if layers that are alike came out unlike each other.
    assert sum(len(block.ops) for block in folded.blocks) < 0.6 * graph.depth
