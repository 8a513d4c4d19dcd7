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
    attention : {"sdpa", "eager"}
        ``eager`` materialises scores: all that transformers has for capped ones and for sinks, besides kernels
        that need a GPU.
    folder : str, optional
        Where the model's file is, if not in the folder of its type.
    unlisted : tuple of str
        Keywords that the config takes without listing them.
    """

    task: str
    config: str
    model: str
    stacks: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss_type: str | None = None
    attention: str = "sdpa"
    folder: str | None = None
    unlisted: tuple[str, ...] = ()


# Special tokens only matter in generation, and the defaults don't fit every vocabulary.
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}

# Keywords that configs take without listing them.
_EVERY_CONFIG = ("decoder_start_token_id", "num_labels", "tie_word_embeddings")


def _decoder(name: str, **others: Any) -> ModelType:
    """A model that is built as Llama is, and named by this prefix."""
    stacks = {"layers": "model.layers"}
    keywords = {"task": "causal-lm", "config": f"{name}Config", "stacks": stacks, "settings": _NO_SPECIAL_TOKENS}
    return ModelType(model=f"{name}ForCausalLM", **{**keywords, **others})


def _experts(name: str, **others: Any) -> ModelType:
    """Such a one with experts, whose products are grouped: a loop over experts can't be captured."""
    return _decoder(name, settings={**_NO_SPECIAL_TOKENS, "experts_implementation": "grouped_mm"}, **others)


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
    "opt": _decoder("OPT", stacks={"layers": "model.decoder.layers"}),
    "gpt_neox": _decoder("GPTNeoX", stacks={"layers": "gpt_neox.layers"}),
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral"),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "olmo2": _decoder("Olmo2"),
    "gemma2": _decoder("Gemma2", attention="eager"),
    "gemma3_text": _decoder("Gemma3", config="Gemma3TextConfig", folder="gemma3"),
    "phi": _decoder("Phi"),
    "phi3": _decoder("Phi3"),
    "mixtral": _experts("Mixtral"),
    "qwen3_moe": _experts("Qwen3Moe", unlisted=("head_dim",)),
    "gpt_oss": _experts("GptOss", attention="eager"),
    "deepseek_v3": _experts("DeepseekV3"),
    "bert": ModelType(
        task="masked-lm", config="BertConfig", model="BertForMaskedLM", stacks={"layers": "bert.encoder.layer"}
    ),
    "roberta": ModelType(
        task="masked-lm",
        config="RobertaConfig",
        model="RobertaForMaskedLM",
        stacks={"layers": "roberta.encoder.layer"},
        settings=_NO_SPECIAL_TOKENS,
    ),
    "t5": ModelType(
        task="seq2seq-lm",
        config="T5Config",
        model="T5ForConditionalGeneration",
        stacks={"encoder.layers": "encoder.block", "decoder.layers": "decoder.block"},
        settings=_NO_SPECIAL_TOKENS,
    ),
    "whisper": ModelType(
        task="speech-to-text",
        config="WhisperConfig",
        model="WhisperForConditionalGeneration",
        stacks={"encoder.layers": "model.encoder.layers", "decoder.layers": "model.decoder.layers"},
        settings={**_NO_SPECIAL_TOKENS, "suppress_tokens": None, "begin_suppress_tokens": None},
    ),
    "vit": ModelType(
        task="image-classification",
        config="ViTConfig",
        model="ViTForImageClassification",
        stacks={"layers": "vit.layers"},
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
        Without a key-value cache, attention through ``scaled_dot_product_attention`` where the model can.

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
    known = {*inspect.signature(make).parameters, *make.attribute_map, *_EVERY_CONFIG, *model_type.unlisted}
    keywords = {key: value for key, value in dims.items() if key != "model_type"}
    for key in keywords:
        if key not in known:
            raise UnknownNameError(f"keyword of {model_type.config}", key, known)
    try:
        return make(**{**model_type.settings, **keywords}, use_cache=False, attn_implementation=model_type.attention)
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
    if dims.get("tie_word_embeddings") is False:
        _untie_head(module)
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


def _untie_head(module: Any) -> None:
    """T5's config ties the head whatever it is asked for; loading a checkpoint with two weights unties it again."""
    import torch

    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))


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
    which is what transformers does by itself. A sliding window, which is in the
    mask of a real run too, is told to the captured op besides.

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
        functions: Any = _import("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
        original = functions["sdpa"]
        functions["sdpa"] = _with_window(original)
        patches.callback(functions.__setitem__, "sdpa", original)
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


def _with_window(original: Callable[..., Any]) -> Callable[..., Any]:
    """Tell a sliding window, which transformers puts into a mask, to the op that is captured."""
    from perfmodel.graph.capture.attention import attention_hint

    def attention(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        with attention_hint(window=sliding_window):
            return original(*args, sliding_window=sliding_window, **kwargs)

    return attention


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
    folder = MODEL_TYPES[model_type].folder or model_type
    return f"transformers.models.{folder}.modeling_{folder}"


def _import(module: str) -> Any:
    if not available():
        missing = "transformers" if importlib.util.find_spec("torch") else "torch"
        raise MissingDependencyError(missing, "a model of Hugging Face's", "hf")
    return importlib.import_module(module)
