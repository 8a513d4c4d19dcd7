"""Published models by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perfmodel.dtypes import is_floating, item_size
from perfmodel.errors import UnknownNameError
from perfmodel.models import catalogue

# Sizes of the published models with tied weights once and without buffers. (Llama-2-70B's file also stores
# 5,120 rotary frequencies, and BERT's a pooler and a next-sentence head.)
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v3": 671_026_404_352,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-27b": 27_009_346_304,
    "phi-3-mini": 3_821_079_552,
    "pythia-1b": 1_011_781_632,
    "gpt-neox-20b": 20_554_567_680,
    "mpt-70b": 64_862_437_376,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_formula_gives_the_published_count_exactly(name: str) -> None:
    entry = catalogue.get(name)
    assert entry.dims.parameters() == entry.parameters == PUBLISHED[name]


# Published in three or four digits, by a formula without the last norm, or with numbers that aren't trained.
ROUNDED = (
    "gpt3-",
    "megatron-gpt-",
    "moonlight-",
    "bert-large-pretraining",
    "lstm-ptb-large",
    "transformer-iwslt-de-en",
)


@pytest.mark.parametrize("name", [name for name in catalogue.names() if not name.startswith(ROUNDED)])
def test_formula_gives_every_exactly_published_count(name: str) -> None:
    entry = catalogue.get(name)
    assert entry.dims.parameters() == entry.parameters


@pytest.mark.parametrize("name", catalogue.names())
def test_every_model_has_its_published_count(name: str) -> None:
    entry = catalogue.get(name)
    assert entry.dims.parameters() == pytest.approx(entry.parameters, rel=1e-3)


@pytest.mark.parametrize("name", catalogue.names())
def test_entries_are_complete(name: str) -> None:
    entry = catalogue.get(name)
    assert entry.name == name
    assert is_floating(entry.dtype)
    assert item_size(entry.dtype) in (2, 4)
    assert entry.source


def test_aliases_and_case() -> None:
    for name in catalogue.names():
        entry = catalogue.get(name)
        for alias in entry.aliases:
            assert catalogue.get(alias) is entry
            assert catalogue.get(alias.upper()) is entry


def test_there_are_many_and_of_every_kind() -> None:
    families = [catalogue.get(name).dims.family for name in catalogue.names()]
    assert families.count("decoder") >= 60
    assert len(set(families)) >= 5


def test_no_name_or_alias_comes_twice() -> None:
    every = [key.lower() for n in catalogue.names() for key in (n, *catalogue.get(n).aliases)]
    assert len(every) == len(set(every))


def test_no_key_of_the_file_comes_twice() -> None:
    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        for child in children if isinstance(node, yaml.CollectionNode) else []:
            check(child)

    for path in Path(catalogue.__file__).with_name("published").glob("*.yaml"):
        check(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'llama-3.1-8'; did you mean 'llama-3.1-8b'") as error:
        catalogue.get("llama-3.1-8")
    assert "\n" not in str(error.value)
    with pytest.raises(UnknownNameError, match="`perfmodel models list` names all"):
        catalogue.get("zzz")


def test_importing_needs_no_torch() -> None:
    code = (
        "import sys; from perfmodel.models import catalogue, config, dims, inputs; "
        "from perfmodel.graph import huggingface; "
        "entry = catalogue.get('gpt2'); inputs.batch_inputs(entry.dims); config.huggingface_config(entry.dims); "
        "huggingface.available(); huggingface.layer_stacks({'model_type': 'bert'}); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
