"""Formulas of decoders and encoders."""

from __future__ import annotations

from perfmodel.models.dims import TransformerDims
from perfmodel.models.formulas import Explanation, Formula, Section, Symbol, layer_title

__all__ = ["decoder_or_encoder"]


def decoder_or_encoder(dims: TransformerDims) -> Explanation:
    """The formulas of a decoder or an encoder."""
    return Explanation(legend=_legend(dims), sections=(_embeddings(dims), *_layers(dims), _head(dims)))


def _legend(dims: TransformerDims) -> tuple[Symbol, ...]:
    symbols = [
        Symbol(name="B", meaning="sequences a step", size="batch"),
        Symbol(name="T", meaning="tokens a sequence", size="seq"),
        Symbol(name="V", meaning="vocabulary", value=dims.vocab_size),
        Symbol(name="H", meaning="hidden size", value=dims.hidden_size),
        Symbol(name="L", meaning="layers", value=dims.num_hidden_layers),
        Symbol(name="A", meaning="attention heads", value=dims.num_attention_heads),
    ]
    if dims.mla is None:
        symbols += [
            Symbol(name="K", meaning="key-value heads", value=dims.num_key_value_heads),
            Symbol(name="d", meaning="size of a head", value=dims.head_dim),
        ]
    else:
        mla = dims.mla
        symbols += [
            Symbol(name="n", meaning="size of a query or key head without positions", value=mla.qk_nope_head_dim),
            Symbol(name="r", meaning="size of its rotary part", value=mla.qk_rope_head_dim),
            Symbol(name="v", meaning="size of a value head", value=mla.v_head_dim),
            Symbol(name="c", meaning="size of the latent vector of keys and values", value=mla.kv_lora_rank),
        ]
        if mla.q_lora_rank is not None:
            symbols.append(Symbol(name="q", meaning="size of the latent vector of queries", value=mla.q_lora_rank))
    if any(not dims.routes(layer) for layer in range(dims.num_hidden_layers)):
        symbols.append(Symbol(name="F", meaning="feed-forward size", value=dims.intermediate_size))
    if dims.moe is not None:
        symbols += [
            Symbol(name="E", meaning="routed experts", value=dims.moe.num_experts),
            Symbol(name="k", meaning="experts a token", value=dims.moe.num_experts_per_tok),
            Symbol(name="M", meaning="size of an expert", value=dims.moe.moe_intermediate_size),
        ]
        if dims.moe.shared_expert_intermediate_size:
            symbols.append(
                Symbol(name="S", meaning="size of the shared experts", value=dims.moe.shared_expert_intermediate_size)
            )
    if dims.sliding_window is not None:
        symbols.append(Symbol(name="w", meaning="keys in the window", value=dims.sliding_window))
    return tuple(symbols)


def _embeddings(dims: TransformerDims) -> Section:
    terms = ["W_E[token]" + (" sqrt(H)" if dims.scale_embeddings else "")]
    terms += ["W_P[position]"] if dims.position_embedding == "learned" else []
    terms += ["W_S[segment]"] if dims.type_vocab_size else []
    equation = " + ".join(terms)
    if dims.family == "encoder":
        equation = f"{_norm_name(dims)}({equation})"
    return Section(title="embeddings", formulas=(Formula(part="tokens", equation=f"X = {equation}"),))


def _layers(dims: TransformerDims) -> list[Section]:
    """A section for each kind of layer."""
    kinds: dict[tuple[bool, int | None], list[int]] = {}
    for layer in range(dims.num_hidden_layers):
        kinds.setdefault((dims.routes(layer), dims.window(layer)), []).append(layer)
    return [
        Section(
            title=layer_title(layers, _kind(routed, window) if len(kinds) > 1 or routed or window else ""),
            layers=tuple(layers),
            formulas=(
                *_block_input(dims),
                *(_attention(dims, window) if dims.mla is None else _latent_attention(dims)),
                *_residual(dims),
                *(_experts(dims) if routed else _feed_forward(dims)),
            ),
        )
        for (routed, window), layers in kinds.items()
    ]


def _kind(routed: bool, window: int | None) -> str:
    return ", ".join(["routed experts" if routed else "dense", "all keys" if window is None else f"window of {window}"])


def _norm_name(dims: TransformerDims) -> str:
    return "LayerNorm" if dims.norm == "layernorm" else "RMSNorm"


def _block_input(dims: TransformerDims) -> list[Formula]:
    if dims.family == "encoder" or dims.norm_placement == "output":
        return [Formula(part="input", equation="Z = X")]
    return [Formula(part="input", equation=f"Z = {_norm_name(dims)}(X)")]


def _bias(flag: bool, name: str) -> str:
    return f" + b_{name}" if flag else ""


def _attention(dims: TransformerDims, window: int | None) -> list[Formula]:
    biased = dims.attention_bias or dims.qkv_bias
    around = {"rope": ("RoPE(", ")"), "learned": ("", "")}[dims.position_embedding]
    normed = ("Norm(", ")") if dims.qk_norm else ("", "")
    left, right = around[0] + normed[0], normed[1] + around[1]
    if dims.projection == "linear":
        projections = [
            Formula(
                part="queries",
                equation=f"Q = {left}Z W_Q{_bias(biased, 'Q')}{right}",
                flops="2*B*T*H*d*A",
                modules=("attention.q_proj",),
            ),
            Formula(
                part="keys",
                equation=f"K = {left}Z W_K{_bias(biased, 'K')}{right}",
                flops="2*B*T*H*d*K",
                modules=("attention.k_proj",),
            ),
            Formula(
                part="values",
                equation=f"V = Z W_V{_bias(biased, 'V')}",
                flops="2*B*T*H*d*K",
                modules=("attention.v_proj",),
            ),
        ]
    else:
        projections = [
            Formula(
                part="queries, keys, values",
                equation=f"[Q K V] = {left}Z W_QKV{_bias(biased, 'QKV')}{right}",
                flops="2*B*T*H*d*(A + 2*K)",
                modules=("attention.qkv_proj",),
            )
        ]
    cap = "c tanh(·/c) of " if dims.attn_logit_softcapping is not None else ""
    sees = "all keys" if dims.family == "encoder" else "keys before" + (f", w = {window}" if window is not None else "")
    sinks = ", with sinks" if dims.attention_sinks else ""
    scale = "sqrt(d)" if dims.query_pre_attn_scalar is None else f"sqrt({dims.query_pre_attn_scalar})"
    return [
        *projections,
        Formula(
            part="attention",
            equation=f"O = softmax({cap}Q K^T / {scale}) V  ({sees}{sinks})",
            flops="4*B*T*T*d*A",
            modules=("attention",),
        ),
        Formula(
            part="output",
            equation=f"Y = O W_O{_bias(dims.attention_bias, 'O')}",
            flops="2*B*T*H*d*A",
            modules=("attention.o_proj",),
        ),
    ]


def _latent_attention(dims: TransformerDims) -> list[Formula]:
    """Of DeepSeek-AI 2024, arXiv:2405.04434, equations 37 to 47."""
    assert dims.mla is not None
    if dims.mla.q_lora_rank is None:
        queries = [
            Formula(
                part="queries",
                equation="[Q' Q^R] = Z W_Q,  Q = [Q'; RoPE(Q^R)]",
                flops="2*B*T*H*A*(n + r)",
                modules=("attention.q_proj",),
            )
        ]
    else:
        queries = [
            Formula(
                part="latent of queries", equation="c^Q = Z W_DQ", flops="2*B*T*H*q", modules=("attention.q_a_proj",)
            ),
            Formula(
                part="queries",
                equation="[Q' Q^R] = Norm(c^Q) W_UQ,  Q = [Q'; RoPE(Q^R)]",
                flops="2*B*T*q*A*(n + r)",
                modules=("attention.q_b_proj",),
            ),
        ]
    return [
        *queries,
        Formula(
            part="latent of keys and values",
            equation="[c^KV k^R] = Z W_DKV",
            flops="2*B*T*H*(c + r)",
            modules=("attention.kv_a_proj",),
        ),
        Formula(
            part="keys, values",
            equation="[K' V] = Norm(c^KV) W_UKV,  K = [K'; RoPE(k^R)]",
            flops="2*B*T*c*A*(n + v)",
            modules=("attention.kv_b_proj",),
        ),
        Formula(
            part="attention",
            equation="O = softmax(Q K^T / sqrt(n + r)) V  (keys before)",
            flops="2*B*T*T*A*(n + r + v)",
            modules=("attention",),
        ),
        Formula(part="output", equation="Y = O W_O", flops="2*B*T*H*A*v", modules=("attention.o_proj",)),
    ]


def _residual(dims: TransformerDims) -> list[Formula]:
    norm = _norm_name(dims)
    if dims.family == "encoder":
        return [Formula(part="residual", equation=f"X = {norm}(X + Y),  Z = X")]
    added = f"{norm}(Y)" if dims.norm_placement in ("output", "both") else "Y"
    if dims.block == "parallel_shared_norm":
        return []
    if dims.block == "parallel":
        return [Formula(part="second input", equation=f"Z = {norm}(X)  (of the layer's input)")]
    following = "Z = X" if dims.norm_placement == "output" else f"Z = {norm}(X)"
    return [Formula(part="residual", equation=f"X = X + {added},  {following}")]


def _closing(dims: TransformerDims, result: str) -> Formula:
    norm = _norm_name(dims)
    if dims.family == "encoder":
        return Formula(part="residual", equation=f"X = {norm}(X + {result})")
    if dims.block != "sequential":
        return Formula(part="residual", equation=f"X = X + Y + {result}")
    added = f"{norm}({result})" if dims.norm_placement in ("output", "both") else result
    return Formula(part="residual", equation=f"X = X + {added}")


def _feed_forward(dims: TransformerDims) -> list[Formula]:
    act, biased = dims.hidden_act, dims.mlp_bias
    if dims.gated_mlp and dims.projection == "fused":
        up = [
            Formula(part="gate, up", equation="[G U] = Z [W_G W_U]", flops="4*B*T*H*F", modules=("mlp.gate_up_proj",))
        ]
    elif dims.gated_mlp:
        up = [
            Formula(
                part="gate", equation=f"G = Z W_G{_bias(biased, 'G')}", flops="2*B*T*H*F", modules=("mlp.gate_proj",)
            ),
            Formula(part="up", equation=f"U = Z W_U{_bias(biased, 'U')}", flops="2*B*T*H*F", modules=("mlp.up_proj",)),
        ]
    else:
        up = [
            Formula(part="up", equation=f"U = Z W_1{_bias(biased, '1')}", flops="2*B*T*H*F", modules=("mlp.up_proj",))
        ]
    inner = f"{act}(G) * U" if dims.gated_mlp else f"{act}(U)"
    return [
        *up,
        Formula(
            part="down",
            equation=f"D = ({inner}) W_2{_bias(biased, '2')}",
            flops="2*B*T*H*F",
            modules=("mlp.down_proj",),
        ),
        _closing(dims, "D"),
    ]


def _experts(dims: TransformerDims) -> list[Formula]:
    assert dims.moe is not None
    moe = dims.moe
    scores = {
        "softmax": "g = top-k of softmax(Z W_R)",
        "topk_softmax": "g = softmax(top-k of Z W_R)",
        "sigmoid": "g = top-k of sigmoid(Z W_R) + bias",
    }[moe.router]
    groups = f", the best {moe.topk_group} of {moe.n_group} groups" if moe.n_group > 1 else ""
    lines = [
        Formula(part="router", equation=f"{scores}{groups}", flops="2*B*T*H*E", modules=("mlp.router",)),
        Formula(
            part="experts",
            equation=f"D = sum over the token's k experts e of g_e ({dims.hidden_act}(Z W_G,e) * Z W_U,e) W_2,e",
            flops="6*B*T*k*H*M",
            modules=("mlp.experts",),
        ),
    ]
    if moe.shared_expert_intermediate_size:
        lines.append(
            Formula(
                part="shared experts",
                equation=f"D = D + ({dims.hidden_act}(Z W_G) * Z W_U) W_2",
                flops="6*B*T*H*S",
                modules=("mlp.shared.gate_proj", "mlp.shared.up_proj", "mlp.shared.down_proj"),
            )
        )
    return [*lines, _closing(dims, "D")]


def _head(dims: TransformerDims) -> Section:
    formulas: tuple[Formula, ...]
    if dims.family == "encoder":
        formulas = (
            Formula(
                part="transform",
                equation=f"Z = {_norm_name(dims)}({dims.hidden_act}(X W_T + b_T))",
                flops="2*B*T*H*H",
                modules=("head.dense",),
            ),
            Formula(
                part="logits",
                equation=f"Z {'W_E^T' if dims.tie_word_embeddings else 'W_V'} + b_V",
                flops="2*B*T*H*V",
                modules=("head.decoder",),
            ),
            Formula(part="loss", equation="cross-entropy of the labelled positions"),
        )
    else:
        weight = "W_E^T" if dims.tie_word_embeddings else "W_V"
        formulas = (
            Formula(
                part="logits",
                equation=f"{_norm_name(dims)}(X) {weight}{_bias(dims.lm_head_bias, 'V')}",
                flops="2*B*T*H*V",
                modules=("lm_head",),
            ),
            Formula(part="loss", equation="cross-entropy of the next token"),
        )
    return Section(title="head", formulas=formulas)
