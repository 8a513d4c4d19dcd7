"""A way of fine-tuning as one word."""

from __future__ import annotations

import pytest

import perfmodel as pm
from perfmodel.errors import PerfModelError
from perfmodel.models.adapters import ADAPTERS, Adapter
from perfmodel.models.adapters_text import parse_adapter


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_kind_alone_is_its_defaults(kind: str) -> None:
    assert parse_adapter(kind) == ADAPTERS[kind]()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "lora:rank=4,alpha=8,targets=q_proj+mlp.up_proj,dropout=0.1,dtype=bfloat16",
            pm.LoRA(rank=4, alpha=8.0, targets=("q_proj", "mlp.up_proj"), dropout=0.1, dtype="bfloat16"),
        ),
        ("qlora:block=32,double_quantization=no", pm.QLoRA(block=32, double_quantization=False)),
        ("adalora:orthogonality=1e-1,targets=all-linear", pm.AdaLoRA(orthogonality=0.1, targets=("all-linear",))),
        ("prefix-tuning:virtual_tokens=5", pm.PrefixTuning(virtual_tokens=5)),
        ("bottleneck-adapter:size=8,train_norms=Yes", pm.BottleneckAdapter(size=8)),
    ],
)
def test_settings_have_the_types_of_their_fields(text: str, expected: Adapter) -> None:
    assert parse_adapter(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown adapter ''; give one of lora, qlora"),
        ("bottleneck", "did you mean 'bottleneck-adapter'"),
        ("lora:", "'' is no setting; write NAME=VALUE, e.g. lora:rank=16"),
        ("lora:rank=", "'rank=' is no setting"),
        ("lora:virtual_tokens=3", "unknown setting of lora 'virtual_tokens'; it has rank"),
        ("lora:rank=4,rank=8", "rank is given twice"),
        ("lora:rank=4.5", "rank is '4.5'; write a whole number"),
        ("lora:alpha=nan", "alpha is 'nan'; write a number"),
        ("lora:rank=0", "rank must be a positive integer"),
        ("qlora:block=0", "block must be a positive integer"),
        ("lora:dropout=1.5", "a share from 0 to 1"),
        ("lora:dtype=bfloat17", "did you mean 'bfloat16'"),
        ("qlora:double_quantization=maybe", "write yes or no"),
    ],
)
def test_a_mistake_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(PerfModelError, match=message.replace("(", r"\(")):
        parse_adapter(text)
