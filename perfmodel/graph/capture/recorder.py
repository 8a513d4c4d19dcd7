"""Watch a training step run on fake tensors and write down every op."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from perfmodel.errors import CaptureError
from perfmodel.graph.capture.symbolic import SymbolTable
from perfmodel.ops.tensor import Tensor
from perfmodel.symbols import Dim

__all__ = ["Call", "Recorder", "StorageRecord"]

_SILENT = ("prim", "profiler")  # namespaces of questions that run nothing
_ONE_TYPE = ("mm", "addmm", "bmm", "baddbmm", "convolution")
_SILENT_OPS = (
    "sym_size",
    "sym_stride",
    "sym_numel",
    "sym_storage_offset",
    "is_same_size",
    "_has_compatible_shallow_copy_type",
)


@dataclass(slots=True)
class StorageRecord:
    """What is known of one storage while recording."""

    nbytes: Dim
    module: str
    role: str = ""
    name: str = ""
    dtype: str = ""
    trainable: bool = True


@dataclass(slots=True)
class Call:
    """One recorded op. Holds no tensor: only what they looked like."""

    op: Any
    phase: str
    module: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    allocates: list[int] = field(default_factory=list)
    frees: list[int] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """A dispatch mode that turns ops into records (:class:`Call`).

    Parameters
    ----------
    module : torch.nn.Module
        Whose submodules give ops their path.
    symbols : SymbolTable
        Converts sizes.
    """

    def __init__(self, module: torch.nn.Module, symbols: SymbolTable) -> None:
        super().__init__()
        self.symbols = symbols
        self.calls: list[Call] = []
        self.storages: list[StorageRecord] = []
        self.phase = "resident"
        self.where = ""  # the module entered last, or the one whose op failed
        self._paths = {id(part): path for path, part in module.named_modules()}
        self._stack: list[str] = []
        self._module_of_node: dict[int, str] = {}
        self._ids: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._looks: dict[Any, tuple[tuple[Dim, ...], tuple[Dim, ...] | None]] = {}
        self._owner_of_parameter: WeakIdKeyDictionary = WeakIdKeyDictionary()

    # -- what surrounds a step ------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While active, know which module is running, and see storages die by reference count alone.

        When the garbage collector happens to run must not decide what a capture says.
        """
        from torch.nn.modules import module as registry

        def enter(part: torch.nn.Module, _args: Any) -> None:
            self._stack.append(self._paths.get(id(part), self._stack[-1] if self._stack else ""))
            self.where = self._stack[-1]

        def leave(_part: torch.nn.Module, _args: Any, _result: Any) -> None:
            if self._stack:
                self._stack.pop()

        handles = [
            registry.register_module_forward_pre_hook(enter),
            registry.register_module_forward_hook(leave, always_call=True),
        ]
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()
            for handle in handles:
                handle.remove()

    def own(self, tensor: torch.Tensor, role: str, name: str, module: str) -> None:
        """Declare what a tensor's storage is for, before or after it was seen."""
        record = self.storages[self._storage(tensor)]
        if not record.role:
            record.role, record.name, record.module = role, name, module
        if role == "parameter":
            record.dtype = str(tensor.dtype).removeprefix("torch.")
            record.trainable = tensor.requires_grad
            self._owner_of_parameter[tensor] = module

    def owner(self, parameter: torch.Tensor) -> str:
        """Path of the module that a parameter belongs to."""
        return self._owner_of_parameter[parameter]  # type: ignore[no-any-return]

    def release(self, parameter: torch.nn.Parameter) -> None:
        """``zero_grad(set_to_none=True)`` for one parameter, as a call that only frees."""
        self.calls.append(Call(None, self.phase, self.owner(parameter), (), {}, None))
        parameter.grad = None

    @contextlib.contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Ops recorded meanwhile belong to ``path``."""
        self._stack.append(path)
        try:
            yield
        finally:
            self._stack.pop()

    # -- recording ------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in _SILENT or func._opname in _SILENT_OPS:
            return func(*args, **kwargs)
        phase = self.phase
        if phase == "backward" and self._recomputing():
            phase = "recompute"
        module = self._module(phase)
        before = len(self.storages)
        looks = [self._look(arg) for arg in args], {key: self._look(arg) for key, arg in kwargs.items()}
        if func._opname == "_local_scalar_dense":
            result: Any = _made_up(args[0])
        else:
            try:
                result = func(*args, **kwargs)
            except Exception:
                self.where = self._stack[-1] if self._stack else module or ""
                raise
        _check_types(func, looks[0])
        call = Call(func, phase, module, tuple(looks[0]), looks[1], None)
        # Appended before its result is looked at: a storage that dies from here on dies after this op.
        self.calls.append(call)
        call.result = self._look(result)
        call.allocates = list(range(before, len(self.storages)))
        return result

    def _recomputing(self) -> bool:
        """Autograd nodes run with gradients off and enter no module; a checkpoint that runs forward again does."""
        return bool(self._stack) or (torch.is_grad_enabled() and torch._C._current_autograd_node() is not None)

    def _module(self, phase: str) -> str | None:
        if phase == "forward" or (phase == "recompute" and self._stack):
            module = self._stack[-1] if self._stack else ""
            # The first op after a node was made is the one that made it; later ones may make none.
            self._module_of_node.setdefault(torch.autograd._get_sequence_nr() - 1, module)  # type: ignore[attr-defined]
            return module
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        variable = getattr(node, "variable", None)
        if variable is not None:
            return self.owner(variable) if variable in self._owner_of_parameter else None
        return self._module_of_node.get(node._sequence_nr())

    def _look(self, value: Any) -> Any:
        """Replace tensors by what they look like, sizes by ours; keep the rest."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.SymInt):
            return self.symbols.dim(value)
        if isinstance(value, (list, tuple)):
            return [self._look(item) for item in value]
        return value

    def _tensor(self, tensor: torch.Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            raise CaptureError(
                f"a tensor is {str(tensor.layout).removeprefix('torch.')}, and a capture takes dense ones only; "
                "build nn.Embedding and nn.EmbeddingBag with sparse=False"
            )
        shape, strides = tensor.shape, tensor.stride()
        key = (
            tuple(s.node.expr if isinstance(s, torch.SymInt) else s for s in shape),
            tuple(s.node.expr if isinstance(s, torch.SymInt) else s for s in strides),
        )
        look = self._looks.get(key)
        if look is None:
            sizes = tuple(self.symbols.dim(s) for s in shape)
            steps = tuple(self.symbols.dim(s) for s in strides)
            look = self._looks[key] = (sizes, None if steps == _contiguous(sizes) else steps)
        return Tensor(
            shape=look[0],
            strides=look[1],
            dtype=str(tensor.dtype).removeprefix("torch."),
            storage=self._storage(tensor),
        )

    def _storage(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._ids.get(key)
        if known is not None:
            return known
        index = len(self.storages)
        module = self.calls[-1].module if self.calls else ""
        self.storages.append(StorageRecord(self.symbols.dim(storage.nbytes()), module or ""))
        self._ids[key] = index
        self._watched[index] = weakref.ref(storage, lambda _ref: self._died(key, index))
        return index

    def _died(self, key: int, index: int) -> None:
        del self._ids[key], self._watched[index]
        if self.calls and self.phase != "done":
            self.calls[-1].frees.append(index)


def _contiguous(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    steps: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        steps.append(step)
        # PyTorch gives empty and single dimensions the step of their neighbour.
        step = step * (size if not isinstance(size, int) or size > 1 else 1)
    return tuple(reversed(steps))


def _made_up(tensor: torch.Tensor) -> bool | int | float:
    """The answer to a question about data that isn't there."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _check_types(func: Any, looks: list[Any]) -> None:
    """What PyTorch checks on real tensors only: a product's operands have one type, targets are indices."""
    name = func._opname
    if name in _ONE_TYPE:
        types = {look.dtype for look in looks if isinstance(look, Tensor)}
        if len(types) > 1:
            raise CaptureError(
                f"{name} gets operands of types {' and '.join(sorted(types))}, which PyTorch refuses; "
                "give the inputs the parameters' type"
            )
    if name.startswith("nll_loss") and "backward" not in name and looks[1].dtype not in ("int64", "uint8"):
        raise CaptureError(
            f"{name} gets a target of type {looks[1].dtype}, which PyTorch refuses; give class indices as int64"
        )
