"""Which key each query may attend to, as a tensor where attention needs one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["additive", "attention_mask_4d", "band_mask_4d", "causal_mask_4d"]


def attention_mask_4d(padding: Tensor, *, causal: bool) -> Tensor:
    """Which key each query may attend to.

    Parameters
    ----------
    padding : Tensor
        ``[batch, seq]``, nonzero where there is a token. Its contents aren't
        looked at: a mask of ones takes the path of a mask with padding.
    causal : bool
        Whether keys after the query are hidden too.

    Returns
    -------
    Tensor
        Boolean, ``[batch, 1, seq, seq]``.
    """
    positions = torch.arange(padding.shape[-1], device=padding.device)
    queries = positions[:, None]
    allowed = positions <= queries if causal else queries >= 0
    return allowed & padding.to(torch.bool)[:, None, None, :]


def causal_mask_4d(hidden: Tensor) -> Tensor:
    """Keys up to the query: boolean, ``[batch, 1, seq, seq]``, one copy for the batch of ``hidden``."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    return _over_batch(positions <= positions[:, None], hidden)


def band_mask_4d(hidden: Tensor, window: int) -> Tensor:
    """Of these the last ``window``, the query's own included."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    queries = positions[:, None]
    # From a scalar, as transformers joins conditions.
    visible = queries.new_ones((), dtype=torch.bool) & (positions > queries - window)
    return _over_batch(visible & (positions <= queries), hidden)


def _over_batch(mask: Tensor, hidden: Tensor) -> Tensor:
    batch, length = hidden.shape[:2]
    return mask[None, None].expand(batch, -1, length, length)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to the scores: 0, or the type's least number."""
    return torch.where(mask, torch.zeros((), device=mask.device, dtype=dtype), torch.finfo(dtype).min)
