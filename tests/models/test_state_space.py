"""Mamba and Mamba-2 against Hugging Face's, which run the scan in plain PyTorch."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfmodel.errors import UnknownNameError, UnsupportedError  # noqa: E402
from perfmodel.models.build import build  # noqa: E402
from perfmodel.models.config_state_space import from_huggingface  # noqa: E402
from perfmodel.models.dims_state_space import StateSpaceDims  # noqa: E402

MAMBA = StateSpaceDims(scan="selective", vocab_size=61, hidden_size=24, num_hidden_layers=2, state_size=5)
MAMBA2 = StateSpaceDims(
    scan="ssd", vocab_size=61, hidden_size=24, num_hidden_layers=2, state_size=6, head_dim=8, n_groups=2, chunk_size=4
)


def hugging_face(dims: StateSpaceDims) -> Any:
    """The model of the same dimensions in transformers, which isn't among those that are captured by name."""
    import transformers.models.mamba.modeling_mamba as mamba
    import transformers.models.mamba2.modeling_mamba2 as mamba2

    shared = {
        name: getattr(dims, name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "state_size", "expand", "tie_word_embeddings")
    }
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    if dims.scan == "selective":
        return mamba.MambaForCausalLM(mamba.MambaConfig(**shared, **special, use_cache=False))
    own = {"head_dim": dims.head_dim, "num_heads": dims.num_heads, "n_groups": dims.n_groups}
    config = mamba2.Mamba2Config(**shared, **special, **own, chunk_size=dims.chunk_size, use_cache=False)
    return mamba2.Mamba2ForCausalLM(config)


def our_name(name: str) -> str:
    for theirs, ours in ((r"^backbone\.", ""), (r"^embeddings\.", "embed_tokens."), (r"^norm_f\.", "norm.")):
        name = re.sub(theirs, ours, name)
    return name


@pytest.mark.parametrize("dims", [MAMBA, MAMBA2], ids=["mamba", "mamba2"])
@pytest.mark.parametrize("length", [4, 11])
def test_same_loss_and_gradients_as_hugging_face(dims: StateSpaceDims, length: int) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = hugging_face(dims).train()
    ours, _ = build(dims, device="cpu")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not name.endswith("A_log"):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    ours.load_state_dict({our_name(name): value for name, value in theirs.state_dict().items()}, strict=True)
    ids = torch.randint(0, 61, (2, length))
    mine, other = ours(ids, ids), theirs(input_ids=ids, labels=ids)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(mine.logits, other.logits, rtol=1e-4, atol=1e-5)
    mine.loss.backward()
    other.loss.backward()
    expected = {our_name(name): parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("dims", [MAMBA, MAMBA2], ids=["mamba", "mamba2"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"use_bias": True, "use_conv_bias": False}])
def test_the_formula_counts_the_module(dims: StateSpaceDims, changes: dict[str, Any]) -> None:
    dims = dataclasses.replace(dims, **changes)
    module, _ = build(dims)
    assert sum(parameter.numel() for parameter in module.parameters()) == dims.parameters()


@pytest.mark.parametrize("dims", [MAMBA, MAMBA2], ids=["mamba", "mamba2"])
def test_checkpointing_changes_no_gradient(dims: StateSpaceDims) -> None:
    ids = torch.arange(18).view(2, 9)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        module, _ = build(dims, device="cpu", gradient_checkpointing=checkpointing)
        module(ids, ids).loss.backward()
        results.append([parameter.grad for parameter in module.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_dims_from_a_config_of_hugging_face() -> None:
    config = {"model_type": "mamba2", "hidden_size": 64, "num_heads": 16, "head_dim": 8, "vocab_size": 30}
    dims = from_huggingface(config)
    assert (dims.scan, dims.num_heads, dims.n_groups, dims.tie_word_embeddings) == ("ssd", 16, 8, False)
    assert from_huggingface({"model_type": "mamba", "hidden_size": 64}).time_step_rank == 4
    with pytest.raises(UnsupportedError, match="time_step_rank=7"):
        from_huggingface({"model_type": "mamba", "hidden_size": 64, "time_step_rank": 7})


def test_values_that_make_no_model_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown scan 'sds'; did you mean 'ssd'"):
        dataclasses.replace(MAMBA, scan="sds")
    with pytest.raises(UnsupportedError, match="48 channels don't make heads of 7"):
        dataclasses.replace(MAMBA2, head_dim=7)
    with pytest.raises(UnsupportedError, match="captured from the reference modules only"):
        build(MAMBA, implementation="huggingface")
