"""Models of Hugging Face's transformers, where it is installed.

Importing this module imports neither PyTorch nor transformers.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perfmodel.errors import MissingDependencyError, UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["MODEL_TYPES", "ModelType", "available", "build", "config_for", "holds", "layer_stacks", "traceable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelType:
    """Which classes of transformers make a model, and what they are for.

    Attributes
    ----------
    task : str
    config, model : str
        Names of the classes.
    stacks : mapping of str to str
        Paths of the layers in the model, by their paths in the reference module.
    settings : mapping
        Config keywords beyond the dimensions.
    loss_type : str, optional
        The loss, where transformers can't tell it from the class's name and would warn before it takes this one.
    """

    task: str
    config: str
    model: str
    stacks: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss_type: str | None = None


# Special tokens only matter in generation, and the defaults don't fit every vocabulary.
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}

#: By the ``model_type`` of Hugging Face's configs.
MODEL_TYPES: dict[str, ModelType] = {
    "gpt2": ModelType(
        task="causal-lm",
        config="GPT2Config",
        model="GPT2LMHeadModel",
        stacks={"layers": "transformer.h"},
        settings=_NO_SPECIAL_TOKENS,
        loss_type="ForCausalLM",
    ),
    "llama": ModelType(
        task="causal-lm",
        config="LlamaConfig",
        model="LlamaForCausalLM",
        stacks={"layers": "model.layers"},
        settings=_NO_SPECIAL_TOKENS,
    ),
    "bert": ModelType(
        task="masked-lm", config="BertConfig", model="BertForMaskedLM", stacks={"layers": "bert.encoder.layer"}
    ),
}


def available() -> bool:
    """Whether transformers and PyTorch are installed; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def holds(module: object) -> bool:
    """Whether a module has parts of transformers' in it, which need :func:`traceable` to be captured right."""
    if isinstance(module, type) or not hasattr(module, "modules"):
        return False
    return any(type(part).__module__.startswith("transformers.") for part in module.modules())


def layer_stacks(dims: Mapping[str, Any]) -> Mapping[str, str]:
    """Paths of the layers in the module that :func:`build` makes, by those in the reference module.

    >>> layer_stacks({"model_type": "llama"})
    {'layers': 'model.layers'}
    """
    return _model_type(dims).stacks


def config_for(dims: Mapping[str, Any], task: str) -> Any:
    """The config of a model that is trained, not generated from.

    Parameters
    ----------
    dims : mapping
        ``model_type`` and keywords of its config, by Hugging Face's names.
    task : {"causal-lm", "masked-lm"}

    Returns
    -------
    transformers.PretrainedConfig
        Without a key-value cache, attention through ``scaled_dot_product_attention``.

    Raises
    ------
    UnknownNameError
        No such ``model_type``, or a keyword that its config doesn't have.
    UnsupportedError
        A task that the model isn't for, or a value that transformers refuses.
    MissingDependencyError
        transformers isn't installed.
    """
    model_type = _model_type(dims)
    if task != model_type.task:
        raise UnsupportedError(f"{model_type.model} is trained on {model_type.task}, not on {task}; name another model")
    make = getattr(_modeling(dims["model_type"]), model_type.config)
    # A config keeps keywords it doesn't know without a word.
    known = {*inspect.signature(make).parameters, *make.attribute_map}
    keywords = {key: value for key, value in dims.items() if key != "model_type"}
    for key in keywords:
        if key not in known:
            raise UnknownNameError(f"keyword of {model_type.config}", key, known)
    try:
        return make(**{**model_type.settings, **keywords}, use_cache=False, attn_implementation="sdpa")
    except Exception as error:  # its own kinds of error, other ones in each version
        text = " ".join(str(error).split())
        raise UnsupportedError(
            f"transformers refuses this {model_type.config}: {text}; correct the dimensions"
        ) from error


def build(dims: Mapping[str, Any], task: str, gradient_checkpointing: bool = False) -> torch.nn.Module:
    """A model in training mode, on PyTorch's current default device and dtype.

    Parameters
    ----------
    dims, task
        As in :func:`config_for`, whose errors it raises.
    gradient_checkpointing : bool
        Recompute each layer in backward.

    Returns
    -------
    torch.nn.Module
        Its call returns an output with ``.loss`` and ``.logits``.
    """
    config = config_for(dims, task)
    model_type = _model_type(dims)
    module = getattr(_modeling(dims["model_type"]), model_type.model)(config)
    if model_type.loss_type is not None:
        module.loss_type = model_type.loss_type
    if gradient_checkpointing:
        # transformers 5 deprecates the older name.
        enable = getattr(module, "activation_checkpointing_enable", None)
        if enable is not None:
            enable({"use_reentrant": False})
        else:
            module.gradient_checkpointing_enable({"use_reentrant": False})
    return module.train()  # type: ignore[no-any-return]


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """While active, transformers runs on fake tensors what it would run on real ones. Enter it after :func:`build`.

    On fake tensors transformers can't read whether position ids are those of
    several sequences packed into one, so it supposes that they are: attention
    gets an explicit mask of ``[batch, 1, seq, seq]`` and loses its causality. Here
    nothing is packed.

    And it keeps all positions for the head by a slice ``[:, 0:, :]``, which PyTorch
    skips on real sizes but not on symbolic ones, where it costs a copy in backward.

    An attention mask whose contents can't be read is taken to hold padding,
    which is what transformers does by itself.

    Raises
    ------
    MissingDependencyError
        transformers isn't installed.
    UnsupportedError
        This version of transformers decides in another way.
    """
    masking: Any = _import("transformers.masking_utils")
    packing = "find_packed_sequence_indices"
    if not hasattr(masking, packing):
        raise UnsupportedError(
            f"this transformers has no masking_utils.{packing}, so a capture would get attention masks that a real run "
            "doesn't; install transformers 5.23, or use implementation='reference'"
        )
    with contextlib.ExitStack() as patches:
        patches.enter_context(_replaced(masking, packing, lambda *_: None))
        slicing = "slice_logits_to_keep"
        for model_type in MODEL_TYPES:
            modeling = sys.modules.get(_modeling_path(model_type))
            if hasattr(modeling, slicing):
                patches.enter_context(_replaced(modeling, slicing, _without_empty_slice(getattr(modeling, slicing))))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _without_empty_slice(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def keep(hidden_states: Any, logits_to_keep: Any) -> Any:
        everything = isinstance(logits_to_keep, int) and logits_to_keep == 0
        return hidden_states if everything else original(hidden_states, logits_to_keep)

    return keep


def _model_type(dims: Mapping[str, Any]) -> ModelType:
    name = str(dims.get("model_type"))
    if name not in MODEL_TYPES:
        raise UnknownNameError("model_type", name, MODEL_TYPES, f"give one of {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[name]


def _modeling(model_type: str) -> Any:
    """The one file of transformers that holds a model: importing its root would find hundreds."""
    return _import(_modeling_path(model_type))


def _modeling_path(model_type: str) -> str:
    return f"transformers.models.{model_type}.modeling_{model_type}"


def _import(module: str) -> Any:
    if not available():
        missing = "transformers" if importlib.util.find_spec("torch") else "torch"
        raise MissingDependencyError(missing, "a model of Hugging Face's", "hf")
    return importlib.import_module(module)
