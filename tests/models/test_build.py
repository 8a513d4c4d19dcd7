"""Modules from names and dimensions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import perfmodel as pm  # noqa: E402
from perfmodel.errors import MissingDependencyError, ShapeError, UnknownNameError, UnsupportedError  # noqa: E402
from perfmodel.graph import content_hash, huggingface  # noqa: E402
from perfmodel.models import catalogue, decoder, encoder  # noqa: E402
from perfmodel.models.build import build  # noqa: E402
from perfmodel.models.catalogue import ModelEntry  # noqa: E402
from perfmodel.models.families import family_of  # noqa: E402
from perfmodel.models.inputs import batch_inputs  # noqa: E402

SMALL = {
    name: dataclasses.replace(
        catalogue.get(name).dims.with_depths({"layers": 1}),
        vocab_size=50,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,
        intermediate_size=30,
        max_position_embeddings=16,
    )
    for name in ("gpt2", "llama-3.1-8b", "bert-base-uncased")
}


def tokens(*shape: int) -> Any:
    return torch.randint(0, 50, shape)


def few_layers(entry: ModelEntry) -> dict[str, int]:
    """Each stack with its own first layers and two of the rest."""
    return {stack.path: min(stack.depth, stack.prefix + 2) for stack in entry.dims.stacks}


@pytest.mark.parametrize("name", catalogue.names())
def test_modules_have_the_parameters_of_the_formula(name: str) -> None:
    entry = catalogue.get(name)
    layers = few_layers(entry)
    module, stacks = build(entry, layers=layers)
    parameters = list(module.parameters())
    assert sum(p.numel() for p in parameters if p.requires_grad) == entry.dims.with_depths(layers).parameters()
    assert {p.device.type for p in parameters} == {"meta"}
    assert {str(p.dtype) for p in parameters} == {f"torch.{entry.dtype}"}
    assert module.training
    assert {path: len(module.get_submodule(place)) for path, place in stacks.items()} == layers


@pytest.mark.parametrize("name", catalogue.names())
def test_hugging_face_has_the_same_parameters(name: str) -> None:
    pytest.importorskip("transformers")
    entry = catalogue.get(name)
    if family_of(entry.dims).config is None:
        pytest.skip(f"a {entry.dims.family} model is captured from the reference modules only")
    layers = few_layers(entry)
    module, stacks = build(entry, implementation="huggingface", layers=layers)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trainable == entry.dims.with_depths(layers).parameters()
    assert {str(p.dtype) for p in module.parameters()} == {f"torch.{entry.dtype}"}
    assert {path: len(module.get_submodule(place)) for path, place in stacks.items()} == layers


def test_full_depth_by_default() -> None:
    module, stacks = build(catalogue.get("gpt2"))
    assert len(module.get_submodule(stacks["layers"])) == 12


def test_rotary_tables_stay_float32_and_the_default_dtype_comes_back() -> None:
    module, _ = build(catalogue.get("llama-2-7b"), layers={"layers": 1}, dtype="bfloat16")
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(UnsupportedError):
        build(catalogue.get("llama-2-7b"), layers={"layers": 0})
    assert torch.get_default_dtype() == torch.float32


def test_dimensions_are_float32_by_default_and_follow_device() -> None:
    module, _ = build(SMALL["gpt2"], device="cpu")
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.float32, "cpu")}
    with torch.device("meta"):
        module, _ = build(SMALL["gpt2"], device=None)
    assert {p.device.type for p in module.parameters()} == {"meta"}


@pytest.mark.parametrize("name", SMALL)
def test_inputs_fit_the_module(name: str) -> None:
    entry = dataclasses.replace(catalogue.get(name), dims=SMALL[name])
    module, _ = build(entry, device="cpu", dtype="float32")
    sizes = {"batch": 2, "seq": 16}
    inputs = {
        key: torch.ones([sizes[str(size)] for size in shape], dtype=getattr(torch, dtype))
        for key, (shape, dtype) in batch_inputs(entry.dims).items()
    }
    output = module(**inputs)
    assert output.loss.shape == ()
    assert output.logits.shape == (2, 16, 50)


@pytest.mark.parametrize("name", SMALL)
def test_modules_built_directly_return_the_loss(name: str) -> None:
    dims = SMALL[name]
    module = (decoder if dims.family == "decoder" else encoder).build(dims)
    ids = tokens(2, 16)
    loss = module(ids, ids)
    assert loss.shape == ()
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_a_sequence_beyond_the_learned_positions_is_refused(name: str) -> None:
    module, _ = build(SMALL[name], device="cpu")
    with pytest.raises(ShapeError, match="17 tokens is longer than the 16 learned positions; give at most 16"):
        module(tokens(1, 17), tokens(1, 17))


def test_rotary_positions_have_no_end() -> None:
    module, _ = build(SMALL["llama-3.1-8b"], device="cpu")
    assert torch.isfinite(module(tokens(1, 40), tokens(1, 40)).loss)


def test_padding_changes_no_loss_of_the_tokens_before_it() -> None:
    module, _ = build(SMALL["llama-3.1-8b"], device="cpu", dtype="float64")
    ids = tokens(2, 16)
    labels = ids.clone()
    labels[:, 10:] = -100
    mask = torch.ones_like(ids)
    mask[:, 10:] = 0
    short = module(ids[:, :10], ids[:, :10]).loss
    torch.testing.assert_close(module(ids, labels, mask).loss, short)


def test_causality() -> None:
    module, _ = build(SMALL["gpt2"], device="cpu", dtype="float64")
    module.eval()
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 50
    first, second = module(ids, ids).logits, module(changed, ids).logits
    torch.testing.assert_close(first[:, :8], second[:, :8])
    assert not torch.allclose(first[:, 8:], second[:, 8:])


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_runs_each_layer_twice_and_only_in_training(name: str) -> None:
    module, stacks = build(SMALL[name], device="cpu", gradient_checkpointing=True)
    calls = []
    module.get_submodule(stacks["layers"])[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = tokens(2, 8)
    module(ids, ids).loss.backward()
    assert len(calls) == 2
    module.eval()
    module(ids, ids).loss.backward()
    assert len(calls) == 3


def test_unknown_choices() -> None:
    with pytest.raises(UnknownNameError, match="unknown implementation 'refrence'; did you mean 'reference'"):
        build(SMALL["gpt2"], implementation="refrence")
    with pytest.raises(UnknownNameError, match=r"unknown dtype of parameters 'bf16'.*give one of float64"):
        build(SMALL["gpt2"], dtype="bf16")
    with pytest.raises(UnknownNameError, match="int64"):
        build(SMALL["gpt2"], dtype="int64")


def test_families_are_not_mixed_up() -> None:
    with pytest.raises(UnsupportedError, match="'encoder' don't make a decoder"):
        decoder.build(SMALL["bert-base-uncased"])
    with pytest.raises(UnsupportedError, match="'decoder' don't make an encoder"):
        encoder.build(SMALL["gpt2"])


def test_hugging_face_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"needs transformers.*pip install 'perfmodel\[hf\]'"):
        build(SMALL["gpt2"], implementation="huggingface")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"head_dim": 8}, "Hugging Face's gpt2 has head_dim=6, these dimensions have 8"),
        ("gpt2", {"projection": "linear"}, "gpt2 has projection='conv1d'"),
        ("gpt2", {"pad_token_id": 0}, "gpt2 has pad_token_id=None"),
        ("llama-3.1-8b", {"norm": "layernorm"}, "llama has norm='rmsnorm'"),
        ("llama-3.1-8b", {"gated_mlp": False}, "llama has gated_mlp=True"),
        ("llama-3.1-8b", {"resid_pdrop": 0.1}, "llama has resid_pdrop=0, these dimensions have 0.1"),
        ("bert-base-uncased", {"num_key_value_heads": 2}, "bert has num_key_value_heads=4"),
        ("bert-base-uncased", {"type_vocab_size": 0}, "bert has type_vocab_size=1"),
        ("bert-base-uncased", {"embd_pdrop": 0.3}, "bert has resid_pdrop=0.3"),
    ],
)
def test_what_hugging_face_has_no_class_for_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    dims = dataclasses.replace(SMALL[name], **changes)
    with pytest.raises(UnsupportedError, match=message):
        build(dims, implementation="huggingface")
    build(dims)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-base-uncased"])
def test_a_hugging_face_model_given_as_a_module_is_the_one_captured_by_name(name: str) -> None:
    pytest.importorskip("transformers")
    entry = catalogue.get(name)
    module, _ = build(entry, implementation="huggingface", layers={"layers": 2})
    tokens = torch.zeros(3, 32, dtype=torch.long)
    given, sizes = dict.fromkeys(batch_inputs(entry.dims), tokens), {0: "batch", 1: "seq"}
    as_module = pm.capture(module, kwargs=given, optimizer="adamw", dynamic_shapes=dict.fromkeys(given, sizes))
    by_name = pm.capture(
        name, batch=3, seq_len=32, layers=2, optimizer="adamw", implementation="huggingface", cache=False
    )
    # By name it's also known how many positions there are.
    assert set(as_module.guards) <= set(by_name.guards)
    assert content_hash(as_module) == content_hash(dataclasses.replace(by_name, guards=as_module.guards))
