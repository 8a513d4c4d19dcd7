"""``explain``: the formulas of any family that has some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models import formulas_others
from perfmodel.models.formulas import Explanation
from perfmodel.models.formulas_transformer import decoder_or_encoder
from perfmodel.models.stacks import ModelDims

__all__ = ["explain"]

_FORMULAS: dict[str, Callable[[Any], Explanation]] = {
    "decoder": decoder_or_encoder,
    "encoder": decoder_or_encoder,
    "encoder-decoder": formulas_others.encoder_decoder,
    "speech": formulas_others.speech,
    "state-space": formulas_others.state_space,
    "vision": formulas_others.vision,
}


def explain(dims: ModelDims) -> Explanation:
    """The matrix products of a model, as a paper would write them.

    Raises
    ------
    UnsupportedError
        For a family whose formulas nobody has written down.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> explanation = explain(catalogue.get("llama-3.1-8b").dims)
    >>> [formula.flops for formula in explanation.sections[1].formulas][1]
    '2*B*T*H*d*A'
    """
    if dims.family not in _FORMULAS:
        raise UnsupportedError(
            f"no formulas are written down for the family {dims.family!r}; they are for {', '.join(_FORMULAS)} "
            "(`perfmodel capture MODEL --ops` lists what a step of any model runs)"
        )
    return _FORMULAS[dims.family](dims)
