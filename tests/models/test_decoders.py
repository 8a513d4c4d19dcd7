"""What decoders compute, from their definitions and without transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfmodel.models import decoder  # noqa: E402
from perfmodel.models.build import build  # noqa: E402
from perfmodel.models.dims import TransformerDims  # noqa: E402
from perfmodel.models.dims_moe import MoeDims  # noqa: E402
from perfmodel.models.moe import MixtureOfExperts  # noqa: E402
from perfmodel.models.rotary import RotaryEmbedding, rotate, rotate_interleaved  # noqa: E402
from tests.models.tiny import (  # noqa: E402
    DECODERS,
    DEEPSEEK_V3,
    GEMMA2,
    GEMMA3,
    GPT_OSS,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    PHI,
    QWEN3_MOE,
)

torch.set_num_threads(1)


def model(dims: TransformerDims) -> Any:
    torch.manual_seed(0)
    module, _ = build(dims, dtype="float32" if dims.moe else "float64", device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return module.eval()


def tokens(count: int) -> Any:
    return torch.randint(2, 97, (1, count), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", DECODERS)
def test_no_token_sees_a_later_one(name: str) -> None:
    module, ids = model(DECODERS[name]), tokens(20)
    changed = ids.clone()
    changed[0, 15:] = (changed[0, 15:] + 1) % 90 + 2
    first, second = module(ids, ids).logits, module(changed, ids).logits
    torch.testing.assert_close(first[:, :15], second[:, :15], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first[:, 15:], second[:, 15:], atol=1e-3)


def reach(dims: TransformerDims, length: int = 40) -> int:
    """How many positions after the first one feel a change of it."""
    module, ids = model(dims), tokens(length)
    changed = ids.clone()
    changed[0, 0] += 1
    difference = (module(ids, ids).logits - module(changed, ids).logits).abs().amax(dim=-1)[0]
    return int((difference > 1e-12).nonzero().max())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_window_passes_on_window_minus_one_positions_a_layer(layers: int) -> None:
    assert reach(replace(MISTRAL, num_hidden_layers=layers)) == layers * (8 - 1)


def test_full_layers_see_beyond_the_window() -> None:
    # Layers 1 and 3 of Gemma 2 slide, 2 and 4 don't; of Gemma 3 here only the third sees all.
    assert reach(replace(GEMMA2, num_hidden_layers=1)) == 7
    assert reach(replace(GEMMA2, num_hidden_layers=2)) == 39
    assert reach(replace(GEMMA3, num_hidden_layers=2)) == 14
    assert reach(replace(GEMMA3, num_hidden_layers=3)) == 39


def test_a_window_as_long_as_the_sequence_changes_nothing() -> None:
    ids = tokens(16)
    losses = [model(replace(MISTRAL, sliding_window=w))(ids, ids).loss for w in (None, 16, 17, 100)]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(4))


def test_soft_caps_bound_the_logits() -> None:
    ids = tokens(12)
    logits = model(GEMMA2)(ids, ids).logits
    assert logits.abs().max() < 3.0 < model(replace(GEMMA2, final_logit_softcapping=None))(ids, ids).logits.abs().max()


def test_a_sink_takes_its_share_of_attention() -> None:
    attention = model(replace(GPT_OSS, moe=None)).layers[0].attention
    hidden = torch.randn(1, 6, 32, dtype=torch.float64)
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        attention.o_proj.weight.copy_(torch.randn_like(attention.o_proj.weight))
        attention.o_proj.bias.zero_()
        attention.sinks.fill_(-1e6)
        none = attention(hidden, mask, None)
        attention.sinks.fill_(1e6)
        everything = attention(hidden, mask, None)
    assert none.abs().max() > 0
    torch.testing.assert_close(everything, torch.zeros_like(everything))


def test_a_shared_norm_feeds_both_parts_of_a_parallel_block() -> None:
    module = model(PHI)
    assert not any("mlp_norm" in name for name, _ in module.named_parameters())
    layer, hidden = module.layers[0], torch.randn(1, 5, 32, dtype=torch.float64)
    rotary = module.rotary(hidden)
    normed = layer.attention_norm(hidden)
    expected = hidden + layer.attention(normed, None, rotary) + layer.mlp(normed)
    torch.testing.assert_close(layer(hidden, None, rotary), expected)


# -- positions ---------------------------------------------------------------------------------


def test_neighbours_and_halves_are_the_same_rotation() -> None:
    hidden = torch.randn(1, 7, 32)
    rotary = RotaryEmbedding(replace(LLAMA, head_dim=8))(hidden)
    tables = rotary[0].unsqueeze(1), rotary[1].unsqueeze(1)
    states = torch.randn(1, 4, 7, 8)
    halves = torch.cat([states[..., 0::2], states[..., 1::2]], dim=-1)
    torch.testing.assert_close(rotate_interleaved(states, tables), rotate(halves, tables))


def test_rotation_depends_on_distance_only() -> None:
    rotary = RotaryEmbedding(replace(LLAMA, head_dim=8))(torch.zeros(1, 10, 32, dtype=torch.float64))
    tables = rotary[0].unsqueeze(1), rotary[1].unsqueeze(1)
    query, key = (torch.randn(8, dtype=torch.float64).expand(1, 1, 10, 8) for _ in range(2))
    scores = (rotate(query, tables) @ rotate(key, tables).transpose(2, 3))[0, 0]
    for distance in (0, 1, 4):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


# -- experts -----------------------------------------------------------------------------------


def one_by_one(block: MixtureOfExperts, hidden: Any, act: Any) -> Any:
    """Each token through its experts, as the definition says."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    weights, chosen = block.router(flat)
    rows = []
    for token, row_weights, row_chosen in zip(flat, weights, chosen, strict=True):
        out = torch.zeros_like(token)
        for weight, expert in zip(row_weights, row_chosen, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ token).chunk(2)
            out = out + weight * (block.experts.down_proj[expert] @ (act(gate) * up))
        rows.append(out)
    routed = torch.stack(rows).view_as(hidden)
    return routed if block.shared is None else routed + block.shared(hidden)


@pytest.mark.parametrize("dims", [MIXTRAL, QWEN3_MOE, DEEPSEEK_V3], ids=["mixtral", "qwen3-moe", "deepseek-v3"])
def test_grouped_products_are_those_of_each_tokens_experts(dims: TransformerDims) -> None:
    block, hidden = model(dims).layers[-1].mlp, torch.randn(2, 9, 32)
    torch.testing.assert_close(block(hidden), one_by_one(block, hidden, torch.nn.functional.silu), rtol=1e-4, atol=1e-5)


def routed(moe: MoeDims, logits: Any) -> tuple[Any, Any]:
    """Weights and experts of one token with these logits."""
    dims = replace(LLAMA, hidden_size=moe.num_experts, moe=moe)
    block = MixtureOfExperts(dims, moe)
    with torch.no_grad():
        block.router.weight.copy_(torch.eye(moe.num_experts))
        weights, chosen = block.router(torch.tensor([logits]))
    order = chosen[0].argsort()
    return weights[0][order], chosen[0][order].tolist()


def test_the_largest_of_a_softmax() -> None:
    moe = MoeDims(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    weights, chosen = routed(moe, [0.0, 2.0, -1.0, 1.0])
    assert chosen == [1, 3]
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0]).softmax(0))
    weights, _ = routed(replace(moe, norm_topk_prob=False), [0.0, 2.0, -1.0, 1.0])
    torch.testing.assert_close(weights, torch.tensor([0.0, 2.0, -1.0, 1.0]).softmax(0)[[1, 3]])


def test_groups_are_chosen_by_their_best_two() -> None:
    # The best expert is alone in its group; two good ones make the better group.
    moe = MoeDims(
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8, router="sigmoid", n_group=2, topk_group=1,
        routed_scaling_factor=2.0,
    )  # fmt: skip
    weights, chosen = routed(moe, [5.0, -9.0, -9.0, 1.0, 2.0, -9.0])
    assert chosen == [3, 4]
    scores = torch.tensor([1.0, 2.0]).sigmoid()
    torch.testing.assert_close(weights, 2 * scores / scores.sum())


def test_the_balancing_bias_chooses_but_does_not_weigh() -> None:
    moe = MoeDims(num_experts=4, num_experts_per_tok=1, moe_intermediate_size=8, router="sigmoid", norm_topk_prob=False)
    block = MixtureOfExperts(replace(LLAMA, hidden_size=4, moe=moe), moe)
    with torch.no_grad():
        block.router.weight.copy_(torch.eye(4))
        block.router.balance.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
        weights, chosen = block.router(torch.tensor([[3.0, 0.0, 1.0, 0.0]]))
    assert chosen.tolist() == [[2]]
    torch.testing.assert_close(weights, torch.tensor([[1.0]]).sigmoid())
    assert "balance" not in dict(block.router.named_parameters())


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3"])
def test_every_expert_that_got_a_token_learns(name: str) -> None:
    module, ids = model(DECODERS[name]).train(), torch.cat([tokens(60), tokens(60) // 2 + 1])
    module(ids, ids).loss.backward()
    experts = module.layers[-1].mlp.experts
    assert (experts.down_proj.grad.abs().amax(dim=(1, 2)) > 0).all()
    assert module.layers[-1].mlp.router.weight.grad.abs().sum() > 0


def test_dense_layers_come_first() -> None:
    module = decoder.build(DEEPSEEK_V3)
    assert [isinstance(layer.mlp, MixtureOfExperts) for layer in module.layers] == [False, True, True]
