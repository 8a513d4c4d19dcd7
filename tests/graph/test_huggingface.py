"""Hugging Face's modules: configs, masks under fake tensors, what happens without them."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import pytest

from perfmodel.errors import MissingDependencyError, UnknownNameError, UnsupportedError
from perfmodel.graph import huggingface

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
DIMS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **SIZES, "max_position_embeddings": 16},
    "llama": {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "intermediate_size": 30},
    "bert": {"model_type": "bert", **SIZES, "intermediate_size": 30, "max_position_embeddings": 16},
}
TASKS = {"gpt2": "causal-lm", "llama": "causal-lm", "bert": "masked-lm"}


@pytest.mark.parametrize("name", DIMS)
def test_config_is_for_training(name: str) -> None:
    config = huggingface.config_for(DIMS[name], TASKS[name])
    assert config.use_cache is False
    assert config._attn_implementation == "sdpa"
    for key, value in SIZES.items():
        assert getattr(config, key) == value


@pytest.mark.parametrize("name", DIMS)
def test_module_trains_and_has_its_stack(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = huggingface.build(DIMS[name], TASKS[name])
    assert module.training
    assert len(module.get_submodule(huggingface.layer_stacks(DIMS[name])["layers"])) == 1
    ids = torch.randint(0, 50, (2, 8))
    module(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", DIMS)
def test_checkpointing_recomputes_layers(name: str) -> None:
    calls: list[bool] = []
    for checkpointing in (False, True):
        module = huggingface.build(DIMS[name], TASKS[name], gradient_checkpointing=checkpointing)
        layer = module.get_submodule(huggingface.layer_stacks(DIMS[name])["layers"])[0]
        inner = next(part for part in layer.modules() if not list(part.children()))
        inner.register_forward_hook(lambda *_, c=checkpointing: calls.append(c))
        ids = torch.randint(0, 50, (2, 8))
        module(input_ids=ids, labels=ids).loss.backward()
    assert calls == [False, True, True]


def test_bad_requests() -> None:
    with pytest.raises(UnknownNameError, match="unknown model_type 'lama'; did you mean 'llama'"):
        huggingface.config_for({**DIMS["llama"], "model_type": "lama"}, "causal-lm")
    with pytest.raises(UnknownNameError, match="keyword of LlamaConfig 'hiden_size'; did you mean 'hidden_size'"):
        huggingface.config_for({**DIMS["llama"], "hiden_size": 3}, "causal-lm")
    with pytest.raises(UnsupportedError, match="BertForMaskedLM is trained on masked-lm, not on causal-lm"):
        huggingface.build(DIMS["bert"], "causal-lm")
    with pytest.raises(UnsupportedError, match="transformers refuses this LlamaConfig") as error:
        huggingface.config_for({**DIMS["llama"], "hidden_size": "24"}, "causal-lm")
    assert "\n" not in str(error.value)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    assert not huggingface.available()
    for use in (
        lambda: huggingface.build(DIMS["gpt2"], "causal-lm"),
        lambda: huggingface.config_for(DIMS["gpt2"], "causal-lm"),
        lambda: huggingface.traceable().__enter__(),
    ):
        with pytest.raises(MissingDependencyError, match=r"needs transformers.*pip install 'perfmodel\[hf\]'"):
            use()


# -- masks under fake tensors --------------------------------------------------------------


def attention_calls(
    name: str, monkeypatch: pytest.MonkeyPatch, *, traceable: bool, padded: bool
) -> list[tuple[Any, Any]]:
    """(mask, is_causal) of each attention when the module runs on fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen: list[tuple[Any, Any]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    patch = huggingface.traceable() if traceable else contextlib.nullcontext()
    with patch, FakeTensorMode():
        module = huggingface.build(DIMS[name], TASKS[name])
        ids = torch.zeros(2, 8, dtype=torch.int64)
        module(input_ids=ids, labels=ids, **({"attention_mask": torch.ones_like(ids)} if padded else {}))
    return seen


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_causal_attention_gets_no_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention_calls(name, monkeypatch, traceable=True, padded=False) == [(None, True)]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_without_the_patch_it_would_get_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [(mask, is_causal)] = attention_calls(name, monkeypatch, traceable=False, padded=False)
    assert (tuple(mask.shape), is_causal) == ((2, 1, 8, 8), False)


@pytest.mark.parametrize("name", DIMS)
def test_an_attention_mask_reaches_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [(mask, is_causal)] = attention_calls(name, monkeypatch, traceable=True, padded=True)
    assert (tuple(mask.shape), mask.dtype, is_causal) == ((2, 1, 8, 8), torch.bool, False)


@pytest.mark.parametrize("traceable", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_all_logits_are_kept_without_a_copy_in_backward(name: str, traceable: bool) -> None:
    """On symbolic sizes, as real tensors of these sizes have none."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func._opname)
            return func(*args, **(kwargs or {}))

    def step(module: Any, ids: Any) -> int:
        seen.clear()
        with Names():
            module(input_ids=ids, labels=ids).loss.backward()
        return sum(op == "slice_backward" for op in seen)

    real = step(huggingface.build(DIMS[name], TASKS[name]), torch.zeros(3, 8, dtype=torch.int64))
    fake = FakeTensorMode(shape_env=ShapeEnv())
    with fake:
        module = huggingface.build(DIMS[name], TASKS[name])
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.DYNAMIC])
    ids = fake.from_tensor(torch.zeros(3, 8, dtype=torch.int64), symbolic_context=dynamic)
    with huggingface.traceable() if traceable else contextlib.nullcontext(), fake, enable_python_dispatcher():
        symbolic = step(module, ids)
    assert symbolic == real if traceable else symbolic >= real + 2


def test_traceable_puts_back_what_it_patched() -> None:
    import transformers.masking_utils as masking
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    before, attention = masking.find_packed_sequence_indices, functions["sdpa"]

    def fail_inside() -> None:
        with huggingface.traceable():
            assert masking.find_packed_sequence_indices is not before
            assert functions["sdpa"] is not attention
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert masking.find_packed_sequence_indices is before
    assert functions["sdpa"] is attention


MISTRAL = {
    "model_type": "mistral", **SIZES, "num_key_value_heads": 2, "intermediate_size": 30, "sliding_window": 6,
}  # fmt: skip


def test_experts_are_grouped_products() -> None:
    mixtral = {**MISTRAL, "model_type": "mixtral", "num_local_experts": 4}
    assert huggingface.config_for(mixtral, "causal-lm")._experts_implementation == "grouped_mm"


@pytest.mark.parametrize(("length", "masked"), [(5, False), (6, True), (8, True)])
def test_a_window_is_a_mask_where_the_sequence_reaches_it(
    length: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfmodel.graph.capture import attention

    seen: list[tuple[bool, int | None]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["attn_mask"] is not None, attention._hints.get().window))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    module = huggingface.build(MISTRAL, "causal-lm")
    ids = torch.zeros(2, length, dtype=torch.int64)
    with huggingface.traceable():
        module(input_ids=ids, labels=ids)
    module(input_ids=ids, labels=ids)
    # Told to the captured op, and to nothing else.
    assert seen == [(masked, 6), (masked, None)]


def test_scores_that_no_kernel_here_computes_are_materialised() -> None:
    gemma = {"model_type": "gemma2", **SIZES, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 30}
    assert huggingface.config_for(gemma, "causal-lm")._attn_implementation == "eager"


def test_another_transformers_is_refused_instead_of_miscounted(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.masking_utils as masking

    monkeypatch.delattr(masking, "find_packed_sequence_indices")
    with pytest.raises(UnsupportedError, match=r"has no masking_utils\.find_packed_sequence_indices"):
        huggingface.traceable().__enter__()
