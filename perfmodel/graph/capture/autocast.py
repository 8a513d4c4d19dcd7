"""``torch.autocast`` as an accelerator applies it, on a build of PyTorch without one.

A capture runs on fake CPU tensors, for which PyTorch applies the CPU's lists of ops, and ``autocast("cuda")``
does nothing. While ``autocast_as("neutral")`` is active the CPU stands in for the accelerator: autocast for
either device follows the accelerator's lists (``ATen/autocast_mode.h``, "CUDA Ops that can autocast" of
pytorch.org/docs/stable/amp.html), by kernels of ours for PyTorch's own dispatch key. So casts appear where
autograd sees them, also within ops that PyTorch composes of others.

Gradient scaling (``torch.amp.GradScaler``) isn't part of autocast, and not of a captured step.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as functional
from torch.utils.weak import WeakIdKeyDictionary

from perfmodel.errors import CaptureError, UnknownNameError

__all__ = ["AUTOCAST_DTYPES", "POLICIES", "autocast_as", "check_dtype", "lower_precision", "region"]

#: Types that autocast casts to.
AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

#: What happens to the operands of each op (with overload, if it isn't the default one).
#: ``lower``: cast to autocast's type. ``float32``: cast to float32. ``float32-result``: accumulated in and returned
#: as float32. ``widest``: cast to float32 if one of them is, else to autocast's type. ``refused``: an error.
POLICIES: dict[str, str] = {
    **dict.fromkeys(
        (
            "_convolution", "_convolution.deprecated", "_scaled_dot_product_flash_attention", "_thnn_fused_gru_cell",
            "_thnn_fused_lstm_cell", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d",
            "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input",
            "convolution", "einsum", "gru_cell", "linalg_multi_dot", "linalg_vecdot", "linear", "lstm_cell", "matmul",
            "mm", "mv", "prelu", "rnn_relu_cell", "rnn_tanh_cell", "scaled_dot_product_attention",
        ),
        "lower",
    ),
    **dict.fromkeys(
        (
            "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "acos", "asin",
            "binary_cross_entropy_with_logits", "cdist", "cosh", "cosine_embedding_loss", "cosine_similarity", "dist",
            "erfinv", "exp", "expm1", "frobenius_norm.dim", "group_norm", "hinge_embedding_loss", "huber_loss",
            "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2", "logsumexp", "margin_ranking_loss",
            "mse_loss", "multi_margin_loss", "multilabel_margin_loss", "native_layer_norm", "nll_loss", "nll_loss2d",
            "nuclear_norm", "nuclear_norm.dim", "pdist", "poisson_nll_loss", "pow.Scalar", "pow.Tensor_Scalar",
            "pow.Tensor_Tensor", "reciprocal", "renorm", "rms_norm", "rsqrt", "sinh", "smooth_l1_loss",
            "soft_margin_loss", "softplus", "tan", "triplet_margin_loss", "upsample_bicubic2d", "upsample_bilinear2d",
            "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
            "upsample_trilinear3d",
        ),
        "float32",
    ),
    **dict.fromkeys(
        (
            "cumprod", "cumsum", "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "linalg_vector_norm",
            "log_softmax.int", "norm.Scalar", "norm.ScalarOpt_dim", "prod", "prod.dim_int", "softmax.int", "sum",
            "sum.dim_IntList",
        ),
        "float32-result",
    ),
    **dict.fromkeys(
        (
            "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "scatter_add",
            "tensordot", "vdot",
        ),
        "widest",
    ),
    "binary_cross_entropy": "refused",
}  # fmt: skip

#: Ops whose overload with a ``dtype`` is another one.
_WITH_DTYPE = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}

_KEY = torch._C.DispatchKey.AutocastCPU


def check_dtype(dtype: Any) -> None:
    """Refuse a type that autocast doesn't cast to; ``None`` is no autocast.

    Raises
    ------
    UnknownNameError
    """
    if dtype is not None and dtype not in AUTOCAST_DTYPES:
        known = f"give {' or '.join(AUTOCAST_DTYPES)}"
        raise UnknownNameError("type for autocast", str(dtype), AUTOCAST_DTYPES, known)


def region(dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    """The region in which a step's forward runs: ``torch.autocast`` with ``dtype``, or nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=AUTOCAST_DTYPES[dtype])


def lower_precision(*tensors: Any) -> tuple[Any, ...]:
    """Tensors as a product's operands within a region of autocast; as they are outside of one.

    For an op of one's own that PyTorch's lists don't know.
    """
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(tensor.to(dtype) if _eligible(tensor) else tensor for tensor in tensors)


@contextlib.contextmanager
def autocast_as(kind: str) -> Iterator[None]:
    """While active, ``torch.autocast`` does what it does on an accelerator (``"neutral"``) or on a CPU (``"cpu"``)."""
    if kind == "cpu":
        yield
        return
    casts = _Casts()
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    with contextlib.ExitStack() as stack:
        stack.callback(library._destroy)
        stack.callback(casts.forget)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for name, policy in POLICIES.items():
                library.impl(name, casts.kernel(name, policy))
        stack.enter_context(_cast_attention())
        stack.enter_context(_standing_in(casts))
        yield


@contextlib.contextmanager
def _cast_attention() -> Iterator[None]:
    """Attention as one op is hidden from PyTorch's lists: its operands are cast where it is called."""
    original = functional.scaled_dot_product_attention

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original(*lower_precision(query, key, value, attn_mask), *args, **kwargs)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextlib.contextmanager
def _standing_in(casts: _Casts) -> Iterator[None]:
    """Regions and questions that name CUDA get the CPU's state, and leaving the outermost region forgets casts."""
    begin, enabled, dtype_of, clear = (
        torch.autocast.__init__,
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
        torch.clear_autocast_cache,
    )

    def begin_on_cpu(
        self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype_of("cuda") if dtype is None else dtype
        begin(self, device_type, dtype, enabled, cache_enabled)

    def clear_all() -> None:
        casts.forget()
        clear()

    def standing(name: str) -> str:
        return "cpu" if name == "cuda" else name

    torch.autocast.__init__ = begin_on_cpu  # type: ignore[method-assign]
    torch.is_autocast_enabled = lambda device_type="cuda": enabled(standing(device_type))
    torch.get_autocast_dtype = lambda device_type: dtype_of(standing(device_type))
    torch.clear_autocast_cache = clear_all
    try:
        yield
    finally:
        torch.autocast.__init__ = begin  # type: ignore[method-assign]
        torch.is_autocast_enabled, torch.get_autocast_dtype = enabled, dtype_of
        torch.clear_autocast_cache = clear


class _Casts:
    """Kernels that cast operands, and the cast weights of the region that is running."""

    def __init__(self) -> None:
        self._kept = WeakIdKeyDictionary()

    def forget(self) -> None:
        """Let the cast weights go, as PyTorch does at the end of the outermost region."""
        self._kept.clear()

    def kernel(self, name: str, policy: str) -> Callable[..., Any]:
        """The kernel of an op for autocast's dispatch key."""
        op = _overload(_WITH_DTYPE.get(name, name))
        if policy == "refused":
            return _refusing(name)
        if policy == "float32-result":
            return self._with_dtype(op, _overload(name))

        def cast(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
                leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
                dtype = _target(policy, leaves)
                args, kwargs = torch.utils._pytree.tree_unflatten([self._cast(leaf, dtype) for leaf in leaves], spec)
                return op(*args, **kwargs)

        return cast

    def _with_dtype(self, op: Any, plain: Any) -> Callable[..., Any]:
        position = _position(plain, "dtype")

        def accumulate(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
                given = args[position] if len(args) > position else kwargs.get("dtype")
                if given is not None or not _eligible(args[0]):
                    return plain(*args, **kwargs)
                return op(*args[:position], **{**kwargs, "dtype": torch.float32})

        return accumulate

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not _eligible(value) or value.dtype == dtype:
            return value
        # ``cached_cast`` of ATen/autocast_mode.cpp.
        keeps = (
            dtype != torch.float32
            and value.dtype == torch.float32
            and value.is_leaf
            and value.requires_grad
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not keeps:
            return value.to(dtype)
        if value not in self._kept:
            self._kept[value] = value.to(dtype)
        return self._kept[value]


def _eligible(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _target(policy: str, values: list[Any]) -> torch.dtype:
    lower = torch.get_autocast_dtype("cpu")
    if policy == "lower":
        return lower
    if policy == "float32":
        return torch.float32
    wide = any(_eligible(value) and value.dtype == torch.float32 for value in values)
    return torch.float32 if wide else lower


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise CaptureError(
            f"PyTorch refuses {name} under autocast, where its gradient can overflow; "
            f"use {name}_with_logits, or leave autocast for it"
        )

    return refuse


def _overload(name: str) -> Any:
    op, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, op), overload or "default")


def _position(op: Any, argument: str) -> int:
    """Where an argument stands if it is given by position; past all of them if it can't be."""
    names = [each.name for each in op._schema.arguments if not each.kwarg_only]
    return names.index(argument) if argument in names else len(names)
