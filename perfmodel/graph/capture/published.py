"""Scans of transformers' state-space models as the published kernels run them.

transformers calls the kernels of ``mamba_ssm`` where they are installed, and spells
the scans out in plain PyTorch where not. The functions are replaced by name in the
modules that have them: their arguments are those of the kernels. What else those
kernels fuse (the convolution, the projections) is left as transformers writes it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from perfmodel.graph.capture.scan import selective_scan, ssd_scan

__all__ = ["published_scans"]


@contextlib.contextmanager
def published_scans() -> Iterator[None]:
    """While active, transformers' models that are loaded call :func:`ssd_scan` and :func:`selective_scan`."""
    kept: list[tuple[Any, str, Any]] = []
    try:
        for name, module in list(sys.modules.items()):
            if not name.startswith("transformers.models."):
                continue
            for function, replacement in _REPLACEMENTS.items():
                original = vars(module).get(function)
                if callable(original):
                    kept.append((module, function, original))
                    setattr(module, function, functools.partial(replacement, original))
        yield
    finally:
        for module, function, original in kept:
            setattr(module, function, original)


def _ssd(
    original: Callable[..., Any],
    x: Any,
    dt: Any,
    A: Any,  # noqa: N803
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    chunk_size: int,
    D: Any = None,  # noqa: N803
    z: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_states: Any = None,
    return_final_states: bool = False,
    **others: Any,
) -> Any:
    """The published scan of whole sequences; what it isn't asked for in training stays transformers' own."""
    if initial_states is None and not return_final_states and tuple(dt_limit) == (0.0, math.inf):
        return ssd_scan(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)
    limits = {"dt_limit": dt_limit, "initial_states": initial_states, "return_final_states": return_final_states}
    return original(x, dt, A, B, C, chunk_size, D=D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus, **limits, **others)


def _selective(
    original: Callable[..., Any],
    u: Any,
    delta: Any,
    A: Any,  # noqa: N803
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any = None,  # noqa: N803
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **others: Any,
) -> Any:
    if not return_last_state:
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    bias = {"delta_bias": delta_bias, "delta_softplus": delta_softplus}
    return original(u, delta, A, B, C, D=D, z=z, **bias, return_last_state=True, **others)


#: By the names of transformers' functions.
_REPLACEMENTS: dict[str, Callable[..., Any]] = {"mamba2_chunk_scan": _ssd, "mamba_selective_scan": _selective}
