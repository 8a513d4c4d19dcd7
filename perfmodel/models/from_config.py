"""A model from a Hugging Face ``config.json`` that lies here, without transformers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.models import catalogue, config_reading
from perfmodel.models.catalogue import ModelEntry
from perfmodel.models.stacks import ModelDims

__all__ = ["READERS", "dims_from_config", "entry_from_config", "find"]

#: Which module's ``from_huggingface(config)`` reads a config, by its ``model_type``.
READERS: dict[str, str] = {
    **dict.fromkeys(config_reading.MODEL_TYPES, "perfmodel.models.config_reading"),
    "t5": "perfmodel.models.config_encoder_decoder",
    "whisper": "perfmodel.models.config_speech",
    "vit": "perfmodel.models.config_vision",
    "resnet": "perfmodel.models.config_resnet",
    "mamba": "perfmodel.models.config_state_space",
    "mamba2": "perfmodel.models.config_state_space",
}


def dims_from_config(config: Mapping[str, Any]) -> ModelDims:
    """Dimensions from the contents of a Hugging Face ``config.json``.

    Of a model for several kinds of data, the part that reads text (``text_config``).

    Raises
    ------
    UnknownNameError
        A ``model_type`` that isn't known.
    UnsupportedError
        A missing number, or a setting that the reference modules don't have.

    Examples
    --------
    >>> dims = dims_from_config({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12,
    ...                          "n_head": 12, "n_positions": 1024})
    >>> dims.parameters()
    124439808
    """
    if "quantization_config" in config:
        raise UnsupportedError(
            "quantization_config: a quantised base is captured with adapter=QLoRA(…); remove the entry from the config"
        )
    if config.get("model_type") not in READERS and isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    name = str(config.get("model_type"))
    if name not in READERS:
        raise UnknownNameError("model_type", name, READERS, f"known are {', '.join(sorted(READERS))}")
    for architecture in config.get("architectures") or ():
        if architecture.endswith(("SequenceClassification", "TokenClassification", "QuestionAnswering")):
            raise UnsupportedError(
                f"architectures: {architecture} has another head than the language model that is captured from a "
                "config; build it with transformers and capture the module"
            )
    dims: ModelDims = importlib.import_module(READERS[name]).from_huggingface(config)
    return dims


def entry_from_config(config: Mapping[str, Any] | str | Path) -> ModelEntry:
    """A model that isn't in the catalogue.

    Parameters
    ----------
    config : mapping, str or Path
        The contents of a ``config.json``, its path, or that of its folder.

    Returns
    -------
    ModelEntry
        Its count of parameters is the formula's, as nothing is published.

    Raises
    ------
    FileError
        No such file, or it holds no JSON object.
    UnknownNameError, UnsupportedError
        As :func:`dims_from_config`.

    Examples
    --------
    >>> entry_from_config({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
    ...                    "n_positions": 1024, "_name_or_path": "me/my-gpt", "dtype": "bfloat16"}).name
    'my-gpt'
    """
    if isinstance(config, Mapping):
        values, source = config, "a config given as a mapping"
        name = str(values.get("_name_or_path") or values.get("model_type")).rsplit("/", 1)[-1]
    else:
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        values, source, name = _load(path), str(path), path.resolve().parent.name
        if path.name != "config.json":
            name = path.stem
    dims = dims_from_config(values)
    dtype = values.get("dtype") or values.get("torch_dtype") or "float32"
    return ModelEntry(name=name, aliases=(), dims=dims, dtype=str(dtype), parameters=dims.parameters(), source=source)


def find(model: str) -> ModelEntry:
    """The model of a name of the catalogue, or of the path of a ``config.json`` or its folder.

    Raises
    ------
    UnknownNameError
        Neither such a name nor such a file.
    FileError, UnsupportedError
        As :func:`entry_from_config`.
    """
    try:
        return catalogue.get(model)
    except UnknownNameError:
        if Path(model).suffix == ".json" or Path(model).is_dir():
            return entry_from_config(model)
        raise


def _load(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}; give the path of a config.json or of its folder") from None
    except ValueError as error:
        raise FileError(f"{path}: no JSON ({error}); correct the file") from None
    if not isinstance(values, dict):
        raise FileError(f"{path}: holds no JSON object; give a config.json of Hugging Face's")
    if "model_type" not in values:
        raise UnsupportedError(f"{path}: has no model_type; give a config.json of Hugging Face's")
    return values
