"""What a capture records, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError, ShapeError, UnknownNameError, UnsupportedError
from tests.graph.modules import TOKENS, Gpt, Mlp, ids


def names(graph: pm.Graph, phase: str) -> list[str]:
    return [op.name for op, times in graph.ops() for _ in range(times) if op.phase == phase]


def test_phases_in_order_and_module_paths() -> None:
    graph = pm.capture(Gpt(), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
    phases = [block.ops[0].phase for block in graph.blocks]
    order = {phase: position for position, phase in enumerate(("forward", "backward", "optimizer", "release"))}
    assert sorted(phases, key=order.__getitem__) == phases
    assert set(phases) == set(order)
    modules = {op.module for op, _ in graph.ops() if op.name in ("aten.mm", "aten.addmm")}
    assert {"blocks.*.qkv", "blocks.*.up", "head"} <= modules
    assert "" not in modules


def test_the_users_module_is_left_as_it_was() -> None:
    model = Gpt()
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    pm.capture(model, (ids(), ids()), optimizer="adamw")
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert model.head.weight is model.embed.weight
    assert model(ids(), ids()).isfinite()


def test_restored_after_a_failure_too() -> None:
    model = Mlp()
    weights = list(model.parameters())
    with pytest.raises(CaptureError, match=r"layers\.0\.0 during forward.*\[2, 7\]"):
        pm.capture(model, (torch.randn(2, 7), torch.randn(2, 7)), optimizer="adamw")
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))


def test_what_forward_caches_in_the_module_goes_again() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.calls = 0
            self.positions: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.positions is None:
                self.positions = torch.arange(x.shape[1], dtype=x.dtype)
                self.register_buffer("late", torch.ones(4))
            return (self.linear(x) + self.positions).mean()

    model = Caching()
    pm.capture(model, (torch.randn(2, 4),), optimizer="sgd")
    assert model.positions is None
    assert model.calls == 0
    assert not hasattr(model, "late")
    assert model(torch.randn(2, 4)).isfinite()


def test_parallel_wrappers_and_autocast_of_another_device_are_refused() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return self.linear(x).mean()

    if not torch.cuda.is_available():
        with pytest.raises(CaptureError, match="[Dd]isabling autocast"):
            pm.capture(Cast(), (torch.randn(2, 4),), optimizer=None, dispatch="cpu")
    # Without a process group, so that only its type speaks.
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(CaptureError, match=r"model\.module"):
        pm.capture(wrapped, (torch.randn(2, 4),), optimizer=None)


def test_checkpointing_is_seen_as_recompute() -> None:
    plain = pm.capture(Gpt(), (ids(), ids()), optimizer=None)
    checkpointed = pm.capture(Gpt(checkpointed=True), (ids(), ids()), optimizer=None)
    assert not names(plain, "recompute")
    assert names(checkpointed, "recompute").count("perfmodel.attention") == 5
    assert checkpointed.flops(recompute=False) == plain.flops(recompute=False)
    assert checkpointed.flops() > plain.flops()
    assert pm.memory_profile(checkpointed).peak < pm.memory_profile(plain).peak


def test_attention_is_one_op_under_every_import_style() -> None:
    graph = pm.capture(Gpt(dropout=0.1), (ids(), ids()), optimizer=None)
    assert names(graph, "forward").count("perfmodel.attention") == 5
    encoder = nn.TransformerEncoderLayer(32, 4, batch_first=True)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).mean()

    assert (
        names(pm.capture(Encoder(), (torch.randn(2, 8, 32),), optimizer=None), "forward").count("perfmodel.attention")
        == 1
    )


def test_frozen_parameters_get_no_gradient_work() -> None:
    model = Mlp(depth=3)
    full = pm.capture(model, (torch.randn(2, 16), torch.randn(2, 16)), optimizer="adamw")
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    frozen = pm.capture(model, (torch.randn(2, 16), torch.randn(2, 16)), optimizer="adamw")
    assert frozen.parameters() == full.parameters()
    assert frozen.parameters(trainable_only=True) == full.parameters() * 2 // 3
    assert frozen.flops(phase="backward") < full.flops(phase="backward")


def test_optimizers_by_name_and_by_factory() -> None:
    inputs = (torch.randn(2, 16), torch.randn(2, 16))
    states = {}
    for optimizer in ("adamw", "adam", "sgd", "sgd-momentum", None):
        graph = pm.capture(Mlp(), inputs, optimizer=optimizer)
        profile = pm.memory_profile(graph)
        states[optimizer] = sum(s.nbytes * s.count for s in graph.storages if s.role == "optimizer")
        assert profile.at_peak["parameter"] == graph.parameters() * 4
    assert states["sgd"] == states[None] == 0
    weights = graph.parameters() * 4
    assert states["sgd-momentum"] == weights
    assert 2 * weights <= states["adamw"] == states["adam"] <= 2 * weights + 4 * 10
    by_factory = pm.capture(Mlp(), inputs, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    assert names(by_factory, "optimizer") == names(pm.capture(Mlp(), inputs, optimizer="adamw"), "optimizer")


def test_made_up_answers_are_counted() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x).pow(2).mean()
            return y * 2 if y.item() > 3 else y

    graph = pm.capture(Clipped(), (torch.randn(2, 4),), optimizer=None)
    assert graph.answers == {"(root)": 1}


def test_fx_graph_is_real_and_annotated() -> None:
    graph = pm.capture(Gpt(), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
    fx = graph.fx
    assert isinstance(fx, torch.fx.Graph)
    fx.lint()
    phases = {node.meta["phase"] for node in fx.nodes if node.op == "call_function"}
    assert {"forward", "backward", "optimizer"} <= phases
    products = [node for node in fx.nodes if node.target == torch.ops.aten.mm.default]
    assert products and all(node.meta["module"] and len(node.meta["shape"]) == 2 for node in products)
    assert "aten.mm.default" in str(fx)
    consumers = [node for node in products if any(user.op == "call_function" for user in node.users)]
    assert len(consumers) == len(products)
    with pytest.raises(UnsupportedError, match="cache=False"):
        _ = pm.Graph(name="loaded", blocks=()).fx


def test_from_fx_takes_the_three_kinds_of_graphs() -> None:
    model, x = Mlp(), torch.randn(2, 16)
    traced = torch.fx.symbolic_trace(model)
    exported = torch.export.export(model, (x, x)).module()
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        made = make_fx(model)(x, x)
    wanted = pm.capture(model, (x, x), optimizer=None).flops(phase="forward")
    for graph_module in (traced, exported, made):
        graph = pm.from_fx(graph_module, (x, x))
        assert graph.flops(phase="forward") == wanted
    assert pm.from_fx(traced, (x, x)).flops(phase="backward") == pm.capture(model, (x, x), optimizer=None).flops(
        phase="backward"
    )
    with pytest.raises(CaptureError, match="GraphModule"):
        pm.from_fx(model, (x, x))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.linear(x), "not a scalar"),
        (lambda self, x: None, "returned NoneType"),
        (lambda self, x: x.mean(), "no trainable parameter"),
        (lambda self, x: {"logits": self.linear(x)}, "returned dict"),
    ],
)
def test_a_module_without_a_loss_is_refused(forward: object, message: str) -> None:
    model_type = type("Model", (nn.Module,), {"forward": forward})
    model = model_type()
    model.linear = nn.Linear(4, 4)
    with pytest.raises(CaptureError, match=message) as error:
        pm.capture(model, (torch.randn(2, 4),), optimizer="adamw")
    assert "\n" not in str(error.value)


def test_data_dependent_shapes_are_refused_with_the_cure() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)[x > 0].mean()

    with pytest.raises(CaptureError, match="depends on the data"):
        pm.capture(Picks(), (torch.randn(2, 4),), optimizer=None)


def test_bad_arguments() -> None:
    x = torch.randn(2, 16)
    with pytest.raises(UnknownNameError, match="did you mean 'adam' or 'adamw'"):
        pm.capture(Mlp(), (x, x), optimizer="adamv")
    with pytest.raises(CaptureError, match="must be a factory"):
        pm.capture(Mlp(), (x, x), optimizer=torch.optim.SGD(Mlp().parameters(), lr=1.0))
    with pytest.raises(CaptureError, match="not a torch.optim.Optimizer"):
        pm.capture(Mlp(), (x, x), optimizer=lambda parameters: 3)
    with pytest.raises(CaptureError, match="no such dimension"):
        pm.capture(Mlp(), (x, x), optimizer=None, dynamic_shapes=({5: "batch"},))
    with pytest.raises(CaptureError, match="two sizes"):
        pm.capture(Mlp(), (x, x), optimizer=None, dynamic_shapes=({0: "n", 1: "n"},))
    with pytest.raises(UnsupportedError, match="batch"):
        pm.capture(Mlp(), (x, x), optimizer=None, batch=3)
    with pytest.raises(CaptureError, match="args is a tuple"):
        pm.capture(Mlp(), x, optimizer=None)
    with pytest.raises(CaptureError, match=r"takes an nn\.Module"):
        pm.capture(lambda x: x, (x,), optimizer=None)


def test_guards_are_kept_and_enforced() -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 100:
                raise ValueError("too long")
            return self.linear(x).mean()

    graph = pm.capture(Short(), (torch.randn(8, 4),), optimizer=None, dynamic_shapes=({0: "n"},))
    assert any("100" in guard for guard in graph.guards)
    assert graph.at(n=100).bindings == {"n": 100}
    with pytest.raises(ShapeError, match="captured for"):
        graph.at(n=101)
    with pytest.raises(UnknownNameError, match="its sizes are n"):
        graph.at(batch=2)
    for bad in (0, -1, 2.5, True, float("nan")):
        with pytest.raises(ShapeError, match="positive integer"):
            graph.at(n=bad)
