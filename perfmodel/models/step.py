"""``capture``: a module of the user's, or a model by name, as a training step."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from perfmodel.errors import MissingDependencyError, ShapeError, UnknownNameError, UnsupportedError
from perfmodel.graph import cache as store
from perfmodel.graph import huggingface
from perfmodel.graph.depth import probe_depth, with_depth
from perfmodel.graph.fold import fold
from perfmodel.graph.ir import Graph
from perfmodel.models.adapters import Adapter, PrefixTuning, apply, check_adapter
from perfmodel.models.catalogue import ModelEntry
from perfmodel.models.families import family_of
from perfmodel.models.from_config import find
from perfmodel.models.inputs import SYMBOLS, batch_inputs
from perfmodel.models.lengths import Packed
from perfmodel.models.stacks import ModelDims

if TYPE_CHECKING:
    import torch

__all__ = ["IMPLEMENTATIONS", "capture", "from_fx"]

#: Where a model by name comes from. ``auto``: Hugging Face where transformers is installed.
IMPLEMENTATIONS = ("auto", "huggingface", "reference")

#: Whose kernels are recorded for ops that PyTorch picks a kernel for by device.
DISPATCH = ("neutral", "cpu")

Progress = Callable[[str], None]


def capture(
    model: str | ModelEntry | torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: Any,
    batch: int | None = None,
    seq_len: int | None = None,
    target_seq_len: int | None = None,
    dynamic_shapes: Any = None,
    dtype: str | None = None,
    implementation: str = "auto",
    layers: int | Mapping[str, int] | None = None,
    adapter: Adapter | None = None,
    packing: Packed | None = None,
    gradient_checkpointing: bool = False,
    accumulate: int = 1,
    autocast: str | None = None,
    dispatch: str = "neutral",
    folded: bool = True,
    cache: bool = True,
    progress: Progress | None = None,
) -> Graph:
    """Capture one training step: forward, backward, recompute, optimizer.

    Nothing is computed and no weights are made.

    Parameters
    ----------
    model : str, ModelEntry or torch.nn.Module
        A name of the catalogue, the path of a Hugging Face ``config.json`` or of its
        folder, dimensions of your own as an entry, or any module that returns a loss.
    args, kwargs
        For a module: the inputs of its call.
    optimizer : str, callable or None
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"sgd-momentum"``, ``"adafactor"``, ``"muon"``,
        ``"lamb"``, … (:data:`perfmodel.graph.capture.optimizers.OPTIMIZERS`); a factory that
        takes the parameters; or ``None`` for a step without one.
    batch, seq_len, target_seq_len : int
        For a name: sequences (images, samples) a step, tokens of each, and tokens
        of each target of a model that reads one sequence and writes another; those
        that the model has. The graph keeps them as symbols ``batch``, ``seq`` and
        ``target_seq``; :meth:`Graph.at` gives them other values.
    dynamic_shapes : optional
        For a module: which input dimensions are symbols, as in ``torch.export``,
        e.g. ``({0: "batch", 1: "seq"},)``.
    dtype : str, optional
        For a name: type of the parameters; that of the published checkpoint if left out.
    implementation : {"auto", "huggingface", "reference"}
        For a name: whose modules run. ``auto`` takes Hugging Face's where
        transformers is installed, else ours; the graph's ``meta`` says which.
    layers : int or mapping of str to int, optional
        For a name: a number of layers other than the model's own, of every
        stack or by the stack's path in the reference module (``{"decoder.layers": 2}``).
    adapter : Adapter, optional
        For a name: fine-tune by a few new parameters (:class:`~perfmodel.LoRA` and its like), the model's own frozen.
    packing : Packed, optional
        For a name: each row holds several documents, and attention stays within each
        (:meth:`perfmodel.Lengths.packed`, of the same ``seq_len``).
    gradient_checkpointing : bool
        For a name: recompute each layer in backward. A module of yours does what it does.
    accumulate : int
        Micro-steps, forward and backward of such a batch each, that one optimizer step follows.
    autocast : {"bfloat16", "float16"}, optional
        Forward and loss run as in ``torch.autocast`` with this type.
    dispatch : {"neutral", "cpu"}
        ``neutral`` records attention and dropout as one op each, whatever this
        machine would run for them: right for accelerators. ``cpu`` records what
        PyTorch runs on this CPU (with dropout it materialises the scores).
    folded : bool
        For a name: capture a few layers and derive the rest (``True``), or
        capture all of them. Both give the same graph.
    cache : bool
        For a name: keep the graph on disk and use what is kept.
    progress : callable, optional
        Called with the name of each phase.

    Returns
    -------
    Graph

    Raises
    ------
    UnknownNameError
        No such model, optimizer or implementation.
    ShapeError
        A batch or sequence that the model doesn't take.
    CaptureError
        The module has no loss or can't be run on fake tensors.
    """
    if dispatch not in DISPATCH:
        raise UnknownNameError("dispatch", dispatch, DISPATCH)
    if not isinstance(model, (str, ModelEntry)):
        given = {
            "batch": batch, "seq_len": seq_len, "target_seq_len": target_seq_len, "dtype": dtype, "layers": layers,
            "gradient_checkpointing": gradient_checkpointing or None, "adapter": adapter, "packing": packing,
            "implementation": None if implementation == "auto" else implementation,
        }  # fmt: skip
        extra = [key for key, value in given.items() if value is not None]
        if extra:
            raise UnsupportedError(
                f"{', '.join(extra)} is for models by name; a module's own inputs and settings decide "
                "(name varying sizes with dynamic_shapes)"
            )
        from perfmodel.graph.capture import capture_module

        with huggingface.traceable() if huggingface.holds(model) else contextlib.nullcontext():
            graph = capture_module(
                model,
                args,
                kwargs,
                optimizer=optimizer,
                dynamic_shapes=dynamic_shapes,
                dispatch=dispatch,
                accumulate=accumulate,
                autocast=autocast,
                progress=progress,
            )
        return fold(graph)
    if args or kwargs or dynamic_shapes is not None:
        raise UnsupportedError(
            "args, kwargs and dynamic_shapes are for modules; a model by name takes batch and seq_len"
        )
    if adapter is not None:
        check_adapter(adapter)
    entry = model if isinstance(model, ModelEntry) else find(model)
    sizes = _sizes(entry, {"batch": batch, "seq": seq_len, "target_seq": target_seq_len})
    if packing is not None and (entry.dims.family not in ("decoder", "encoder")):
        raise UnsupportedError(
            f"packing keeps attention within documents; {entry.name} isn't captured so, leave it out"
        )
    if packing is not None and packing.seq_len != sizes.get("seq"):
        raise ShapeError(f"rows were packed to {packing.seq_len} tokens, not {sizes.get('seq')}; pack them to seq_len")
    where = _implementation(implementation, entry)
    dims = entry.dims.with_depths(_depths(entry, layers))
    question = {
        "model": entry.name,
        "dims": dims.to_dict(),
        "task": entry.task,
        "dtype": dtype or entry.dtype,
        "optimizer": optimizer,
        "implementation": where,
        "versions": {
            name: _version(name) for name in ("torch", *(("transformers",) if where == "huggingface" else ()))
        },
        "gradient_checkpointing": gradient_checkpointing,
        "adapter": adapter.to_dict() if adapter else None,
        "packing": asdict(packing) if packing else None,
        "accumulate": accumulate,
        "autocast": autocast,
        "dispatch": dispatch,
        "folded": folded,
        # A size of one takes other branches (broadcasting, contiguity): it's another graph.
        "single": {name: size == 1 for name, size in sizes.items()},
    }
    keyed = cache and (optimizer is None or isinstance(optimizer, str))
    key, special = (store.key_of(question), store.key_of({**question, "sizes": sizes})) if keyed else (None, None)
    kept = _kept(key, sizes) or _kept(special, sizes)
    graph = kept or _capture_named(entry, dims, sizes, question, optimizer, adapter, packing, progress)
    if kept is None and key and special:
        # Sizes that take other branches than the graph that is kept get an entry of their own.
        store.keep(special if store.fetch(key) else key, graph)
    return graph.at(**sizes) if key is None else replace(graph.at(**sizes), trace=None)


def _kept(key: str | None, sizes: dict[str, int]) -> Graph | None:
    """The graph in the cache, if it holds for these sizes."""
    graph = store.fetch(key) if key else None
    return graph if graph is not None and not graph.broken_guards(sizes) else None


def from_fx(graph_module: Any, example_inputs: Sequence[Any], *, name: str | None = None) -> Graph:
    """A graph that you made with ``torch.fx.symbolic_trace``, ``torch.export`` or ``make_fx``.

    Parameters
    ----------
    graph_module : torch.fx.GraphModule
        Run as it stands; a joint graph brings its own backward. If its result is
        a scalar that depends on trainable parameters, backward is captured too.
    example_inputs : sequence
        Arguments of the call; tensors are used for their shape and type only.
    name : str, optional
        What to call the graph.
    """
    from perfmodel.graph.capture import capture_forward

    return fold(capture_forward(graph_module, example_inputs, name=name))


def _capture_named(
    entry: ModelEntry,
    dims: ModelDims,
    sizes: dict[str, int],
    question: dict[str, Any],
    optimizer: Any,
    adapter: Adapter | None,
    packing: Packed | None,
    progress: Progress | None,
) -> Graph:
    try:
        from perfmodel.graph.capture import capture_module
    except ModuleNotFoundError:
        raise MissingDependencyError("torch", f"capturing {entry.name}", "torch") from None
    from perfmodel.models.build import build

    depths = {stack.path: stack.depth for stack in dims.stacks}
    few = {s.path: probe_depth(s.depth, prefix=s.prefix, period=s.period) for s in dims.stacks}
    if question["gradient_checkpointing"]:
        # What first layers of a kind of their own hand to all others dies with the layer after them.
        mixed = [s for s in dims.stacks if s.prefix and s.period == 1]
        few.update({s.path: probe_depth(s.depth, prefix=s.prefix + 1) for s in mixed})
    if isinstance(adapter, PrefixTuning):
        # The first layer's prefix has nothing before it to pass a gradient to.
        few = {s.path: probe_depth(s.depth, prefix=s.prefix + 1, period=s.period) for s in dims.stacks}
    captured = few if question["folded"] else depths
    module, stacks = build(
        entry,
        implementation=question["implementation"],
        layers=captured,
        gradient_checkpointing=question["gradient_checkpointing"],
        dtype=question["dtype"],
    )
    if adapter is not None:
        module = apply(module, adapter)
    meta = {
        key: question[key]
        for key in (
            *("model", "dims", "task", "dtype", "implementation", "versions", "gradient_checkpointing"),
            *("adapter", "packing"),
        )
        if question[key] is not None
    }
    with contextlib.ExitStack() as conditions:
        if question["implementation"] == "huggingface":
            conditions.enter_context(huggingface.traceable())
        if packing is not None:
            from perfmodel.graph.capture.attention import attention_hint

            causal = family_of(dims).task == "causal-lm"
            conditions.enter_context(attention_hint(visible=packing.visible if causal else packing.visible_both_ways))
        graph = fold(
            capture_module(
                module,
                optimizer=optimizer,
                name=entry.name,
                meta=meta,
                inputs=batch_inputs(dims, question["dtype"]),
                hints=sizes,
                dispatch=question["dispatch"],
                accumulate=question["accumulate"],
                autocast=question["autocast"],
                progress=progress,
            )
        )
    if packing is not None:
        # The share of visible pairs is that of rows of this length.
        graph = replace(graph, guards=(*graph.guards, f"seq == {packing.seq_len}"))
    if dims.max_length is not None:
        # Fake tensors don't look a position up, so that only this says how many there are.
        graph = replace(graph, guards=tuple(dict.fromkeys((*graph.guards, f"seq <= {dims.max_length}"))))
    return with_depth(graph, {stacks[path]: depth for path, depth in depths.items() if depth != captured[path]})


def _depths(entry: ModelEntry, layers: int | Mapping[str, int] | None) -> dict[str, int]:
    """Number of layers of each stack, as asked for."""
    own = {stack.path: stack.depth for stack in entry.dims.stacks}
    if layers is None:
        return own
    if not own:
        raise UnsupportedError(f"{entry.name} has no stack of equal layers; leave layers out")
    wanted = layers if isinstance(layers, Mapping) else dict.fromkeys(own, layers)
    for path, depth in wanted.items():
        if path not in own:
            raise UnknownNameError(f"layer stack of {entry.name}", str(path), own, f"it has {', '.join(own)}")
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ShapeError(f"layers must be a positive integer, not {depth!r}")
    return {**own, **wanted}


#: What a size is called among the arguments, and a value for the error's example.
_ARGUMENTS = {"batch": ("batch", 8), "seq": ("seq_len", 1024), "target_seq": ("target_seq_len", 256)}


def _sizes(entry: ModelEntry, given: Mapping[str, int | None]) -> dict[str, int]:
    needed = {size for shape, _ in batch_inputs(entry.dims).values() for size in shape if size in SYMBOLS}
    sizes: dict[str, int] = {}
    for symbol, value in given.items():
        name, example = _ARGUMENTS[symbol]
        if symbol not in needed:
            if value is not None:
                raise ShapeError(f"{entry.name} has no {name}; leave it out")
            continue
        if value is None:
            raise ShapeError(f"{entry.name} needs {name}; give one, e.g. {name}={example}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ShapeError(f"{name} must be a positive integer, not {value!r}")
        sizes[symbol] = value
    limit = entry.dims.max_length
    if limit is not None and sizes.get("seq", 0) > limit:
        raise ShapeError(
            f"{entry.name} has {limit} learned positions, so seq_len={sizes['seq']} doesn't fit; give at most {limit}"
        )
    return sizes


def _implementation(wanted: str, entry: ModelEntry) -> str:
    if wanted not in IMPLEMENTATIONS:
        raise UnknownNameError("implementation", wanted, IMPLEMENTATIONS)
    exists = family_of(entry.dims).config is not None
    if wanted == "auto":
        return "huggingface" if exists and huggingface.available() else "reference"
    if wanted == "huggingface" and not exists:
        raise UnsupportedError(
            f"{entry.name} is captured from the reference modules only; leave implementation out, or give 'reference'"
        )
    if wanted == "huggingface" and not huggingface.available():
        raise MissingDependencyError("transformers", "implementation='huggingface'", "hf")
    return wanted


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
