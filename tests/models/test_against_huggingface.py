"""The reference modules against Hugging Face's, on real tensors: same numbers, same ops."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from perfmodel.models.dims import TransformerDims  # noqa: E402
from tests.models.pairs import BERT, CASES, DROPOUT, GPT2, LLAMA, OTHER_OPS, batch, our_name, pair  # noqa: E402


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[TransformerDims, bool]:
    return CASES[request.param]


# -- numbers -------------------------------------------------------------------------------


def gradients(module: Any, rename: Callable[[str], str] = str) -> dict[str, Any]:
    return {rename(name): parameter.grad for name, parameter in module.named_parameters()}


def test_same_loss_and_gradients(case: tuple[TransformerDims, bool]) -> None:
    dims, padded = case
    # PyTorch has no grouped product of float64.
    single = dims.moe is not None
    ours, theirs = pair(dims, "float32" if single else "float64")
    inputs = batch(dims, padded=padded)
    mine, other = ours(**inputs), theirs(**inputs)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-6 if single else 1e-12, atol=0)
    torch.testing.assert_close(mine.logits, other.logits, rtol=1e-4 if single else 1e-9, atol=1e-5 if single else 1e-10)
    mine.loss.backward()
    other.loss.backward()
    found, expected = gradients(ours), gradients(theirs, lambda name: our_name(dims, name))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0 or name == "embeddings.types.weight"
        torch.testing.assert_close(
            found[name],
            gradient,
            rtol=1e-3 if single else 1e-7,
            atol=1e-5 if single else 1e-10,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize(
    "dims",
    [
        dataclasses.replace(GPT2, **DROPOUT),
        dataclasses.replace(LLAMA, attn_pdrop=0.2),
        dataclasses.replace(BERT, embd_pdrop=0.3, attn_pdrop=0.2, resid_pdrop=0.3),
    ],
    ids=["gpt2", "llama", "bert"],
)
def test_dropout_draws_the_same_numbers_in_the_same_order(dims: TransformerDims) -> None:
    ours, theirs = pair(dims, "float64")
    inputs = batch(dims, padded=False)
    losses = []
    for module in (ours, theirs, ours.eval(), theirs.eval()):
        torch.manual_seed(7)
        losses.append(module(**inputs).loss.item())
    # eval() came before the loop ran: all four are without dropout.
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)
    trained = []
    for module in (ours.train(), theirs.train()):
        torch.manual_seed(7)
        trained.append(module(**inputs).loss.item())
    assert trained[0] == pytest.approx(trained[1], rel=1e-12)
    assert abs(trained[0] - losses[0]) > 1e-6


@pytest.mark.parametrize("dims", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
def test_bfloat16_gives_the_same_bits(dims: TransformerDims) -> None:
    ours, theirs = pair(dims, "bfloat16")
    inputs = batch(dims, padded=dims is BERT)
    assert torch.equal(ours(**inputs).loss, theirs(**inputs).loss)


@pytest.mark.parametrize("dims", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
def test_checkpointing_changes_no_gradient(dims: TransformerDims) -> None:
    inputs = batch(dims, padded=False)
    results = []
    for checkpointing in (False, True):
        ours, _ = pair(dims, "float64", gradient_checkpointing=checkpointing)
        ours(**inputs).loss.backward()
        results.append(gradients(ours))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient)


# -- ops -----------------------------------------------------------------------------------

_VIEWS = (
    "view", "_unsafe_view", "t", "transpose", "expand", "slice", "unsqueeze", "split", "alias", "detach", "select",
    "reshape", "squeeze", "permute", "as_strided", "empty", "_to_copy", "lift_fresh",
)  # fmt: skip
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Ops(TorchDispatchMode):
    """Counts ops by name and by the sizes and types of what they make; a view's shape may differ."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[tuple[Any, ...]] = Counter()
        self.product_flops: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._opname
        outputs = [out for out in torch.utils._pytree.tree_leaves(result) if isinstance(out, torch.Tensor)]
        self.ops[(name, *((out.numel(), str(out.dtype)) for out in outputs))] += 1
        if name in _PRODUCTS:
            left = args[1] if name in ("addmm", "baddbmm") else args[0]
            self.product_flops[name, 2 * result.numel() * left.shape[-1]] += 1
        return result

    def floating(self) -> Counter[tuple[Any, ...]]:
        """Without views and without index arithmetic; casts count where they make floats."""
        return Counter(
            {
                key: count
                for key, count in self.ops.items()
                if any("float" in dtype for _, dtype in key[1:]) and (key[0] not in _VIEWS or key[0] == "_to_copy")
            }
        )


def step_of(module: Any, inputs: dict[str, Any]) -> Ops:
    ops = Ops()
    with ops:
        module(**inputs).loss.backward()
    return ops


@pytest.mark.parametrize(
    ("dtype", "checkpointing"), [("float32", False), ("bfloat16", True)], ids=["float32", "bfloat16-checkpointed"]
)
def test_same_ops(case: tuple[TransformerDims, bool], dtype: str, checkpointing: bool) -> None:
    dims, padded = case
    ours, theirs = pair(dims, dtype, gradient_checkpointing=checkpointing)
    inputs = batch(dims, padded=padded)
    mine, other = step_of(ours, inputs), step_of(theirs, inputs)
    assert sum(mine.product_flops.values()) > 0
    assert mine.product_flops == other.product_flops
    if dims not in OTHER_OPS:
        assert mine.floating() == other.floating()


def test_same_ops_with_dropout() -> None:
    for dims in (dataclasses.replace(GPT2, **DROPOUT), dataclasses.replace(BERT, **{**DROPOUT, "embd_pdrop": 0.3})):
        ours, theirs = pair(dims)
        inputs = batch(dims, padded=dims.family == "encoder")
        mine, other = step_of(ours, inputs).floating(), step_of(theirs, inputs).floating()
        assert any(key[0].startswith("bernoulli") for key in mine)
        assert mine == other
