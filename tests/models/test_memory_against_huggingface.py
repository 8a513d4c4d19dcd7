"""The reference modules against Hugging Face's, on real tensors: same memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from perfmodel.models import decoder  # noqa: E402
from perfmodel.models.dims import TransformerDims  # noqa: E402
from tests.models.pairs import BATCH, CASES, GPT2, OTHER_OPS, SEQ, batch, pair  # noqa: E402


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[TransformerDims, bool]:
    return CASES[request.param]


def saved_bytes(module: Any, inputs: dict[str, Any]) -> tuple[int, Counter[int]]:
    """Bytes that autograd keeps for backward, by storage, and the sizes of the storages."""
    resident = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(**inputs)
    sizes = Counter(storage.nbytes() for storage in kept.values())
    assert output.loss.requires_grad
    return sum(size * count for size, count in sizes.items()), sizes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_memory_saved_for_backward(case: tuple[TransformerDims, bool], dtype: str) -> None:
    dims, padded = case
    ours, theirs = pair(dims, dtype)
    inputs = batch(dims, padded=padded)
    (mine, my_sizes), (other, other_sizes) = saved_bytes(ours, inputs), saved_bytes(theirs, inputs)
    assert mine == pytest.approx(other, rel=0.01)
    if dims in OTHER_OPS:
        return
    float_sizes = BATCH * SEQ * 8 + 1  # above index tensors
    assert {s: n for s, n in my_sizes.items() if s > float_sizes} == {
        s: n for s, n in other_sizes.items() if s > float_sizes
    }


class Peak(TorchDispatchMode):
    """Follows the bytes of storages that ops make, until they die."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id_of(leaf) for leaf in leaves((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for leaf in leaves(result):
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key in before or key in self._known:
                continue
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


def leaves(tree: Any) -> Iterator[Any]:
    return (leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def id_of(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_same_peak_memory(case: tuple[TransformerDims, bool], checkpointing: bool) -> None:
    dims, padded = case
    inputs = batch(dims, padded=padded)
    peaks = []
    for module in pair(dims, gradient_checkpointing=checkpointing):
        with Peak() as peak:
            output = module(**inputs)
            output.loss.backward()
        peaks.append(peak.peak)
        # What backward leaves: gradients, the loss and the logits.
        left = sum(p.numel() for p in module.parameters()) + output.logits.numel()
        assert 4 * left < peak.now < peak.peak
        del output
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)


def test_the_logits_of_a_kept_output_count() -> None:
    peaks = []
    for return_logits in (False, True):
        module = decoder.build(GPT2, return_logits=return_logits)
        with Peak() as peak:
            output = module(**batch(GPT2, padded=False))
            (output.loss if return_logits else output).backward()
        peaks.append(peak.peak)
    assert peaks[1] > 1.01 * peaks[0]
