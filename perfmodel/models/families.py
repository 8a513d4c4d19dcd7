"""The kinds of model that can be built from dimensions: the one table that says who builds what."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.errors import UnknownNameError
from perfmodel.models.dims import TransformerDims
from perfmodel.models.dims_encoder_decoder import EncoderDecoderDims
from perfmodel.models.dims_nets import FeedForwardDims, RecurrentDims, TranslatorDims
from perfmodel.models.dims_pretraining import PretrainingDims
from perfmodel.models.dims_recommender import RecommenderDims
from perfmodel.models.dims_resnet import ResNetDims
from perfmodel.models.dims_speech import SpeechDims
from perfmodel.models.dims_state_space import StateSpaceDims
from perfmodel.models.dims_vision import VisionDims
from perfmodel.models.stacks import ModelDims

__all__ = ["FAMILIES", "Family", "dims_from_dict", "family_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A kind of model.

    Attributes
    ----------
    dims : type
        Its record of dimensions, with ``from_dict``.
    module : str
        Python module whose ``build(dims, *, gradient_checkpointing, return_logits)``
        makes the reference module; imports PyTorch.
    config : str, optional
        Python module whose ``huggingface_config(dims)`` gives the keywords of
        its Hugging Face config; ``None`` where only the reference module is captured.
    task : str
        What it is trained on (:mod:`perfmodel.models.inputs`).
    """

    dims: Any
    module: str
    config: str | None
    task: str

    def load(self, module: str) -> Any:
        """One of the two modules, imported."""
        return importlib.import_module(module)


#: By the ``family`` of the dimensions.
FAMILIES: dict[str, Family] = {
    "decoder": Family(
        dims=TransformerDims, module="perfmodel.models.decoder", config="perfmodel.models.config", task="causal-lm"
    ),
    "encoder": Family(
        dims=TransformerDims, module="perfmodel.models.encoder", config="perfmodel.models.config", task="masked-lm"
    ),
    "encoder-pretraining": Family(
        dims=PretrainingDims, module="perfmodel.models.pretraining", config=None, task="masked-positions"
    ),
    "encoder-decoder": Family(
        dims=EncoderDecoderDims,
        module="perfmodel.models.encoder_decoder",
        config="perfmodel.models.config_encoder_decoder",
        task="seq2seq-lm",
    ),
    "speech": Family(
        dims=SpeechDims,
        module="perfmodel.models.speech",
        config="perfmodel.models.config_speech",
        task="speech-to-text",
    ),
    "vision": Family(
        dims=VisionDims,
        module="perfmodel.models.vision",
        config="perfmodel.models.config_vision",
        task="image-classification",
    ),
    # transformers has Mamba, but scans in plain PyTorch without Mamba's kernels.
    "state-space": Family(dims=StateSpaceDims, module="perfmodel.models.state_space", config=None, task="causal-lm"),
    "resnet": Family(dims=ResNetDims, module="perfmodel.models.resnet", config=None, task="image-classification"),
    "recurrent": Family(dims=RecurrentDims, module="perfmodel.models.nets", config=None, task="causal-lm"),
    "translator": Family(dims=TranslatorDims, module="perfmodel.models.nets", config=None, task="seq2seq-lm"),
    "feed-forward": Family(dims=FeedForwardDims, module="perfmodel.models.nets", config=None, task="classification"),
    "recommender": Family(
        dims=RecommenderDims, module="perfmodel.models.recommender", config=None, task="click-through"
    ),
}


def family_of(dims: ModelDims) -> Family:
    """The kind of model that these dimensions make."""
    return FAMILIES[dims.family]


def dims_from_dict(data: Mapping[str, Any]) -> ModelDims:
    """Dimensions of any family from plain values with a key ``family``.

    Raises
    ------
    UnknownNameError
        No such family, or a key that isn't a dimension of it.
    UnsupportedError
        A missing dimension, or values that don't make a model.
    """
    name = str(data.get("family"))
    if name not in FAMILIES:
        raise UnknownNameError("family", name, FAMILIES, f"give one of {', '.join(FAMILIES)}")
    dims: ModelDims = FAMILIES[name].dims.from_dict(data)
    return dims
