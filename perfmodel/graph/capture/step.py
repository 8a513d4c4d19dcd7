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

from perfmodel.errors import CaptureError, PerfModelError
from perfmodel.graph.capture.accumulation import MicroSteps, repeat_micro_step
from perfmodel.graph.capture.autocast import autocast_as, check_dtype, region
from perfmodel.graph.capture.dispatch import dispatched_as
from perfmodel.graph.capture.fakes import fake_attributes, fakes_in
from perfmodel.graph.capture.indexing import plain_slices
from perfmodel.graph.capture.lower import lower
from perfmodel.graph.capture.optimizers import OPTIMIZERS, OptimizerLike, check_optimizer, kind_of, make_optimizers
from perfmodel.graph.capture.recorder import Recorder
from perfmodel.graph.capture.shapes import Shapes
from perfmodel.graph.capture.stacks import layer_stacks
from perfmodel.graph.capture.symbolic import SymbolTable
from perfmodel.graph.ir import Graph

__all__ = ["OPTIMIZERS", "OptimizerLike", "capture_forward", "capture_module"]

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
    accumulate: int = 1,
    autocast: str | None = None,
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
        A name of :data:`~perfmodel.graph.capture.optimizers.OPTIMIZERS`; or a
        factory that takes the parameters and returns a ``torch.optim.Optimizer``,
        or a list of those; or ``None`` for a step without one.
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
        Record attention, dropout, recurrent layers, state-space scans and the like as an accelerator's libraries
        run them, or what PyTorch runs for them on this CPU.
    accumulate : int
        Micro-steps of one optimizer step: so many times forward on inputs of these shapes, ``loss / accumulate``
        and backward; the gradients add up (:mod:`perfmodel.graph.capture.accumulation`).
    autocast : {"bfloat16", "float16"}, optional
        Forward and loss run as in a region of ``torch.autocast`` with this type: on an accelerator, or
        with ``dispatch="cpu"`` on a CPU. The gradients' scaling of ``torch.amp.GradScaler`` isn't captured.
    progress : callable, optional
        Called with the name of each phase as it begins.

    Returns
    -------
    Graph
        Flat: every layer is spelled out. :func:`perfmodel.graph.fold.fold` folds it. Folded where ``accumulate`` is
        above two, so that the repeated micro-steps share what they hold.

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
    check_optimizer(optimizer)
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise CaptureError(f"accumulate must be a positive number of micro-steps, not {accumulate!r}")
    check_dtype(autocast)
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
        with (
            enable_python_dispatcher(),
            fake,
            recorder.watching(),
            dispatched_as(dispatch),
            autocast_as(dispatch),
            plain_slices(),
        ):
            run = _Run(recorder, module, call_args, call_kwargs, trainable, autocast, say)
            kind, micro_steps = run.step(optimizer, accumulate)
    details = {
        "torch": importlib.metadata.version("torch"),
        "optimizer": kind,
        "training": module.training,
        "dispatch": dispatch,
        **({"accumulate": accumulate} if accumulate > 1 else {}),
        **({"autocast": autocast} if autocast else {}),
        **(meta or {}),
    }
    say("lower")
    graph = lower(
        recorder,
        name=name or type(module).__name__,
        stacks=layer_stacks(module),
        bindings={**placed.hints, **(hints or {})},
        meta=details,
    )
    return repeat_micro_step(graph, micro_steps)


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
            dispatched_as("neutral"),
            autocast_as("neutral"),
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
        stacks=layer_stacks(graph_module),
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


class _Run:
    """One training step on fake tensors."""

    def __init__(
        self,
        recorder: Recorder,
        module: torch.nn.Module,
        args: list[Any],
        kwargs: dict[str, Any],
        trainable: list[torch.nn.Parameter],
        autocast: str | None,
        say: Progress,
    ) -> None:
        self._recorder, self._module, self._args, self._kwargs = recorder, module, args, kwargs
        self._trainable, self._autocast, self._say = trainable, autocast, say
        self._names = WeakIdKeyDictionary({p: n for n, p in module.named_parameters()})

    def step(self, optimizer: OptimizerLike, accumulate: int) -> tuple[str | None, MicroSteps]:
        """Micro-steps, two optimizer steps (the first makes its state), release.

        Returns the optimizer's kind and how often the last micro-step stands for others like it.
        """
        recorder = self._recorder
        steppers = [] if optimizer is None else make_optimizers(optimizer, self._module, self._trainable)
        for stepper in steppers:
            self._own_state(stepper)  # some have it from the beginning
        micro_steps = MicroSteps(accumulate)
        with _readable_errors(recorder), recorder:
            kept = None
            while not micro_steps.done(recorder.calls):
                kept = self._micro_step(accumulate)
                if micro_steps.captured == 0:
                    self._own_gradients()
                micro_steps.end(len(recorder.calls))
            if steppers:
                self._say("optimizer")
            for phase in ("first optimizer", "optimizer") if steppers else ():
                recorder.phase = phase
                for stepper in steppers:
                    stepper.step()
                    self._own_state(stepper)
            recorder.phase = "release"
            for parameter in self._trainable:
                recorder.release(parameter)
            del kept
            recorder.phase = "done"
        return kind_of(optimizer, steppers), micro_steps

    def _micro_step(self, accumulate: int) -> Any:
        """Forward and backward; returns what a script that doesn't accumulate keeps until its next step."""
        self._say("forward")
        self._recorder.phase = "forward"
        with region(self._autocast):
            result = self._module(*self._args, **self._kwargs)
        loss = _find_loss(result, self._module)
        if accumulate > 1:
            loss = loss / accumulate
        self._say("backward")
        self._recorder.phase = "backward"
        loss.backward()
        return (result, loss) if accumulate == 1 else None

    def _own_gradients(self) -> None:
        for parameter in self._trainable:
            if parameter.grad is not None:
                name = f"{self._names[parameter]}.grad"
                self._recorder.own(parameter.grad, "gradient", name, self._recorder.owner(parameter))

    def _own_state(self, stepper: torch.optim.Optimizer) -> None:
        for owner, state in stepper.state.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    self._recorder.own(value, "optimizer", f"{self._names[owner]}.{key}", self._recorder.owner(owner))


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
