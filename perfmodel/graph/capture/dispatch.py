"""Which kernels a capture records: an accelerator's, or those of this CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from perfmodel.graph.capture.attention import as_one_op, dropout_as
from perfmodel.graph.capture.embedding import bags_as_on_a_gpu
from perfmodel.graph.capture.experts import grouped_products
from perfmodel.graph.capture.published import published_scans
from perfmodel.graph.capture.quantized import dequantize_as_one_op
from perfmodel.graph.capture.recurrent import recurrent_as_one_op
from perfmodel.graph.capture.scan import scan_as_one_op

__all__ = ["dispatched_as"]

_ACCELERATORS = (
    as_one_op,
    recurrent_as_one_op,
    scan_as_one_op,
    published_scans,
    dequantize_as_one_op,
    bags_as_on_a_gpu,
)


@contextlib.contextmanager
def dispatched_as(kind: str) -> Iterator[None]:
    """While active, ops are recorded as an accelerator's libraries have them (``"neutral"``) or as ``"cpu"`` runs them.

    An accelerator has one op each for attention, a recurrent layer, a state-space
    scan and the reading of quantised weights. It needs PyTorch's Python dispatcher.
    """
    with contextlib.ExitStack() as stack:
        for context in _ACCELERATORS if kind == "neutral" else ():
            stack.enter_context(context())
        stack.enter_context(dropout_as(kind))
        stack.enter_context(grouped_products())
        yield
