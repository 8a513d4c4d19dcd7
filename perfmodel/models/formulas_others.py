"""Formulas of encoder-decoders, vision and state-space models."""

from __future__ import annotations

from collections.abc import Iterable

from perfmodel.models.dims_encoder_decoder import EncoderDecoderDims
from perfmodel.models.dims_speech import SpeechDims
from perfmodel.models.dims_state_space import StateSpaceDims
from perfmodel.models.dims_vision import VisionDims
from perfmodel.models.formulas import Explanation, Formula, Section, Symbol, layer_title

__all__ = ["encoder_decoder", "speech", "state_space", "vision"]

_BATCH = Symbol(name="B", meaning="sequences a step", size="batch")


def encoder_decoder(dims: EncoderDecoderDims) -> Explanation:
    """The formulas of T5 (Raffel et al. 2020): scores with a learned bias by distance, no scaling."""
    legend = (
        _BATCH,
        Symbol(name="S", meaning="tokens of the source", size="seq"),
        Symbol(name="T", meaning="tokens of the target", size="target_seq"),
        Symbol(name="V", meaning="vocabulary", value=dims.vocab_size),
        Symbol(name="H", meaning="hidden size (d_model)", value=dims.d_model),
        Symbol(name="A", meaning="attention heads", value=dims.num_heads),
        Symbol(name="d", meaning="size of a head (d_kv)", value=dims.d_kv),
        Symbol(name="F", meaning="feed-forward size (d_ff)", value=dims.d_ff),
    )
    act = "gelu_new" if dims.gated else "relu"

    def stack(path: str, depth: int, length: str, *, decoder: bool) -> Section:
        lines = [*_attend("attention", length, length, "softmax(Q K^T + bias) V", "H", "d*A")]
        if decoder:
            lines += _attend("cross_attention", length, "S", "softmax(Q K^T) V  (of the source)", "H", "d*A")
        lines += _feed("RMSNorm", length, act, gated=dims.gated)
        layers = tuple(range(depth))
        return Section(title=f"{path}: {layer_title(layers)}", formulas=tuple(lines), layers=layers, stack=path)

    weight = "W_E^T" if dims.tie_word_embeddings else "W_V"
    logits = Formula(part="logits", equation=f"RMSNorm(X) {weight}", flops="2*B*T*H*V", modules=("lm_head",))
    return Explanation(
        legend=legend,
        sections=(
            stack("encoder.layers", dims.num_layers, "S", decoder=False),
            stack("decoder.layers", dims.num_decoder_layers, "T", decoder=True),
            Section(title="head", formulas=(logits,)),
        ),
    )


def speech(dims: SpeechDims) -> Explanation:
    """The formulas of Whisper (Radford et al. 2022): two convolutions in front of the encoder."""
    legend = (
        _BATCH,
        Symbol(name="T", meaning="tokens of the text", size="seq"),
        Symbol(
            name="P", meaning="positions of the encoder; audio is padded to 2 P frames", value=dims.max_source_positions
        ),
        Symbol(name="m", meaning="mel bins a frame", value=dims.num_mel_bins),
        Symbol(name="V", meaning="vocabulary", value=dims.vocab_size),
        Symbol(name="H", meaning="hidden size (d_model)", value=dims.d_model),
        Symbol(name="F", meaning="feed-forward size of the encoder", value=dims.encoder_ffn_dim),
        Symbol(name="G", meaning="feed-forward size of the decoder", value=dims.decoder_ffn_dim),
    )
    front = (
        Formula(part="convolution", equation="gelu(conv3(mel))", flops="2*B*(2*P)*3*m*H", modules=("encoder.conv1",)),
        Formula(
            part="convolution", equation="gelu(conv3(X)), every 2nd", flops="2*B*P*3*H*H", modules=("encoder.conv2",)
        ),
    )
    act = dims.activation_function
    core = "softmax(Q K^T / sqrt(H/A)) V"
    encoder = [*_attend("attention", "P", "P", core, "H", "H"), *_feed("LayerNorm", "P", act, gated=False)]
    decoder = [
        *_attend("attention", "T", "T", f"{core}  (keys before)", "H", "H"),
        *_attend("cross_attention", "T", "P", f"{core}  (of the audio)", "H", "H"),
        *_feed("LayerNorm", "T", act, gated=False, inner="G"),
    ]
    logits = Formula(part="logits", equation="LayerNorm(X) W_E^T", flops="2*B*T*H*V", modules=("lm_head",))
    return Explanation(
        legend=legend,
        sections=(
            Section(title="front end", formulas=front),
            _section("encoder.layers", dims.encoder_layers, encoder),
            _section("decoder.layers", dims.decoder_layers, decoder),
            Section(title="head", formulas=(logits,)),
        ),
    )


def vision(dims: VisionDims) -> Explanation:
    """The formulas of a vision transformer (Dosovitskiy et al. 2020, equations 1 to 4)."""
    legend = (
        Symbol(name="B", meaning="images a step", size="batch"),
        Symbol(name="P", meaning="patches of an image", value=dims.num_patches),
        Symbol(name="p", meaning="pixels along a patch", value=dims.patch_size),
        Symbol(name="h", meaning="channels of an image", value=dims.num_channels),
        Symbol(name="H", meaning="hidden size", value=dims.hidden_size),
        Symbol(name="A", meaning="attention heads", value=dims.num_attention_heads),
        Symbol(name="F", meaning="feed-forward size", value=dims.intermediate_size),
        Symbol(name="C", meaning="classes", value=dims.num_labels),
    )
    patches = Formula(
        part="patches",
        equation="X = [class; patches W_E] + places",
        flops="2*B*P*h*p*p*H",
        modules=("embeddings.patches",),
    )
    layer = [
        *_attend("attention", "(P + 1)", "(P + 1)", "softmax(Q K^T / sqrt(H/A)) V", "H", "H"),
        *_feed("LayerNorm", "(P + 1)", dims.hidden_act, gated=False),
    ]
    head = Formula(part="logits", equation="LayerNorm(X)[class] W_C + b_C", flops="2*B*H*C", modules=("classifier",))
    return Explanation(
        legend=legend,
        sections=(
            Section(title="embeddings", formulas=(patches,)),
            _section("layers", dims.num_hidden_layers, layer),
            Section(title="head", formulas=(head,)),
        ),
    )


def state_space(dims: StateSpaceDims) -> Explanation:
    """The formulas of Mamba (Gu and Dao 2023, algorithm 2) and Mamba-2 (Dao and Gu 2024, section 6)."""
    legend = [
        _BATCH,
        Symbol(name="T", meaning="tokens a sequence", size="seq"),
        Symbol(name="V", meaning="vocabulary", value=dims.vocab_size),
        Symbol(name="H", meaning="hidden size", value=dims.hidden_size),
        Symbol(name="I", meaning="channels of the scan", value=dims.channels),
        Symbol(name="N", meaning="size of the state", value=dims.state_size),
        Symbol(name="k", meaning="width of the convolution, padded by k - 1 on both sides", value=dims.conv_kernel),
    ]
    if dims.scan == "ssd":
        legend += [
            Symbol(name="G", meaning="groups that share B and C", value=dims.n_groups),
            Symbol(name="A", meaning="heads", value=dims.num_heads),
            Symbol(name="Q", meaning="positions of a chunk; T is padded to whole ones", value=dims.chunk_size),
        ]
        padded = "((T + Q - 1)//Q)*Q"
        layer = [
            Formula(
                part="projection",
                equation="[z x B C dt] = RMSNorm(X) W_in",
                flops="2*B*T*H*(2*I + 2*G*N + A)",
                modules=("mixer.in_proj",),
            ),
            Formula(
                part="convolution",
                equation="[x B C] = silu(conv_k([x B C])), of each channel",
                flops="2*B*(T + k - 1)*k*(I + 2*G*N)",
                modules=("mixer.conv1d",),
            ),
            Formula(
                part="scan",
                equation="y = (mask * C B^T) x within a chunk + C (state before); the state a chunk leaves = B^T x",
                flops=f"2*B*{padded}*(Q*G*N + Q*I + 2*N*I)",
                modules=("mixer",),
            ),
            Formula(
                part="output",
                equation="X = X + Norm(y * silu(z)) W_out",
                flops="2*B*T*I*H",
                modules=("mixer.out_proj",),
            ),
        ]
    else:
        legend.append(Symbol(name="R", meaning="rank of the time step", value=dims.time_step_rank))
        layer = [
            Formula(
                part="projection", equation="[x z] = RMSNorm(X) W_in", flops="4*B*T*H*I", modules=("mixer.in_proj",)
            ),
            Formula(
                part="convolution",
                equation="x = silu(conv_k(x)), of each channel",
                flops="2*B*(T + k - 1)*k*I",
                modules=("mixer.conv1d",),
            ),
            Formula(
                part="step, B, C", equation="[dt B C] = x W_x", flops="2*B*T*I*(R + 2*N)", modules=("mixer.x_proj",)
            ),
            Formula(part="time step", equation="dt = softplus(dt W_dt + b)", flops="2*B*T*R*I", modules=("mixer",)),
            Formula(part="scan", equation="h = exp(dt A) h + dt B x,  y = C h + D x  (vector unit)"),
            Formula(
                part="output", equation="X = X + (y * silu(z)) W_out", flops="2*B*T*I*H", modules=("mixer.out_proj",)
            ),
        ]
    weight = "W_E^T" if dims.tie_word_embeddings else "W_V"
    logits = Formula(part="logits", equation=f"RMSNorm(X) {weight}", flops="2*B*T*H*V", modules=("lm_head",))
    return Explanation(
        legend=tuple(legend),
        sections=(_section("layers", dims.num_hidden_layers, layer), Section(title="head", formulas=(logits,))),
    )


def _section(stack: str, depth: int, formulas: Iterable[Formula]) -> Section:
    layers = tuple(range(depth))
    title = layer_title(layers) if stack == "layers" else f"{stack}: {layer_title(layers)}"
    return Section(title=title, formulas=tuple(formulas), layers=layers, stack=stack)


def _attend(module: str, queries: str, keys: str, core: str, hidden: str, width: str) -> list[Formula]:
    """Attention of ``queries`` positions to ``keys`` positions, all heads ``width`` wide together."""
    cross = module == "cross_attention"
    source = "S" if cross else "Z"

    def projection(part: str, equation: str, positions: str, name: str) -> Formula:
        return Formula(
            part=f"cross {part}" if cross else part,
            equation=equation,
            flops=f"2*B*{positions}*{hidden}*{width}",
            modules=(f"{module}.{name}",),
        )

    return [
        projection("queries", "Q = Z W_Q", queries, "q_proj"),
        projection("keys", f"K = {source} W_K", keys, "k_proj"),
        projection("values", f"V = {source} W_V", keys, "v_proj"),
        Formula(
            part="cross attention" if cross else "attention",
            equation=f"O = {core}",
            flops=f"4*B*{queries}*{keys}*{width}",
            modules=(module,),
        ),
        projection("output", "X = X + O W_O", queries, "o_proj"),
    ]


def _feed(norm: str, positions: str, act: str, *, gated: bool, inner: str = "F") -> list[Formula]:
    flops = f"2*B*{positions}*H*{inner}"
    gate = [Formula(part="gate", equation=f"g = {norm}(X) W_0", flops=flops, modules=("mlp.gate_proj",))]
    return [
        *(gate if gated else []),
        Formula(part="up", equation=f"u = {norm}(X) W_1", flops=flops, modules=("mlp.up_proj",)),
        Formula(
            part="down",
            equation=f"X = X + ({act}(g) * u) W_2" if gated else f"X = X + {act}(u) W_2",
            flops=flops,
            modules=("mlp.down_proj",),
        ),
    ]
