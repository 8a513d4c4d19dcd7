"""From what the recorder wrote to the flat, torch-free :class:`Graph`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from perfmodel.graph.capture.recorder import Call, Recorder
from perfmodel.graph.ir import Graph, Op, Ref, Storage, blocks_by_phase
from perfmodel.graph.paths import adopted, layer_of, layer_path
from perfmodel.ops.tensor import Tensor

__all__ = ["lower"]

_SKIPPED_ARGUMENTS = ("device", "layout", "pin_memory", "non_blocking")


def lower(
    recorder: Recorder,
    *,
    name: str,
    stacks: Mapping[str, int],
    bindings: Mapping[str, int],
    meta: Mapping[str, Any],
) -> Graph:
    """Flat graph of a recorded step (see :func:`capture_module`)."""
    calls = recorder.calls
    modules = _modules(recorder)
    roles = _roles(recorder)
    names = _names(recorder, modules, stacks)
    storages = tuple(
        Storage(
            name=names[index],
            nbytes=record.nbytes,
            role=roles[index],
            module=record.module,
            dtype=record.dtype,
            trainable=record.trainable,
        )
        for index, record in enumerate(recorder.storages)
    )
    ops: dict[str, list[Op]] = {"step": [], "first optimizer": []}
    for call, module in zip(calls, modules, strict=True):
        group = "first optimizer" if call.phase == "first optimizer" else "step"
        ops[group].append(_op(call, module))
    return Graph(
        name=name,
        blocks=blocks_by_phase(ops["step"]),
        first_optimizer=blocks_by_phase(ops["first optimizer"]),
        storages=storages,
        stacks=dict(stacks),
        bindings=dict(bindings),
        guards=recorder.symbols.guards(),
        meta=dict(meta),
        trace=tuple(calls),
    )


def _op(call: Call, module: str) -> Op:
    phase = "optimizer" if call.phase == "first optimizer" else call.phase
    frees = tuple(Ref(index) for index in call.frees)
    if call.op is None:
        return Op(name="perfmodel.release", phase=phase, module=module, inputs={}, outputs=(), attrs={}, frees=frees)
    inputs: dict[str, Tensor] = {}
    attrs: dict[str, Any] = {}
    arguments = call.op._schema.arguments
    given = [(arguments[i].name, value) for i, value in enumerate(call.args)] + list(call.kwargs.items())
    for key, value in given:
        if isinstance(value, Tensor):
            inputs[key] = value
        elif isinstance(value, list) and any(isinstance(item, Tensor) for item in value):
            inputs.update({f"{key}.{i}": item for i, item in enumerate(value) if isinstance(item, Tensor)})
        elif value is not None and key not in _SKIPPED_ARGUMENTS:
            attrs[key] = _plain(value)
    return Op(
        name=f"{call.op.namespace}.{call.op._opname}",
        phase=phase,
        module=module,
        inputs=inputs,
        outputs=tuple(_tensors(call.result)),
        attrs=attrs,
        allocates=tuple(Ref(index) for index in call.allocates),
        frees=frees,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (torch.dtype, torch.memory_format)):
        return str(value).removeprefix("torch.")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, (torch.SymFloat, torch.SymBool, torch.Generator)):
        return str(value)
    return value


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)


def _touched(call: Call) -> Iterable[int]:
    for value in (*call.args, *call.kwargs.values(), call.result):
        for tensor in _tensors(value):
            yield tensor.storage


def _modules(recorder: Recorder) -> list[str]:
    """Every op's module. Optimizer ops belong to the parameter that they update;
    an op of which autograd doesn't tell belongs where the op before it did.
    """
    owned = [record.module if record.role else "" for record in recorder.storages]
    modules: list[str] = []
    for call in recorder.calls:
        module = call.module
        if module is None and "optimizer" in call.phase:
            module = next((owned[index] for index in _touched(call) if owned[index]), None)
        if module is None:
            module = modules[-1] if modules else ""
        modules.append(module)
        for index in call.allocates:
            record = recorder.storages[index]
            if not record.role:
                record.module = owned[index] = module
                if "optimizer" not in call.phase:
                    owned[index] = ""
    return modules


def _roles(recorder: Recorder) -> list[str]:
    made: dict[int, str] = {}
    freed: dict[int, str] = {}
    for call in recorder.calls:
        made.update(dict.fromkeys(call.allocates, call.phase))
        freed.update(dict.fromkeys(call.frees, call.phase))
    roles: list[str] = []
    for index, record in enumerate(recorder.storages):
        if record.role:
            roles.append(record.role)
        elif index not in made:
            roles.append("buffer")
        elif made[index] == "first optimizer" and index not in freed:
            roles.append("optimizer")
        elif made[index] in ("forward", "recompute") and freed.get(index) != made[index]:
            roles.append("activation")
        else:
            roles.append("temporary")
    return roles


def _names(recorder: Recorder, modules: list[str], stacks: Iterable[str]) -> list[str]:
    """A name for each storage: that of its parameter, or the op that made it with a running number
    within layer, module and phase, so that the same storage of two layers has the same name but for the layer.
    """
    names = [record.name for record in recorder.storages]
    counts: dict[str, int] = {}

    def named(stem: str) -> str:
        counts[stem] = counts.get(stem, 0) + 1
        return f"{stem}.{counts[stem]}"

    places = adopted(modules, [call.phase for call in recorder.calls], stacks)
    for call, module, (stack, layer) in zip(recorder.calls, modules, places, strict=True):
        prefix = "" if (stack, layer) == layer_of(module, stacks) else f"{layer_path(stack, layer)}:"
        for index in call.allocates:
            if not names[index]:
                what = "release" if call.op is None else call.op._opname
                names[index] = named(f"{prefix}{module}:{call.phase}:{what}")
    # What no op made: a constant in the code of a module.
    return [name or named(f"{recorder.storages[i].module}:constant") for i, name in enumerate(names)]
