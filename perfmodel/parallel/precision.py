"""Types that a plan asks for where they change what is stored: the optimizer's copy of the parameters and its state.

With ``optimizer="float32"`` over parameters in 16 bits, the optimizer holds a copy in 32 bits
(master weights), steps on it in that type, and writes the parameters from it: Micikevicius et al.
2018, section 3.1, as Megatron-LM's and DeepSpeed's optimizers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from perfmodel.dtypes import is_floating, item_size
from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage
from perfmodel.ops import Tensor

__all__ = ["check_compute", "with_optimizer_dtype"]


def check_compute(graph: Graph, dtype: str) -> None:
    """Refuse a type of arithmetic other than the captured one.

    Raises
    ------
    UnsupportedError
    """
    found = {
        op.inputs[name].dtype
        for op, _ in graph.ops()
        if op.phase == "forward"
        for name in ("self", "mat1")
        if op.name in ("aten.mm", "aten.addmm") and name in op.inputs and len(op.inputs[name].shape) == 2
    }
    if found and dtype not in found:
        raise UnsupportedError(
            f"the plan asks for compute in {dtype}, and {graph.name} was captured in {', '.join(sorted(found))}; "
            "capture it in that type (dtype=, or autocast in the module)"
        )


def with_optimizer_dtype(graph: Graph, dtype: str) -> Graph:
    """The graph whose optimizer steps in ``dtype``, on master weights where the parameters are narrower.

    Parameters
    ----------
    graph : Graph
        With an optimizer; whole or of one rank.
    dtype : str
        PyTorch name.

    Raises
    ------
    UnsupportedError
        If the graph has no optimizer.
    """
    if not any(op.phase == "optimizer" for op, _ in graph.ops()):
        raise UnsupportedError(
            f"the plan asks for an optimizer in {dtype}, and {graph.name} was captured without one; "
            "capture it with optimizer='adamw'"
        )
    return _Optimizer(graph, dtype).run()


class _Optimizer:
    def __init__(self, graph: Graph, dtype: str) -> None:
        self.graph = graph
        self.dtype = dtype
        self.storages = list(graph.storages)
        self.masters: dict[int, int] = {}
        self.widened: set[int] = set()
        self.made: set[tuple[int, int]] = set()
        for number, storage in enumerate(graph.storages):
            narrower = storage.role == "parameter" and is_floating(storage.dtype or "float32")
            if narrower and storage.trainable and item_size(storage.dtype) < item_size(dtype):
                self.masters[number] = len(self.storages)
                self.storages.append(self._master(storage))

    def _master(self, storage: Storage) -> Storage:
        size = storage.nbytes // item_size(storage.dtype) * item_size(self.dtype)
        return replace(storage, name=f"{storage.name}.master", nbytes=size, role="optimizer", dtype="")

    def run(self) -> Graph:
        blocks = tuple(self._block(block, first=False) for block in self.graph.blocks)
        first = tuple(self._block(block, first=True) for block in self.graph.first_optimizer)
        return replace(self.graph, blocks=blocks, first_optimizer=first, storages=tuple(self.storages), trace=None)

    def _block(self, block: Block, *, first: bool) -> Block:
        if not any(op.phase == "optimizer" for op in block.ops):
            return block
        before: dict[int, Tensor] = {}
        ends: dict[int, tuple[int, Tensor]] = {}
        for position, op in enumerate(block.ops):
            for name, tensor in op.inputs.items():
                if tensor.storage not in self.masters:
                    continue
                if first and not self._exists(tensor, block):
                    before[position] = tensor
                if name == "self" and op.name.endswith("_"):
                    ends[tensor.storage] = (position, tensor)
        after = dict(ends.values())
        ops: list[Op] = []
        for position, op in enumerate(block.ops):
            if position in before:
                ops.append(self._copy(op, before[position], to_master=True))
            ops.append(self._wide(op))
            if position in after:
                ops.append(self._copy(op, after[position], to_master=False))
        return replace(block, ops=tuple(ops))

    def _exists(self, tensor: Tensor, block: Block) -> bool:
        """Whether the master weights were made by an earlier op, in every layer of the block; from now on they are."""
        stacked = bool(self.storages[tensor.storage].stack)
        instances = {
            (tensor.storage, (tensor.layer if tensor.absolute else layer + tensor.layer) if stacked else 0)
            for layer in block.layers
        }
        known = instances <= self.made
        self.made |= instances
        return known

    def _copy(self, like: Op, parameter: Tensor, *, to_master: bool) -> Op:
        """The first master weights are a copy of the parameters; later the parameters are a copy of them."""
        master = replace(parameter, storage=self.masters[parameter.storage], dtype=self.dtype, strides=None)
        if to_master:
            made = (Ref(master.storage, master.layer, master.absolute),)
            return Op(
                name="aten._to_copy", inputs={"self": parameter}, outputs=(master,), attrs={"dtype": self.dtype},
                allocates=made, phase=like.phase, module=like.module,
            )  # fmt: skip
        inputs: Mapping[str, Tensor] = {"self": parameter, "src": master}
        return Op(
            name="aten.copy_", phase=like.phase, module=like.module, inputs=inputs, outputs=(parameter,), attrs={}
        )

    def _wide(self, op: Op) -> Op:
        """The op on master weights, in the optimizer's type; gradients are read in their own."""
        if op.phase != "optimizer":
            return op
        return replace(
            op,
            inputs={name: self._wide_tensor(t) for name, t in op.inputs.items()},
            outputs=tuple(self._wide_tensor(t) for t in op.outputs),
        )

    def _wide_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.storage in self.masters:
            return replace(tensor, storage=self.masters[tensor.storage], dtype=self.dtype)
        storage = self.storages[tensor.storage]
        widens = is_floating(tensor.dtype) and storage.role in ("optimizer", "temporary") and tensor.shape
        if not widens or tensor.dtype == self.dtype:
            return tensor
        if tensor.storage not in self.widened:
            self.widened.add(tensor.storage)
            size = storage.nbytes // item_size(tensor.dtype) * item_size(self.dtype)
            self.storages[tensor.storage] = replace(storage, nbytes=size)
        return replace(tensor, dtype=self.dtype)
