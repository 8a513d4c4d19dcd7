"""Matrix flops against ``torch.utils.flop_counter``, shape by shape and over whole training steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from perfmodel.ops import FAMILIES, FLOP_COUNTER_OPS, OpCost, Tensor, cost

aten = torch.ops.aten
sizes = st.integers(1, 24)
quick = settings(max_examples=40, deadline=None)


def look(tensor: torch.Tensor) -> Tensor:
    return Tensor(
        shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."), strides=tuple(tensor.stride())
    )


def call_of(op: Any, args: Any, kwargs: Any, result: Any) -> SimpleNamespace:
    """An op call as our rules take it, from real tensors."""
    inputs: dict[str, Tensor] = {}
    attrs: dict[str, Any] = {}
    named = dict(zip((a.name for a in op._schema.arguments), args, strict=False)) | dict(kwargs)
    for name, value in named.items():
        if isinstance(value, torch.Tensor):
            inputs[name] = look(value)
        elif isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            inputs.update({f"{name}.{i}": look(v) for i, v in enumerate(value) if isinstance(v, torch.Tensor)})
        elif value is not None and name not in ("device", "layout", "pin_memory"):
            attrs[name] = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    flat = torch.utils._pytree.tree_leaves(result)
    outputs = tuple(look(value) for value in flat if isinstance(value, torch.Tensor))
    return SimpleNamespace(name=f"{op.namespace}.{op._opname}", inputs=inputs, outputs=outputs, attrs=attrs)


class Recorder(TorchDispatchMode):
    """Keeps every op call that runs below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[SimpleNamespace] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace not in ("prim", "profiler") and func._opname != "is_same_size":
            self.calls.append(call_of(func, args, kwargs or {}, result))
        return result


def ours(op: Any, *args: Any) -> OpCost:
    with torch.device("meta"):
        found = cost(call_of(op, args, {}, op(*args)))
    assert found is not None
    return found


def theirs(op: Any, *args: Any) -> int:
    return flop_counter.flop_registry[op.overloadpacket](*args, out_val=op(*args))


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# -- one op, random shapes ---------------------------------------------------------


def test_the_ops_it_knows_are_the_ones_we_name() -> None:
    known = {f"aten.{op.__name__}" for op in flop_counter.flop_registry if hasattr(op, "_qualified_op_name")}
    assert known == {name for name in FLOP_COUNTER_OPS if name.startswith("aten.")}


@quick
@given(b=sizes, m=sizes, n=sizes, k=sizes)
def test_products(b: int, m: int, n: int, k: int) -> None:
    for op, args in (
        (aten.mm.default, (meta(m, k), meta(k, n))),
        (aten.addmm.default, (meta(n), meta(m, k), meta(k, n))),
        (aten.bmm.default, (meta(b, m, k), meta(b, k, n))),
        (aten.baddbmm.default, (meta(b, m, n), meta(b, m, k), meta(b, k, n))),
    ):
        c = ours(op, *args)
        assert c.matrix_flops == theirs(op, *args)
        shape: Any = c.shape
        assert 2 * shape.b * shape.m * shape.n * shape.k == c.matrix_flops


@st.composite
def convolutions(draw: Any) -> tuple[Any, ...]:
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    c_in, c_out = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    window = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    spatial = [w + draw(st.integers(3, 9)) for w in window]
    stride = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    padding = draw(st.lists(st.integers(0, 1), min_size=rank, max_size=rank))
    transposed = draw(st.booleans())
    weight = (c_in, c_out // groups) if transposed else (c_out, c_in // groups)
    x = meta(draw(st.integers(1, 4)), c_in, *spatial)
    bias = draw(st.sampled_from([None, meta(c_out)]))
    return x, meta(*weight, *window), bias, stride, padding, [1] * rank, transposed, [0] * rank, groups


@quick
@given(case=convolutions(), mask=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_convolutions(case: tuple[Any, ...], mask: tuple[bool, bool, bool]) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = case
    forward = aten.convolution.default
    c = ours(forward, *case)
    assert c.matrix_flops == theirs(forward, *case)
    shape: Any = c.shape
    assert 2 * shape.b * shape.m * shape.n * shape.k == c.matrix_flops
    grad = forward(*case)
    bias_sizes = None if bias is None else list(bias.shape)
    mask = (*mask[:2], mask[2] and bias is not None)
    args = (grad, x, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, list(mask))
    backward = aten.convolution_backward.default
    c = ours(backward, *args)
    # Of a grouped convolution, the counter's formula gives the weight's gradient the products of all channels
    # with all, not of a group's with its own: too many by the number of groups. Forward is right, and each
    # product of backward is as large.
    one = theirs(forward, *case)
    assert theirs(backward, *args) == one * mask[0] + one * groups * mask[1]
    assert c.matrix_flops == one * mask[0] + one * mask[1]
    products = mask[0] + mask[1]
    assert c.kernels == sum(mask)
    if products:
        shape = c.shape
        assert 2 * shape.b * shape.m * shape.n * shape.k * products == c.matrix_flops


@quick
@given(
    b=sizes, kv_heads=st.integers(1, 4), group=st.integers(1, 4), q_len=sizes, kv_len=sizes, d=sizes, dv=sizes,
    causal=st.booleans(),
)  # fmt: skip
def test_attention(b: int, kv_heads: int, group: int, q_len: int, kv_len: int, d: int, dv: int, causal: bool) -> None:
    heads = kv_heads * group
    q, k, v, grad = (b, heads, q_len, d), (b, kv_heads, kv_len, d), (b, kv_heads, kv_len, dv), (b, heads, q_len, dv)
    named = {"query": q, "key": k, "value": v, "out": grad, "grad_out": grad}
    tensors = {name: Tensor(shape=shape, dtype="bfloat16") for name, shape in named.items()}
    inputs = {name: tensors[name] for name in ("query", "key", "value")}
    lse = Tensor(shape=(b, heads, q_len), dtype="float32")
    attrs = {"is_causal": causal}
    forward = cost(
        SimpleNamespace(name="perfmodel.attention", inputs=inputs, outputs=(tensors["out"], lse), attrs=attrs)
    )
    assert forward is not None
    assert forward.matrix_flops == flop_counter.sdpa_flop_count(q, k, v)
    grads = tuple(inputs.values())
    backward = cost(
        SimpleNamespace(
            name="perfmodel.attention_backward", inputs={**tensors, "logsumexp": lse}, outputs=grads, attrs=attrs
        )
    )
    assert backward is not None
    assert backward.matrix_flops == flop_counter.sdpa_backward_flop_count(grad, q, k, v)
    assert backward.repeated == flop_counter.bmm_flop((b * heads, q_len, d), (b * heads, d, kv_len))
    hidden = int((torch.ones(q_len, kv_len).triu(1)).sum()) * b * heads if causal else 0
    assert forward.masked == 2 * hidden * (d + dv)
    assert backward.masked == 2 * hidden * (3 * d + 2 * dv)
    assert backward.repeated_masked == 2 * hidden * d


# -- whole steps -------------------------------------------------------------------


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Dropout(0.1), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.layers(x), torch.zeros(x.shape[0], dtype=torch.long))


class Convnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.SiLU(), nn.ConvTranspose2d(8, 6, 2, stride=2),
            nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.layers(x), torch.zeros(x.shape[0], 5))


class Activations(nn.Module):
    """One of everything that PyTorch has as a module, without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.layers = nn.ModuleList(
            [
                nn.ELU(), nn.CELU(), nn.SELU(), nn.LeakyReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardswish(), nn.Mish(),
                nn.Hardsigmoid(), nn.Softplus(), nn.Softshrink(), nn.Hardshrink(), nn.Tanhshrink(), nn.LogSigmoid(),
                nn.Sigmoid(), nn.Tanh(), nn.Softsign(), nn.PReLU(), nn.Softmin(-1), nn.LogSoftmax(-1),
                nn.Threshold(0.1, 1), nn.GELU("tanh"), nn.RMSNorm(8), nn.InstanceNorm1d(3),
                nn.Dropout(0.2, inplace=True),
            ]
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        total = sum(layer(y.clone()).mean() for layer in self.layers)
        total = total + F.glu(y).sum() + y.std() + y.var(-1).sum() + y.norm() + torch.logsumexp(y, -1).sum()
        total = total + F.smooth_l1_loss(y, x) + F.huber_loss(y, x) + F.binary_cross_entropy(y.sigmoid(), x.sigmoid())
        total = total + F.binary_cross_entropy_with_logits(y, x.sigmoid()) + y.cumsum(-1).amax() + y.prod()
        total = total + F.pad(y, (1, 1)).sum() + y.roll(1, 0).flip(0).max(-1).values.sum() + y.tril().abs().sqrt().sum()
        total = (
            total + y[:, [0, 2]].sum() + y.index_select(-1, torch.tensor([1, 1])).sum() + torch.where(y > 0, y, 0).sum()
        )
        total = total + y.gather(-1, torch.zeros(2, 3, 2, dtype=torch.long)).sum() + y.clamp(-1, 1).lerp(x, 0.5).sum()
        return (
            total
            + F.interpolate(y, scale_factor=2.0, mode="linear").sum()
            + F.embedding_bag(torch.zeros(2, 2, dtype=torch.long), self.inner.weight).sum()
        )


class Attention(nn.Module):
    """A transformer encoder layer whose scores are materialised."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embedding(tokens)).square().mean()


def huggingface(name: str, dropout: float) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        if name == "gpt2":
            rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
            config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32, **rates)
            kind = transformers.GPT2LMHeadModel
        elif name == "llama":
            config = transformers.LlamaConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=48, vocab_size=64, attention_dropout=dropout,
            )  # fmt: skip
            kind = transformers.LlamaForCausalLM
        else:
            config = transformers.BertConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=64,
                hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            )  # fmt: skip
            kind = transformers.BertForMaskedLM
        config._attn_implementation = "eager"

        class Loss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = kind(config)

            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                return self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss

        return Loss()

    return build


def tokens() -> torch.Tensor:
    return torch.zeros(2, 7, dtype=torch.long)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (Mlp, lambda: torch.randn(3, 16)),
    "convnet": (Convnet, lambda: torch.randn(2, 3, 12, 12)),
    "activations": (Activations, lambda: torch.rand(2, 3, 8)),
    "attention": (Attention, tokens),
    **{f"{n}-dropout{p}": (huggingface(n, p), tokens) for n in ("gpt2", "llama", "bert") for p in (0.0, 0.1)},
}


@contextlib.contextmanager
def counting() -> Iterator[tuple[Recorder, flop_counter.FlopCounterMode]]:
    counter = flop_counter.FlopCounterMode(display=False)
    recorder = Recorder()
    with counter, recorder:
        yield recorder, counter


def costs(calls: list[SimpleNamespace]) -> list[OpCost]:
    found = [(call.name, cost(call)) for call in calls]
    assert {name for name, c in found if c is None} == set()
    return [c for _, c in found if c is not None]


@pytest.mark.parametrize("name", MODULES)
def test_training_step(name: str) -> None:
    build, inputs = MODULES[name]
    torch.manual_seed(0)
    module, x = build(), inputs()
    with counting() as (recorder, counter):
        module(x).backward()
    found = costs(recorder.calls)
    assert sum(c.matrix_flops for c in found) == counter.get_total_flops() > 0
    for c in found:
        assert c.family in FAMILIES
        assert min(c.matrix_flops, c.vector_flops, c.read, c.written, c.rows, c.cols, c.kernels) >= 0
        assert (c.kernels == 0) == (c.family in ("view", "host"))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    **{
        f"{kind.__name__}-{how}": (
            lambda ps, kind=kind, options=options: kind(ps, lr=0.01, weight_decay=0.1, **options)
        )
        for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad)
        for how, options in (("single", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True}))
    },
    "SGD-momentum": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9, nesterov=True),
    "AdamW-amsgrad": lambda ps: torch.optim.AdamW(ps, lr=0.01, amsgrad=True, foreach=True),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.9),
    "NAdam": lambda ps: torch.optim.NAdam(ps, lr=0.01),
    "Adamax": lambda ps: torch.optim.Adamax(ps, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step(name: str) -> None:
    module = Mlp()
    optimizer = OPTIMIZERS[name](module.parameters())
    for _ in range(2):  # the second step has its states
        module(torch.randn(3, 16)).backward()
        with Recorder() as recorder, torch.no_grad():
            optimizer.step()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    found = costs(recorder.calls)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    # Every optimizer reads weights and gradients and writes weights.
    assert sum(c.read for c in found) >= 2 * weights
    assert sum(c.written for c in found) >= weights
    assert sum(c.matrix_flops for c in found) == 0
