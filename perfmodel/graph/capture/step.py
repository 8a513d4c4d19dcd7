"""Run a real training step on fake tensors, under the recorder's eyes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.weak import WeakIdKeyDictionary

from perfmodel.errors import CaptureError, PerfModelError, UnknownNameError
from perfmodel.graph.capture.attention import as_one_op, dropout_as
from perfmodel.graph.capture.fakes import fake_attributes, fakes_in
from perfmodel.graph.capture.indexing import plain_slices
from perfmodel.graph.capture.lower import lower
from perfmodel.graph.capture.recorder import Recorder
from perfmodel.graph.capture.shapes import Shapes
from perfmodel.graph.capture.symbolic import SymbolTable
from perfmodel.graph.ir import Graph

__all__ = ["OPTIMIZERS", "OptimizerLike", "capture_forward", "capture_module"]

#: torch.optim optimizers by name, one kernel a tensor and operation: what a
#: captured step holds. Foreach and fused kernels are the runtime's business.
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, foreach=False, fused=False),
    "adam": lambda parameters: torch.optim.Adam(parameters, foreach=False, fused=False),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, foreach=False, fused=False),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=False, fused=False),
}

OptimizerLike = str | Callable[[Any], torch.optim.Optimizer] | None
Progress = Callable[[str], None]


def capture_module(
    module: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: OptimizerLike,
    dynamic_shapes: Any = None,
    name: str | None = None,
    meta: Mapping[str, Any] | None = None,
    inputs: Mapping[str, tuple[tuple[int | str, ...], str]] | None = None,
    hints: Mapping[str, int] | None = None,
    dispatch: str = "neutral",
    progress: Progress | None = None,
) -> Graph:
    """Capture one training step of ``module``: forward, backward, optimizer.

    Nothing is computed and no memory is taken for weights: parameters and
    inputs are replaced by fake tensors while the step runs, and put back
    afterwards. The module runs in the mode (training or evaluation) it is in.

    Parameters
    ----------
    module : torch.nn.Module
        Returns a scalar loss, or something that has one as ``.loss``,
        ``["loss"]`` or first element.
    args, kwargs
        Example inputs of the call; tensors are used for their shape and type only.
    optimizer : str, callable or None
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"sgd-momentum"``; or a factory
        that takes the parameters and returns a ``torch.optim.Optimizer``; or
        ``None`` for a step without one.
    dynamic_shapes : optional
        Which input dimensions are symbols, as in ``torch.export``: for each
        input ``{dimension: name}``, e.g. ``({0: "batch", 1: "seq"}, {0: "batch"})``;
        a mapping by name for ``kwargs``. Without it every size is fixed.
    name : str, optional
        What to call the graph; the class of the module by default.
    meta : mapping, optional
        Kept in the graph's ``meta``.
    inputs, hints : mappings, optional
        Instead of example tensors: ``kwargs`` described as
        ``{name: (shape with symbol names, dtype)}``, and the symbols' values.
    dispatch : {"neutral", "cpu"}
        Record attention and dropout as one op each, or what PyTorch runs for them on this CPU.
    progress : callable, optional
        Called with the name of each phase as it begins.

    Returns
    -------
    Graph
        Flat: every layer is spelled out. :func:`perfmodel.graph.fold.fold` folds it.

    Raises
    ------
    CaptureError
        No loss, no trainable parameter in it, an op that needs real data, or
        the module's own error (with the module's path).
    """
    if not isinstance(module, torch.nn.Module):
        raise CaptureError(
            f"capture takes an nn.Module or a model name, not {type(module).__name__}; "
            "wrap a function in a module whose forward returns the loss"
        )
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        raise CaptureError(
            "DistributedDataParallel's all-reduce runs in C++, where a capture can't see it; "
            "capture the module inside, model.module"
        )
    _check_optimizer(optimizer)
    kwargs = dict(kwargs or {})
    placed = Shapes.of(args, kwargs, dynamic_shapes)
    symbols = SymbolTable({**placed.hints, **(hints or {})})
    recorder = Recorder(module, symbols)
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=symbols.shape_env)
    say = progress or (lambda _phase: None)
    with fakes_in(module, fake) as trainable:
        with fake:
            call_args, call_kwargs = placed.tensors(symbols)
            for key, (shape, dtype) in (inputs or {}).items():
                sizes = [symbols.sizes[size] if isinstance(size, str) else size for size in shape]
                call_kwargs[key] = torch.zeros(sizes, dtype=getattr(torch, dtype))
        _declare_resident(recorder, module, call_args, call_kwargs)
        attention = as_one_op() if dispatch == "neutral" else contextlib.nullcontext()
        with enable_python_dispatcher(), fake, recorder.watching(), attention, dropout_as(dispatch), plain_slices():
            kind = _run_step(recorder, module, call_args, call_kwargs, optimizer, trainable, say)
    details = {
        "torch": importlib.metadata.version("torch"),
        "optimizer": kind,
        "training": module.training,
        "dispatch": dispatch,
        **(meta or {}),
    }
    say("lower")
    return lower(
        recorder,
        name=name or type(module).__name__,
        stacks=_stacks(module),
        bindings={**placed.hints, **(hints or {})},
        meta=details,
    )


def capture_forward(
    graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any], *, name: str | None = None
) -> Graph:
    """Record a :class:`torch.fx.GraphModule` that the user made.

    The graph is run as it stands (``symbolic_trace``, ``torch.export(...).module()``,
    ``make_fx``: a joint graph brings its own backward). If its result is a
    scalar that depends on trainable parameters, backward is recorded too.

    Parameters
    ----------
    graph_module : torch.fx.GraphModule
    example_inputs : sequence
        Arguments of the call; tensors are used for their shape and type only.

    Raises
    ------
    CaptureError
        If it isn't a graph module or doesn't run on these inputs.
    """
    if not isinstance(graph_module, torch.fx.GraphModule):
        raise CaptureError(
            f"from_fx takes a torch.fx.GraphModule, not {type(graph_module).__name__}; "
            "for a module use perfmodel.capture, for an ExportedProgram pass its .module()"
        )
    symbols = SymbolTable({})
    recorder = Recorder(graph_module, symbols)
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=symbols.shape_env)
    placed = Shapes.of(example_inputs, {}, None)
    with fakes_in(graph_module, fake):
        with fake:
            args, _ = placed.tensors(symbols)
        _declare_resident(recorder, graph_module, args, {})
        kernels = (
            fake_attributes(graph_module, fake),
            enable_python_dispatcher(),
            fake,
            as_one_op(),
            dropout_as("neutral"),
        )
        with contextlib.ExitStack() as stack, _readable_errors(recorder):
            for context in kernels:
                stack.enter_context(context)
            recorder.phase = "forward"
            with recorder:
                result = _NamingInterpreter(graph_module, recorder).run(*args)
                if isinstance(result, torch.Tensor) and result.numel() == 1 and result.requires_grad:
                    recorder.phase = "backward"
                    result.backward()
            recorder.phase = "done"
            del result, args
    return lower(
        recorder,
        name=name or type(graph_module).__name__,
        stacks=_stacks(graph_module),
        bindings={},
        meta={
            "torch": importlib.metadata.version("torch"),
            "optimizer": None,
            "training": graph_module.training,
            "dispatch": "neutral",
        },
    )


class _NamingInterpreter(torch.fx.Interpreter):
    """Runs a graph and tells the recorder which module each node came from."""

    def __init__(self, graph_module: torch.fx.GraphModule, recorder: Recorder) -> None:
        super().__init__(graph_module)
        self._recorder = recorder

    def run_node(self, n: torch.fx.Node) -> Any:
        stack = n.meta.get("nn_module_stack")
        own = n.target if n.op == "call_module" else n.name
        path = str(list(stack.values())[-1][0] if stack else own)
        with self._recorder.inside(path):
            return super().run_node(n)


def _run_step(
    recorder: Recorder,
    module: torch.nn.Module,
    args: list[Any],
    kwargs: dict[str, Any],
    optimizer: OptimizerLike,
    trainable: list[torch.nn.Parameter],
    say: Progress,
) -> str | None:
    """Forward, backward, two optimizer steps (the first makes its state), release; the optimizer's kind."""
    kind: str | None = None
    names = WeakIdKeyDictionary({p: n for n, p in module.named_parameters()})
    with _readable_errors(recorder), recorder:
        say("forward")
        recorder.phase = "forward"
        result = module(*args, **kwargs)
        loss = _find_loss(result, module)
        say("backward")
        recorder.phase = "backward"
        loss.backward()
        for parameter in trainable:
            if parameter.grad is not None:
                recorder.own(parameter.grad, "gradient", f"{names[parameter]}.grad", recorder.owner(parameter))
        if optimizer is not None:
            say("optimizer")
            stepper = _make_optimizer(optimizer, trainable)
            kind = optimizer if isinstance(optimizer, str) else type(stepper).__name__.lower()
            for phase in ("first optimizer", "optimizer"):
                recorder.phase = phase
                stepper.step()
                for owner, state in stepper.state.items():
                    for key, value in state.items():
                        if isinstance(value, torch.Tensor):
                            recorder.own(value, "optimizer", f"{names[owner]}.{key}", recorder.owner(owner))
        recorder.phase = "release"
        for parameter in trainable:
            recorder.release(parameter)
        del result, loss
        recorder.phase = "done"
    return kind


def _check_optimizer(optimizer: OptimizerLike) -> None:
    if isinstance(optimizer, torch.optim.Optimizer):
        raise CaptureError(
            f"the optimizer must be a factory, not an instance that holds other parameters; write "
            f"optimizer=lambda parameters: torch.optim.{type(optimizer).__name__}(parameters, …)"
        )
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        known = f"known are {', '.join(OPTIMIZERS)}, or pass a factory that takes the parameters"
        raise UnknownNameError("optimizer", optimizer, OPTIMIZERS, known)


def _make_optimizer(optimizer: OptimizerLike, trainable: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer](trainable)
    try:
        made = optimizer(trainable) if callable(optimizer) else None
    except Exception as error:
        raise CaptureError(f"the optimizer factory failed: {type(error).__name__}: {error}; mend it") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise CaptureError(
            f"the optimizer factory returned {type(made).__name__}, not a torch.optim.Optimizer; pass a name "
            f"({', '.join(sorted(OPTIMIZERS))}) or a function of the parameters that returns one"
        )
    return made


def _find_loss(result: Any, module: torch.nn.Module) -> torch.Tensor:
    loss = getattr(result, "loss", None)
    if loss is None and isinstance(result, Mapping):
        loss = result.get("loss")
    if loss is None and isinstance(result, (tuple, list)) and result:
        loss = result[0]
    if loss is None:
        loss = result
    name = type(module).__name__
    cure = "return the loss from forward, or wrap the module in one that computes it"
    if not isinstance(loss, torch.Tensor):
        raise CaptureError(f"{name} has no loss: it returned {type(result).__name__}; {cure}")
    if loss.dim() > 1 or any(not isinstance(size, int) or size != 1 for size in loss.shape):
        shape = tuple(str(size) for size in loss.shape)
        raise CaptureError(
            f"{name} has no loss: it returned a tensor of shape ({', '.join(shape)}), not a scalar; {cure}"
        )
    if not loss.requires_grad:
        raise CaptureError(
            f"the loss of {name} depends on no trainable parameter; unfreeze one, or check for no_grad()"
        )
    return loss


def _declare_resident(recorder: Recorder, module: torch.nn.Module, args: list[Any], kwargs: dict[str, Any]) -> None:
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in part.named_parameters(recurse=False):
            recorder.own(parameter, "parameter", prefix + name, path)
        for name, buffer in part.named_buffers(recurse=False):
            recorder.own(buffer, "buffer", prefix + name, path)
    for index, value in enumerate(torch.utils._pytree.tree_leaves((args, kwargs))):
        if isinstance(value, torch.Tensor):
            recorder.own(value, "input", f"input.{index}", "")


@contextlib.contextmanager
def _readable_errors(recorder: Recorder) -> Iterator[None]:
    """The module's own exceptions as one line with the place."""
    # It logs a traceback of its own for every op that fails.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # Fake tensors are CPU tensors, on which autocast("cuda") would quietly do nothing.
            warnings.filterwarnings("error", message=".*is not available.*[Dd]isabling autocast")
            yield
    except PerfModelError:
        raise
    except Exception as error:
        where = recorder.where or "the module itself"
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise CaptureError(
            f"the step failed in {where} during {recorder.phase}: {type(error).__name__}: {text}; "
            "check that the same call runs in plain PyTorch with inputs of these shapes"
        ) from error
    finally:
        log.setLevel(level)


def _stacks(module: torch.nn.Module) -> dict[str, int]:
    """Paths of outermost containers whose children are numbered, with their lengths."""
    found: dict[str, int] = {}
    for path, part in module.named_modules():
        numbered = isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential)) and len(part) > 1
        if numbered and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = len(part)
    return found
