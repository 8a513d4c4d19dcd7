"""The count formulas against the modules, for any dimensions."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from perfmodel.models.build import build  # noqa: E402
from perfmodel.models.dims import TransformerDims  # noqa: E402

sizes = st.integers(min_value=1, max_value=12)


@st.composite
def dimensions(draw: st.DrawFn) -> TransformerDims:
    groups = draw(st.integers(1, 4))
    conv1d, encoder = draw(st.sampled_from([(True, False), (False, False), (False, True)]))
    biases = conv1d or draw(st.booleans())
    return TransformerDims(
        family="encoder" if encoder else "decoder",
        vocab_size=draw(sizes),
        hidden_size=draw(sizes),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=groups if conv1d else groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=2 * draw(sizes),
        intermediate_size=draw(sizes),
        max_position_embeddings=draw(sizes),
        hidden_act="relu",
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        norm_eps=1e-5,
        position_embedding="learned" if encoder else draw(st.sampled_from(["learned", "rope"])),
        gated_mlp=False if conv1d else draw(st.booleans()),
        attention_bias=biases,
        mlp_bias=biases,
        tie_word_embeddings=draw(st.booleans()),
        projection="conv1d" if conv1d else "linear",
        type_vocab_size=draw(st.integers(0, 2)) if encoder else 0,
    )


@given(dims=dimensions())
@settings(max_examples=60, deadline=None)
def test_formulas_equal_the_module(dims: TransformerDims) -> None:
    module, stack = build(dims)
    named = dict(module.named_parameters())
    assert dims.parameters() == sum(parameter.numel() for parameter in named.values())
    # Matrices of layers, the head, an encoder's transform: all matrices but the embeddings, a tied one included.
    layer_matrices = sum(p.numel() for name, p in named.items() if name.startswith(stack) and p.dim() == 2)
    transform = named["head.dense.weight"].numel() if dims.family == "encoder" else 0
    assert dims.matmul_parameters() == layer_matrices + dims.vocab_size * dims.hidden_size + transform
    assert TransformerDims.from_dict(dims.to_dict()) == dims
