"""``torch.autocast`` in a capture, against a real run on a CPU and the accelerator's published lists."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import perfmodel as pm
from perfmodel.errors import CaptureError, UnknownNameError
from perfmodel.graph.capture import capture_module
from perfmodel.graph.capture.autocast import POLICIES, autocast_as
from tests.graph.modules import TOKENS, Gpt, ids


class Wrapped(nn.Module):
    """Another module in a region of its own."""

    def __init__(self, module: nn.Module, device: str, **settings: Any) -> None:
        super().__init__()
        self.module, self.device, self.settings = module, device, settings

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, **self.settings):
            return self.module(*args)


class Ops(TorchDispatchMode):
    """Counts real ops with the types of their operands and results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[Any] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten":
            self.seen[f"aten.{func._opname}", _types((args, kwargs)), _types(result)] += 1
        return result


def _types(values: Any) -> tuple[str, ...]:
    leaves = torch.utils._pytree.tree_leaves(values)
    return tuple(str(leaf.dtype).removeprefix("torch.") for leaf in leaves if isinstance(leaf, torch.Tensor))


def captured(graph: pm.Graph) -> collections.Counter[Any]:
    seen: collections.Counter[Any] = collections.Counter()
    for op, times in graph.ops():
        if op.name != "perfmodel.release":
            seen[op.name, tuple(t.dtype for t in op.inputs.values()), tuple(t.dtype for t in op.outputs)] += times
    return seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_on_a_cpu_ops_and_types_are_those_of_a_real_run(dtype: str, checkpointed: bool) -> None:
    model, tokens = Gpt(depth=3, checkpointed=checkpointed), ids()
    real = Ops()
    with real:
        with torch.autocast("cpu", dtype=getattr(torch, dtype)):
            loss = model(tokens, tokens)
        loss.backward()
    graph = capture_module(model, (tokens, tokens), optimizer=None, dispatch="cpu", autocast=dtype)
    assert captured(graph) == real.seen


def test_the_argument_is_a_region_around_forward() -> None:
    model = Gpt(depth=3)
    ours = capture_module(model, (ids(), ids()), optimizer="adamw", autocast="bfloat16")
    for device in ("cuda", "cpu"):
        inside = Wrapped(model, device, dtype=torch.bfloat16)
        theirs = capture_module(inside, (ids(), ids()), optimizer="adamw")
        assert captured(theirs) == captured(ours)
    # CUDA's own default.
    half = capture_module(Wrapped(model, "cuda"), (ids(), ids()), optimizer=None)
    assert half.flops(dtype="float16") == half.flops() > 0


def test_products_run_in_the_lower_type_and_weights_stay() -> None:
    plain = capture_module(Gpt(depth=3), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
    mixed = capture_module(Gpt(depth=3), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS, autocast="bfloat16")
    assert mixed.flops() == mixed.flops(dtype="bfloat16") == plain.flops()
    assert not mixed.coverage.missing
    assert mixed.meta["autocast"] == "bfloat16"
    assert {s.dtype for s in mixed.storages if s.role == "parameter"} == {"float32"}
    gradients, theirs = ([s.nbytes for s in g.storages if s.role == "gradient"] for g in (mixed, plain))
    assert sorted(gradients) == sorted(theirs)
    losses = [op for op, _ in mixed.ops() if op.name in ("aten._log_softmax", "aten.native_layer_norm")]
    assert losses
    assert {op.inputs[next(iter(op.inputs))].dtype for op in losses} == {"float32"}


class Twice(nn.Module):
    """Uses a weight twice; optionally recomputes each use."""

    def __init__(self, *, checkpointed: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, bias=False)
        self.last = nn.Linear(8, 8, bias=False)
        self.linear.requires_grad_(not frozen)
        self.checkpointed = checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = checkpoint(self.linear, x, use_reentrant=False) if self.checkpointed else self.linear(x)
        return self.last(x).sum()


def casts(graph: pm.Graph, phase: str) -> int:
    """How often the weight is cast."""
    return sum(
        times
        for op, times in graph.ops()
        if op.name == "aten._to_copy"
        and op.phase == phase
        and graph.storages[op.inputs["self"].storage].name == "linear.weight"
    )


def test_a_weight_is_cast_once_in_a_region_if_it_is_trained() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    once = capture_module(Twice(), (x,), optimizer=None, autocast="bfloat16")
    assert casts(once, "forward") == 1
    # PyTorch keeps the cast of a leaf that needs a gradient only.
    frozen = capture_module(Twice(frozen=True), (x,), optimizer=None, autocast="bfloat16")
    assert casts(frozen, "forward") == 2
    # The gradients of both uses are summed in the lower type and cast once.
    gradient = next(i for i, s in enumerate(once.storages) if s.name == "linear.weight.grad")
    made = [op for op, _ in once.ops() if any(t.storage == gradient for t in op.outputs)]
    assert [(op.name, op.phase) for op in made if op.name == "aten._to_copy"] == [("aten._to_copy", "backward")]


def test_a_checkpoint_casts_again_in_its_recompute() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    graph = capture_module(Twice(checkpointed=True), (x,), optimizer=None, autocast="bfloat16")
    assert casts(graph, "forward") == 1
    assert casts(graph, "recompute") == 2
    assert graph.flops() == graph.flops(dtype="bfloat16")


def test_each_micro_step_casts_the_weights() -> None:
    graph = capture_module(Twice(), (torch.randn(4, 8),), optimizer=None, autocast="bfloat16", accumulate=5)
    assert casts(graph, "forward") == 5


class Excepted(nn.Module):
    """Leaves autocast for a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert torch.is_autocast_enabled()
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        y = self.a(x)
        with torch.autocast("cuda", enabled=False):
            return self.b(y.float()).sum()


def test_a_region_within_may_switch_it_off() -> None:
    graph = capture_module(Excepted(), (torch.randn(4, 8),), optimizer=None, autocast="bfloat16")
    products = [op for op, _ in graph.ops() if op.name == "aten.addmm"]
    assert [op.outputs[0].dtype for op in products] == ["bfloat16", "float32"]


def test_pytorch_is_left_as_it_was() -> None:
    before = (torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype, torch.clear_autocast_cache)
    capture_module(Gpt(depth=2), (ids(), ids()), optimizer=None, autocast="bfloat16")
    after = (torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype, torch.clear_autocast_cache)
    assert before == after
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        # Not on the CPU's list of ops in float32, but on the accelerator's.
        assert (x.bfloat16().exp()).dtype == torch.bfloat16


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="bfloat16"):
        capture_module(Gpt(depth=2), (ids(), ids()), optimizer=None, autocast="bf16")


# -- the accelerator's lists -------------------------------------------------------

#: cuDNN's own entry points, which no module calls.
_CUDNN = {"cudnn_convolution", "cudnn_convolution_transpose"}


def test_the_lists_hold_every_op_that_pytorch_registers_for_cuda() -> None:
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    assert {name.removeprefix("aten::") for name in registered} - _CUDNN == set(POLICIES)


def test_the_lists_are_those_of_pytorchs_header() -> None:
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    if not header.exists():
        pytest.skip("this PyTorch comes without its C++ headers")
    text = header.read_text()
    macros = {
        "LOWER_PRECISION_FP": "lower",
        "FP32": "float32",
        "FP32_SET_OPT_DTYPE": "float32-result",
        "PROMOTE": "widest",
    }
    for macro, policy in macros.items():
        body = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)+.*\n)", text)
        assert body is not None
        pairs = re.findall(r"_\((\w+)(?:, (\w+))?\)", body.group(1))
        listed = {".".join(filter(None, pair)) for pair in pairs}
        ours = {name for name, its in POLICIES.items() if its == policy and not name.startswith("norm.")}
        assert ours == listed, macro


x32, x16 = torch.rand(2, 4, 4) + 1, (torch.rand(2, 4, 4) + 1).bfloat16()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # "Ops that can autocast to float16"
        (lambda: x32 @ x32, "bfloat16"),
        (lambda: torch.einsum("bij,bkj->bik", x32, x32), "bfloat16"),
        (lambda: F.conv1d(x32, x32), "bfloat16"),
        (lambda: torch.baddbmm(x32, x16, x32), "bfloat16"),
        (lambda: F.scaled_dot_product_attention(x32, x32, x16), "bfloat16"),
        # "Ops that can autocast to float32"
        (lambda: x16.exp(), "float32"),
        (lambda: x16.pow(2), "float32"),
        (lambda: F.layer_norm(x16, (4,)), "float32"),
        (lambda: F.cross_entropy(x16.flatten(0, 1), torch.zeros(8, dtype=torch.long)), "float32"),
        (lambda: F.mse_loss(x16, x16), "float32"),
        (lambda: x16.softmax(-1), "float32"),
        (lambda: x16.softmax(-1, dtype=torch.bfloat16), "bfloat16"),
        (lambda: x16.sum(), "float32"),
        (lambda: x16.sum((0, 1)), "float32"),
        (lambda: x16.cumsum(0), "float32"),
        (lambda: x16.norm(), "float32"),
        (lambda: x16.norm(2, -1), "float32"),
        (lambda: torch.linalg.vector_norm(x16), "float32"),
        # "Ops that promote to the widest input type"
        (lambda: torch.addcmul(x16, x16, x32), "float32"),
        (lambda: torch.addcmul(x16, x16, x16), "bfloat16"),
        (lambda: torch.dot(x16[0, 0], x32[0, 0]), "float32"),
        # float64 takes no part, and unlisted ops run in their inputs' type.
        (lambda: x32.double() @ x32.double(), "float64"),
        (lambda: x16.relu(), "bfloat16"),
        (lambda: x16.mean(), "bfloat16"),
        (lambda: torch.cat([x16, x32]), "float32"),
        (lambda: F.gelu(x32), "float32"),
    ],
)
def test_types_follow_the_documented_lists(call: Any, expected: str) -> None:
    with autocast_as("neutral"), torch.autocast("cuda", dtype=torch.bfloat16):
        assert str(call().dtype) == f"torch.{expected}"


def test_a_loss_that_overflows_is_refused_as_pytorch_does() -> None:
    with (
        autocast_as("neutral"),
        torch.autocast("cuda", dtype=torch.bfloat16),
        pytest.raises(CaptureError, match="with_logits"),
    ):
        F.binary_cross_entropy(torch.rand(3), torch.rand(3))
