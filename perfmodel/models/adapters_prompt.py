"""Fine-tuning by what comes before the text: prefixes of keys and values, prompts of embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import UnsupportedError
from perfmodel.models.layers import IGNORED_LABEL

__all__ = ["add_prefix", "add_prompt", "replace_part"]


def replace_part(module: nn.Module, path: str, part: nn.Module) -> None:
    """Put ``part`` in the place of a submodule, in the mode (training or evaluation) of the whole."""
    parent, _, name = path.rpartition(".")
    part.train(module.training)
    setattr(module.get_submodule(parent), name, part)


# -- prefix ------------------------------------------------------------------------


class Prefixed(nn.Module):
    """Attention that also sees a trained prefix of keys and values."""

    def __init__(self, base: nn.Module, virtual_tokens: int, mask: PrefixMask) -> None:
        super().__init__()
        weight = next(base.parameters())
        heads, width = _key_value_heads(base), int(base.head_dim)  # type: ignore[arg-type]
        self.base, self.mask = base, mask
        self.prefix = nn.Parameter(
            torch.randn(2, heads, virtual_tokens, width, device=weight.device, dtype=torch.float32) * 0.02
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's."""
        with self._in_attention():
            return self.base(*args, **kwargs)

    @contextlib.contextmanager
    def _in_attention(self) -> Iterator[None]:
        original = functional.scaled_dot_product_attention

        def attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Tensor:
            key, value = (self._before(own, part) for own, part in zip(self.prefix, (key, value), strict=True))
            if is_causal:
                attn_mask = self.mask(query.shape[-2], self.prefix.shape[-2], query.device)
            elif attn_mask is not None:
                attn_mask = functional.pad(attn_mask, (self.prefix.shape[-2], 0), value=attn_mask.dtype == torch.bool)
            groups = query.shape[1] // key.shape[1]
            if attn_mask is not None and groups > 1:
                # As in transformers: with a mask, kernels take a key for each query head.
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            return original(
                query, key, value, attn_mask, dropout_p, scale=scale, enable_gqa=enable_gqa and attn_mask is None
            )

        functional.scaled_dot_product_attention = attention
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = original

    def _before(self, own: Tensor, states: Tensor) -> Tensor:
        own = own.to(states.dtype).expand(states.shape[0], -1, -1, -1)
        if states.shape[1] != own.shape[1]:
            own = own.repeat_interleave(states.shape[1] // own.shape[1], 1)
        return torch.cat([own, states], dim=-2)


class PrefixMask(nn.Module):
    """Which keys a query sees: all of the prefix, and those of the text up to its own. Kept for all layers."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: Tensor | None = None

    def forward(self, length: int, prefix: int, device: torch.device) -> Tensor:
        """Boolean, ``[length, prefix + length]``."""
        if self._kept is None or self._kept.shape[0] != length or self._kept.device != device:
            keys = torch.arange(prefix + length, device=device)
            self._kept = keys <= torch.arange(length, device=device)[:, None] + prefix
        return self._kept


def _key_value_heads(attention: nn.Module) -> int:
    for name in ("key_value_heads", "num_key_value_heads"):
        if isinstance(getattr(attention, name, None), int):
            return int(getattr(attention, name))
    keys = getattr(attention, "k_proj", None)
    if isinstance(keys, nn.Linear):
        return keys.out_features // int(attention.head_dim)  # type: ignore[arg-type]
    return int(attention.num_heads)  # type: ignore[arg-type]


def add_prefix(module: nn.Module, virtual_tokens: int) -> None:
    """Give every attention of a module a trained prefix.

    Raises
    ------
    UnsupportedError
        If it has no attention whose heads are known.
    """
    known = ("key_value_heads", "num_key_value_heads", "k_proj", "c_attn")
    found = [
        path
        for path, part in module.named_modules()
        if isinstance(getattr(part, "head_dim", None), int) and any(hasattr(part, name) for name in known)
    ]
    if not found:
        raise UnsupportedError(
            f"{type(module).__name__} has no attention whose keys have heads of one width (head_dim); "
            "capture it with peft's prefix-tuning, or choose another adapter"
        )
    mask = PrefixMask()
    for path in found:
        replace_part(module, path, Prefixed(module.get_submodule(path), virtual_tokens, mask))


# -- prompt ------------------------------------------------------------------------


class Prompted(nn.Module):
    """Embeddings of tokens, the first of which are trained ones."""

    def __init__(self, base: nn.Embedding, virtual_tokens: int) -> None:
        super().__init__()
        self.base = base
        self.prompt = nn.Parameter(
            torch.randn(virtual_tokens, base.embedding_dim, device=base.weight.device, dtype=torch.float32) * 0.02
        )

    def forward(self, ids: Tensor) -> Tensor:
        """``[batch, virtual + seq]`` to ``[batch, virtual + seq, width]``."""
        virtual = self.prompt.shape[0]
        text: Tensor = self.base(ids[:, virtual:])
        prompt = self.prompt.to(text.dtype).expand(ids.shape[0], -1, -1)
        return torch.cat([prompt, text], dim=1)


#: What the places of the prompt hold in each input; a label that doesn't count, a mask that hides nothing.
_PLACEHOLDERS = {"input_ids": 0, "labels": IGNORED_LABEL, "attention_mask": 1}


def add_prompt(module: nn.Module, virtual_tokens: int) -> None:
    """Put trained embeddings before those of a module's tokens; its inputs become longer by as many.

    Raises
    ------
    UnsupportedError
        If it embeds no tokens.
    """
    tables = {path: part for path, part in module.named_modules() if isinstance(part, nn.Embedding)}
    if not tables:
        raise UnsupportedError(
            f"{type(module).__name__} embeds no tokens, so it takes no prompt; choose another adapter"
        )
    path = max(tables, key=lambda name: tables[name].num_embeddings)
    replace_part(module, path, Prompted(tables[path], virtual_tokens))

    def lengthen(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        unknown = [name for name in kwargs if name not in _PLACEHOLDERS]
        if args or unknown:
            given = ", ".join(unknown) or "inputs by position"
            raise UnsupportedError(
                f"prompt-tuning lengthens {', '.join(_PLACEHOLDERS)}, given by name, and {type(part).__name__} is "
                f"called with {given}; choose another adapter"
            )
        padded = {
            name: functional.pad(value, (virtual_tokens, 0), value=_PLACEHOLDERS[name])
            for name, value in kwargs.items()
        }
        return args, padded

    module.register_forward_pre_hook(lengthen, with_kwargs=True)
