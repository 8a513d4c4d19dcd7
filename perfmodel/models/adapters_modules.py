"""The modules of :mod:`perfmodel.models.adapters`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import UnsupportedError
from perfmodel.graph.capture.quantized import linear_4bit
from perfmodel.models.adapters import (
    ALL_LINEAR,
    AdaLoRA,
    Adapter,
    BottleneckAdapter,
    LoRA,
    PrefixTuning,
    PromptTuning,
    QLoRA,
)
from perfmodel.models.adapters_prompt import add_prefix, add_prompt, replace_part

__all__ = ["apply"]

#: Query and value projections, or one that holds both, by the names in our modules and in transformers'.
_QUERY_AND_VALUE = ("q_proj", "v_proj", "qkv_proj", "c_attn", "attention.self.query", "attention.self.value", "q", "v")

#: The last layers of attention and of feed-forward.
_RESULTS = ("o_proj", "down_proj", "c_proj", "attention.output.dense", "output.dense", "out_proj", "fc2", "o", "wo")

_SCALES_PER_BLOCK = 256


def apply(module: nn.Module, spec: Adapter) -> nn.Module:
    """See :func:`perfmodel.models.adapters.apply`."""
    module.requires_grad_(False)
    if isinstance(spec, QLoRA):
        _quantize(module, spec)
        _replace(module, spec.targets or (ALL_LINEAR,), spec, lambda layer: LowRank(layer, spec))
    elif isinstance(spec, LoRA):
        _replace(module, spec.targets or _QUERY_AND_VALUE, spec, lambda layer: LowRank(layer, spec))
    elif isinstance(spec, AdaLoRA):
        _replace(module, spec.targets or _QUERY_AND_VALUE, spec, lambda layer: SingularValues(layer, spec))
        module.register_forward_hook(_OrthogonalityLoss(spec.orthogonality))
    elif isinstance(spec, BottleneckAdapter):
        if spec.train_norms:
            _train_norms(module)
        _replace(module, spec.targets or _RESULTS, spec, lambda layer: Bottleneck(layer, spec))
    elif isinstance(spec, PrefixTuning):
        add_prefix(module, spec.virtual_tokens)
    elif isinstance(spec, PromptTuning):
        add_prompt(module, spec.virtual_tokens)
    return module


# -- which layers ------------------------------------------------------------------


def _sizes(layer: nn.Module) -> tuple[int, int] | None:
    """Widths of a linear layer's input and result; ``None`` for other modules."""
    if isinstance(layer, (nn.Linear, Linear4bit)):
        return layer.in_features, layer.out_features
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor):  # GPT-2's, ours or transformers'
        return weight.shape[0], weight.shape[1]
    return None


def _linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    return {path: part for path, part in module.named_modules() if _sizes(part) is not None}


def _output_layers(module: nn.Module) -> set[int]:
    """Ids of the layers that give scores of a vocabulary: as many as the largest table of embeddings has rows."""
    vocabulary = max((part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)), default=0)
    return {
        id(part)
        for part in module.modules()
        if isinstance(part, nn.Linear) and vocabulary and part.out_features == vocabulary
    }


def _out_of_reach(module: nn.Module) -> list[str]:
    """Weights of products that no layer of its own holds, such as those of a router and its experts."""
    held = {id(p) for layer in module.modules() for p in layer.parameters(False) if _has_rules(layer)}
    return [path for path, p in module.named_parameters() if p.dim() >= 2 and id(p) not in held]


def _has_rules(layer: nn.Module) -> bool:
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return _sizes(layer) is not None or convolution or isinstance(layer, (nn.Embedding, nn.EmbeddingBag))


def _chosen(module: nn.Module, targets: tuple[str, ...], spec: Adapter) -> list[str]:
    layers = _linear_layers(module)
    if ALL_LINEAR in targets and targets != (ALL_LINEAR,):
        raise UnsupportedError(f"targets: {ALL_LINEAR!r} stands alone; name the layers, or give it without others")
    if targets == (ALL_LINEAR,):
        missed = _out_of_reach(module)
        if missed:
            raise UnsupportedError(
                f"{ALL_LINEAR!r} would leave out {missed[0]} and {len(missed) - 1} more weights that are no linear "
                "layers (a router's, experts'); name the layers to adapt in targets, or capture a module of peft's"
            )
        outputs = _output_layers(module)
        chosen = [path for path, layer in layers.items() if id(layer) not in outputs]
    else:
        chosen = [path for path in layers if any(path == end or path.endswith(f".{end}") for end in targets)]
    unmatched = (
        []
        if targets in ((ALL_LINEAR,), _QUERY_AND_VALUE, _RESULTS)  # the last two name what some models have
        else [end for end in targets if not any(path == end or path.endswith(f".{end}") for path in layers)]
    )
    if unmatched or not chosen:
        names = sorted({path.rpartition(".")[2] for path in layers})
        raise UnsupportedError(
            f"{type(module).__name__} has no linear layer named {', '.join(unmatched or targets)} for "
            f"{type(spec).__name__}; "
            f"give targets: {', '.join(names) or 'it has no linear layer'}"
        )
    return chosen


def _replace(
    module: nn.Module, targets: tuple[str, ...], spec: Adapter, make: Callable[[nn.Module], nn.Module]
) -> None:
    for path in _chosen(module, targets, spec):
        replace_part(module, path, make(module.get_submodule(path)))


def _place(layer: nn.Module, dtype: str | None) -> dict[str, Any]:
    """Device and type of new parameters beside those of a layer."""
    weight = next(layer.parameters())
    own = weight.dtype if weight.is_floating_point() else torch.float32
    half = own in (torch.float16, torch.bfloat16)
    chosen = getattr(torch, dtype) if dtype else torch.float32 if half else own
    return {"device": weight.device, "dtype": chosen}


# -- low rank ----------------------------------------------------------------------


class LowRank(nn.Module):
    """A frozen linear layer and a trained product of low rank (as ``peft.tuners.lora.layer.Linear`` runs it)."""

    def __init__(self, base: nn.Module, spec: LoRA) -> None:
        super().__init__()
        inputs, outputs = _sizes(base) or (0, 0)
        place = _place(base, spec.dtype)
        self.base = base
        self.dropout: nn.Module = nn.Dropout(spec.dropout) if spec.dropout else nn.Identity()
        self.lora_a = nn.Linear(inputs, spec.rank, bias=False, **place)
        self.lora_b = nn.Linear(spec.rank, outputs, bias=False, **place)
        nn.init.zeros_(self.lora_b.weight)
        self.scaling = spec.alpha / spec.rank

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the base's type."""
        result: Tensor = self.base(x)
        dtype = result.dtype
        x = x.to(self.lora_a.weight.dtype)
        result = result + self.lora_b(self.lora_a(self.dropout(x))) * self.scaling
        return result.to(dtype)


class SingularValues(nn.Module):
    """A frozen linear layer and a trained ``B E A`` (as ``peft.tuners.adalora.layer.SVDLinear`` runs it)."""

    def __init__(self, base: nn.Module, spec: AdaLoRA) -> None:
        super().__init__()
        inputs, outputs = _sizes(base) or (0, 0)
        place = _place(base, spec.dtype)
        self.base = base
        self.dropout: nn.Module = nn.Dropout(spec.dropout) if spec.dropout else nn.Identity()
        self.lora_a = nn.Parameter(torch.randn(spec.rank, inputs, **place) * 0.02)
        self.lora_e = nn.Parameter(torch.zeros(spec.rank, 1, **place))
        self.lora_b = nn.Parameter(torch.randn(outputs, spec.rank, **place) * 0.02)
        self.ranknum = nn.Parameter(torch.full((1,), float(spec.rank), **place), requires_grad=False)
        self.penalty = Orthogonality()
        # The layer's own parameters: reached through a call of the penalty, so that its ops have the layer's path.
        self.scaling = spec.alpha or float(spec.rank)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the base's type."""
        result: Tensor = self.base(x)
        ranknum = self.ranknum + 1e-5
        x = x.to(self.lora_a.dtype)
        result += (self.dropout(x) @ (self.lora_a * self.lora_e).T @ self.lora_b.T) * self.scaling / ranknum
        return result


class Orthogonality(nn.Module):
    """How far singular vectors are from orthogonal: ``|A A^T - 1| + |B^T B - 1|``, added to a running sum."""

    def forward(self, total: Tensor | int, a: Tensor, b: Tensor) -> Tensor:
        """The sum with both norms."""
        for gram in (a @ a.T, b.T @ b):
            unit = torch.eye(*gram.size(), out=torch.empty_like(gram))
            total = total + torch.norm(gram - unit, p="fro")
        assert isinstance(total, Tensor)
        return total


class _OrthogonalityLoss:
    """A forward hook that adds the term to the loss, as ``AdaLoraModel.forward`` does."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> Any:
        total: Tensor | int = 0
        layers = [part for part in module.modules() if isinstance(part, SingularValues)]
        for layer in layers:
            total = layer.penalty(total, layer.lora_a, layer.lora_b)
        return _with_loss(output, lambda loss: loss + self._weight * (total / (2 * len(layers))))


def _with_loss(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple) and hasattr(output, "_replace"):
        return output._replace(loss=change(output.loss))  # type: ignore[attr-defined]
    if getattr(output, "loss", None) is None:
        raise UnsupportedError(f"AdaLoRA adds to the loss, and the module returned {type(output).__name__} without one")
    output.loss = change(output.loss)
    return output


# -- four bits ---------------------------------------------------------------------


class Linear4bit(nn.Module):
    """A frozen linear layer of four bits a weight; its values are those of no trained model."""

    def __init__(self, base: nn.Linear, *, block: int, double_quantization: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.block = base.in_features, base.out_features, block
        device, weights = base.weight.device, base.weight.numel()
        if weights % block:
            raise UnsupportedError(
                f"a layer of {base.in_features} x {base.out_features} weights can't be divided into blocks of {block}"
            )
        self.weight = nn.Parameter(torch.zeros(weights // 2, dtype=torch.uint8, device=device), requires_grad=False)
        self.bias = base.bias
        scales = weights // block
        self.nested = double_quantization
        kind = torch.uint8 if double_quantization else torch.float32
        self.register_buffer("absmax", torch.zeros(scales, dtype=kind, device=device))
        if double_quantization:
            groups = math.ceil(scales / _SCALES_PER_BLOCK)
            self.register_buffer("nested_code", torch.zeros(256, device=device))
            self.register_buffer("nested_absmax", torch.zeros(groups, device=device))
            self.register_buffer("offset", torch.zeros((), device=device))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        buffers = dict(self.named_buffers())
        nested = (buffers["nested_code"], buffers["nested_absmax"], buffers["offset"]) if self.nested else None
        shape = (self.out_features, self.in_features)
        return linear_4bit(x, self.weight, buffers["absmax"], self.bias, shape=shape, nested=nested, block=self.block)


def _quantize(module: nn.Module, spec: QLoRA) -> None:
    outputs = _output_layers(module)
    held = [path for path, layer in _linear_layers(module).items() if not isinstance(layer, nn.Linear)]
    missed = [*held, *_out_of_reach(module)]
    if missed:
        raise UnsupportedError(
            f"QLoRA stores nn.Linear layers in four bits, and {missed[0]} (of {len(missed)} others) is none; "
            "give LoRA, or capture a module that quantises them"
        )
    for path, layer in _linear_layers(module).items():
        if isinstance(layer, nn.Linear) and id(layer) not in outputs:
            replace_part(
                module, path, Linear4bit(layer, block=spec.block, double_quantization=spec.double_quantization)
            )


# -- bottleneck --------------------------------------------------------------------


class Bottleneck(nn.Module):
    """A layer whose result ``h`` becomes ``h + up(gelu(down(h)))`` (Houlsby et al. 2019, section 2.1)."""

    def __init__(self, base: nn.Module, spec: BottleneckAdapter) -> None:
        super().__init__()
        _, width = _sizes(base) or (0, 0)
        weight = next(base.parameters())
        self.base = base
        self.down = nn.Linear(width, spec.size, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(spec.size, width, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the base's."""
        hidden: Tensor = self.base(x)
        return hidden + self.up(functional.gelu(self.down(hidden)))  # type: ignore[no-any-return]


def _train_norms(module: nn.Module) -> None:
    for part in module.modules():
        if type(part).__name__.endswith("Norm"):
            part.requires_grad_(True)
