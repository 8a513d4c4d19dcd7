"""An encoder in pre-training: masked tokens at given positions, and which sentence follows."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.models.dims_pretraining import PretrainingDims
from perfmodel.models.encoder import Encoder
from perfmodel.models.layers import IGNORED_LABEL, LossAndLogits

__all__ = ["PretrainingEncoder", "build"]


class NextSentenceHead(nn.Module):
    """Two logits from the hidden state of the first token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to ``[batch, 2]``."""
        return self.classifier(torch.tanh(self.dense(hidden[:, 0])))  # type: ignore[no-any-return]


class PretrainingEncoder(nn.Module):
    """Token ids in, mean cross-entropy of the masked ones (and of which sentence follows) out.

    Parameters
    ----------
    dims : PretrainingDims
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return :class:`perfmodel.models.layers.LossAndLogits` instead of the loss alone.
    """

    def __init__(
        self, dims: PretrainingDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
    ) -> None:
        super().__init__()
        self.return_logits = return_logits
        self.encoder = Encoder(dims.encoder, gradient_checkpointing=gradient_checkpointing)
        self.next_sentence = NextSentenceHead(dims.encoder.hidden_size) if dims.next_sentence else None

    def forward(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
    ) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        input_ids : Tensor
            ``[batch, seq]`` of int64.
        masked_positions, labels : Tensor
            ``[batch, predictions]`` of int64: where in the sequence, and which token was there;
            a label of -100 doesn't count.
        attention_mask, token_type_ids : Tensor, optional
            ``[batch, seq]``: nonzero where there is a token, and which half it is of.
        next_sentence_label : Tensor, optional
            ``[batch]`` of int64; for a model with that head.
        """
        hidden = self.encoder.encode(input_ids, attention_mask, token_type_ids)
        batch, length, width = hidden.shape
        rows = masked_positions + torch.arange(batch, device=hidden.device)[:, None] * length
        masked = hidden.reshape(-1, width).index_select(0, rows.view(-1))
        logits = self.encoder.head(masked)
        loss = functional.cross_entropy(logits, labels.view(-1), ignore_index=IGNORED_LABEL)
        if self.next_sentence is not None and next_sentence_label is not None:
            loss = loss + functional.cross_entropy(self.next_sentence(hidden), next_sentence_label)
        return LossAndLogits(loss, logits) if self.return_logits else loss


def build(
    dims: PretrainingDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
) -> PretrainingEncoder:
    """An encoder in pre-training; see :class:`PretrainingEncoder`."""
    return PretrainingEncoder(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
