"""Optimizer steps as PyTorch's foreach or fused kernels run them, from a captured one-tensor-at-a-time step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage
from perfmodel.ops import Tensor, has_rule

__all__ = ["FUSED_KERNELS", "merge_optimizer"]

#: Optimizers of torch.optim that run foreach kernels on an accelerator unless told not to: all that have them but
#: Adafactor, which is chosen to save memory. Adam's, SGD's and RMSprop's foreach code runs the ops of their
#: single-tensor code; the others' has a few more (Adagrad's one product, with a sixth more bytes).
_FOREACH = frozenset(
    ("adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd")
) | {"sgd-momentum"}

#: The fused kernel of each optimizer of torch.optim that has one.
FUSED_KERNELS = {
    "adagrad": "aten._fused_adagrad_",
    "adamw": "aten._fused_adamw_",
    "adam": "aten._fused_adam_",
    "sgd": "aten._fused_sgd_",
    "sgd-momentum": "aten._fused_sgd_",
}

#: Schema names of the fused kernels' tensor lists, by the state's name in torch.optim.
_STATE_LISTS = {
    "exp_avg": "exp_avgs",
    "exp_avg_sq": "exp_avg_sqs",
    "max_exp_avg_sq": "max_exp_avg_sqs",
    "step": "state_steps",
    "momentum_buffer": "momentum_buffer_list",
    "sum": "state_sums",
}

#: Optimizers made of two of torch.optim's: the one whose kernels merge, and a state that only its parameters have.
_MERGED_HALF = {"muon": ("adamw", "exp_avg")}


def merge_optimizer(graph: Graph, kind: str) -> Graph:
    """One call for all parameters of a block instead of one for each.

    Parameters
    ----------
    graph : Graph
        Captured with an optimizer that handles one tensor at a time.
    kind : {"foreach", "fused"}
        ``foreach`` is what torch.optim does by default on an accelerator: optimizers that have no foreach
        code, or don't use it by default, stay as they were captured.

    Returns
    -------
    Graph
        Of Muon with AdamW, AdamW's part is merged; Muon has single-tensor code only.

    Raises
    ------
    UnsupportedError
        If the optimizer was captured merged already, or has no fused kernel.
    """
    optimizer = str(graph.meta.get("optimizer"))
    half, state = _MERGED_HALF.get(optimizer, (optimizer, ""))
    owners = _parameter_of(graph)
    mergeable = _with_state(graph, owners, state) if state else set(owners.values())

    def merged(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        others = [block for block in blocks if block.ops[0].phase != "optimizer"]
        steps = [block for block in blocks if block.ops[0].phase == "optimizer"]
        position = next((i for i, block in enumerate(blocks) if block.ops[0].phase == "optimizer"), len(others))
        left, taken = _split(steps, owners, mergeable)
        made = _fused(graph, taken, owners, FUSED_KERNELS[half]) if kind == "fused" else _foreach(graph, taken, owners)
        return (*others[:position], *left, *made, *others[position:])

    captured = {op.name for block in graph.blocks for op in block.ops if op.phase == "optimizer"}
    if any(name.startswith(("aten._foreach", "aten._fused")) for name in captured):
        raise UnsupportedError(
            f"{graph.name} was captured with a foreach or fused optimizer, and the runtime asks for {kind!r}; "
            "capture it with foreach=False, fused=False or use a runtime whose optimizer is as-captured"
        )
    if kind == "foreach" and half not in _FOREACH:
        return graph
    if kind == "fused" and half not in FUSED_KERNELS:
        raise UnsupportedError(
            f"optimizer {optimizer!r} has no fused kernel in torch.optim; use a runtime with foreach or as-captured"
        )
    return replace(graph, blocks=merged(graph.blocks), first_optimizer=merged(graph.first_optimizer), trace=None)


def _parameter_of(graph: Graph) -> dict[int, int]:
    """For each gradient and optimizer state the parameter that it belongs to."""
    numbers = {(s.stack, s.name): i for i, s in enumerate(graph.storages) if s.role == "parameter"}
    owners = {i: i for i in numbers.values()}
    for number, storage in enumerate(graph.storages):
        if storage.role in ("gradient", "optimizer"):
            owner = numbers.get((storage.stack, storage.name.rpartition(".")[0]))
            if owner is not None:
                owners[number] = owner
    return owners


def _with_state(graph: Graph, owners: Mapping[int, int], state: str) -> set[int]:
    """The parameters that have a state of this name."""
    return {
        owner
        for number, owner in owners.items()
        if graph.storages[number].role == "optimizer" and graph.storages[number].name.endswith(f".{state}")
    }


def _split(blocks: Iterable[Block], owners: Mapping[int, int], mergeable: set[int]) -> tuple[list[Block], list[Block]]:
    """Blocks of the parameters that aren't to be merged, and of those that are."""
    parts: tuple[list[Block], list[Block]] = ([], [])
    for block in blocks:
        chosen: tuple[list[Op], list[Op]] = ([], [])
        for parameter, ops in _by_parameter(block, owners).items():
            chosen[parameter.storage in mergeable].extend(ops)
        for part, ops in zip(parts, chosen, strict=True):
            if ops:
                part.append(replace(block, ops=tuple(ops)))
    return parts


def _by_parameter(block: Block, owners: Mapping[int, int]) -> dict[Ref, list[Op]]:
    """Ops of an optimizer block grouped by the parameter that they update."""
    groups: dict[Ref, list[Op]] = {}
    current: Ref | None = None
    for op in block.ops:
        for tensor in (*op.inputs.values(), *op.outputs):
            if tensor.storage in owners:
                current = Ref(owners[tensor.storage], tensor.layer, tensor.absolute)
                break
        if current is None:
            raise UnsupportedError(
                f"optimizer op {op.name} touches no parameter; use a runtime whose optimizer is as-captured"
            )
        groups.setdefault(current, []).append(op)
    return groups


def _fused(graph: Graph, blocks: Iterable[Block], owners: Mapping[int, int], kernel: str) -> list[Block]:
    result: list[Block] = []
    for block in blocks:
        groups = _by_parameter(block, owners)
        inputs: dict[str, Tensor] = {}
        for position, ops in enumerate(groups.values()):
            for op in ops:
                for tensor in (*op.inputs.values(), *op.outputs):
                    key = _list_name(graph.storages[tensor.storage])
                    if key and tensor.strides is None:
                        inputs.setdefault(f"{key}.{position}", tensor)

        # The fused kernel keeps its temporaries in registers.
        def kept(refs: Iterable[Ref]) -> list[Ref]:
            return [ref for ref in refs if graph.storages[ref.storage].role != "temporary"]

        call = Op(
            name=kernel,
            phase="optimizer",
            module=_common_module(block),
            inputs=dict(sorted(inputs.items(), key=lambda item: _list_order(item[0]))),
            outputs=(),
            attrs={},
            allocates=tuple(ref for op in block.ops for ref in kept(op.allocates)),
            frees=tuple(ref for op in block.ops for ref in kept(op.frees)),
        )
        result.append(replace(block, ops=(call,)))
    return result


def _list_name(storage: Storage) -> str | None:
    if storage.role == "parameter":
        return "self"
    if storage.role == "gradient":
        return "grads"
    if storage.role == "optimizer":
        return _STATE_LISTS.get(storage.name.rpartition(".")[2])
    return None


def _list_order(name: str) -> tuple[int, int]:
    order = ["self", "grads", *_STATE_LISTS.values()]
    key, _, position = name.partition(".")
    return order.index(key), int(position)


def _foreach(graph: Graph, blocks: list[Block], owners: Mapping[int, int]) -> list[Block]:
    grouped = [(block, [_as_foreach(graph, ops) for ops in _by_parameter(block, owners).values()]) for block in blocks]
    length = max((len(ops) for _, groups in grouped for ops in groups), default=0)
    result: list[Block] = []
    # A foreach call runs over all parameters before the next begins: position outside, blocks inside.
    for position in range(length):
        for block, groups in grouped:
            calls = [ops[position] for ops in groups if position < len(ops)]
            by_name: dict[str, list[Op]] = {}
            for call in calls:
                by_name.setdefault(call.name, []).append(call)
            ops = tuple(op for name, same in by_name.items() for op in _as_list(name, same, _common_module(block)))
            if ops:
                result.append(replace(block, ops=ops))
    return result


def _as_foreach(graph: Graph, ops: list[Op]) -> list[Op]:
    """One parameter's ops as torch.optim's foreach code has them: a temporary is worked on in place, and
    lives until its last use (``_multi_tensor_adam`` in torch/optim/adam.py; the single-tensor code makes
    a second one, and drops it only when the next parameter's takes its name).
    """
    renamed: dict[Ref, Ref] = {}
    result: list[Op] = []
    for op in ops:
        tensors = {name: _renamed(tensor, renamed) for name, tensor in op.inputs.items()}
        outputs = tuple(_renamed(tensor, renamed) for tensor in op.outputs)
        name, allocates = op.name, op.allocates
        source = tensors.get("self")
        if source is not None and len(outputs) == 1 and _is_temporary(graph, source) and op.allocates:
            in_place = has_rule(f"aten._foreach_{op.name.removeprefix('aten.')}_")
            if in_place and (source.shape, source.dtype) == (outputs[0].shape, outputs[0].dtype):
                renamed[_ref(outputs[0])] = _ref(source)
                name, outputs, allocates = f"{op.name}_", (source,), ()
        kept = tuple(ref for ref in op.frees if graph.storages[ref.storage].role != "temporary")
        result.append(replace(op, name=name, inputs=tensors, outputs=outputs, allocates=allocates, frees=kept))
    last = {
        _ref(tensor): position
        for position, op in enumerate(result)
        for tensor in (*op.inputs.values(), *op.outputs)
        if _is_temporary(graph, tensor)
    }
    for ref, position in last.items():
        result[position] = replace(result[position], frees=(*result[position].frees, ref))
    return result


def _ref(tensor: Tensor) -> Ref:
    return Ref(tensor.storage, tensor.layer, tensor.absolute)


def _renamed(tensor: Tensor, names: Mapping[Ref, Ref]) -> Tensor:
    ref = names.get(_ref(tensor))
    if ref is None:
        return tensor
    return replace(tensor, storage=ref.storage, layer=ref.layer, absolute=ref.absolute)


def _is_temporary(graph: Graph, tensor: Tensor) -> bool:
    return graph.storages[tensor.storage].role == "temporary"


def _as_list(name: str, calls: list[Op], module: str) -> list[Op]:
    """One foreach call; ops that have no foreach form (answers to the host, states made) stay one by one."""
    merged_name = f"aten._foreach_{name.removeprefix('aten.')}"
    if not has_rule(merged_name):
        return calls
    inputs = {f"{key}.{i}": tensor for i, call in enumerate(calls) for key, tensor in call.inputs.items()}
    merged = Op(
        name=merged_name,
        phase="optimizer",
        module=module,
        inputs=inputs,
        outputs=tuple(tensor for call in calls for tensor in call.outputs),
        attrs=calls[0].attrs,
        allocates=tuple(ref for call in calls for ref in call.allocates),
        frees=tuple(ref for call in calls for ref in call.frees),
    )
    return [merged]


def _common_module(block: Block) -> str:
    """The deepest module that holds all of a block's ops."""
    paths = [op.module.split(".") for op in block.ops]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
