"""Adapters as plain modules: what they add, what they compute, what a step with them holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.graph.capture import capture_module
from perfmodel.models import adapters, catalogue
from perfmodel.models.build import build
from tests.graph.modules import ConvNet, Gpt, ids

SPECS = {
    "lora": adapters.LoRA(rank=4),
    "lora on all": adapters.LoRA(rank=4, targets=("all-linear",), dropout=0.1),
    "adalora": adapters.AdaLoRA(rank=4),
    "qlora": adapters.QLoRA(rank=4),
    "prefix": adapters.PrefixTuning(virtual_tokens=3),
    "prompt": adapters.PromptTuning(virtual_tokens=3),
    "bottleneck": adapters.BottleneckAdapter(size=8),
}


def model(name: str = "llama-3.1-8b", *, layers: int = 3, device: str = "meta", dtype: str = "float32") -> nn.Module:
    """A model of the catalogue, narrow."""
    dims = catalogue.get(name).dims
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 192, "vocab_size": 500}
    heads = {"num_key_value_heads": 2 if name.startswith("llama") else 4}
    small = type(dims).from_dict({**dims.to_dict(), **sizes, **heads, "num_hidden_layers": layers})
    return build(small, implementation="reference", device=device, dtype=dtype)[0]


def inputs(name: str = "llama-3.1-8b", *, seq: int = 20) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 500, (2, seq))
    mask = {"attention_mask": torch.ones_like(tokens)} if name.startswith("bert") else {}
    return {"input_ids": tokens, "labels": tokens, **mask}


FAMILIES = [
    *(("llama-3.1-8b", kind) for kind in SPECS),
    *(("gpt2", kind) for kind in ("lora", "prefix", "prompt", "bottleneck")),
    *(("bert-base-uncased", kind) for kind in ("adalora", "qlora", "prefix", "prompt")),
]


@pytest.mark.parametrize(("name", "kind"), FAMILIES)
def test_every_method_trains_its_own_parameters_alone(name: str, kind: str) -> None:
    module = adapters.apply(model(name, layers=2), SPECS[kind])
    graph = capture_module(module, kwargs=inputs(name), optimizer="sgd")
    assert not graph.coverage.missing
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert 0 < graph.parameters(trainable_only=True) == trained < 0.2 * graph.parameters()
    gradients = sum(int(s.nbytes) for s in graph.storages if s.role == "gradient")
    assert gradients == 4 * trained


REAL = [each for each in FAMILIES if each[1] != "qlora"]


@pytest.mark.parametrize(("name", "kind"), REAL)
def test_a_real_step_trains_the_adapter_alone(name: str, kind: str) -> None:
    torch.manual_seed(0)
    module = adapters.apply(model(name, layers=2, device="cpu"), SPECS[kind])
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    losses = []
    batch = inputs(name)
    for _ in range(2):
        loss = module(**batch)
        loss = loss if isinstance(loss, torch.Tensor) else loss.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = {key for key, value in module.named_parameters() if not torch.equal(value, before[key])}
    assert changed
    assert changed <= {key for key, value in module.named_parameters() if value.requires_grad}
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("kind", ["lora", "adalora", "bottleneck"])
def test_an_adapter_begins_as_nothing(kind: str) -> None:
    torch.manual_seed(0)
    plain = model(device="cpu").eval()
    batch = inputs()
    with torch.no_grad():
        expected = plain(**batch).logits
        adapted = adapters.apply(plain, SPECS[kind])(**batch).logits
    torch.testing.assert_close(adapted, expected)


def test_the_prefix_is_seen_by_all_and_the_future_by_none() -> None:
    torch.manual_seed(0)
    module = adapters.apply(model(device="cpu", layers=1).eval(), adapters.PrefixTuning(virtual_tokens=3))
    batch = inputs(seq=8)
    with torch.no_grad():
        logits = module(**batch).logits
        later = {**batch, "input_ids": batch["input_ids"].clone()}
        later["input_ids"][:, 5:] = 1
        torch.testing.assert_close(module(**later).logits[:, :5], logits[:, :5])
        for each in module.parameters():
            if each.requires_grad:
                each.add_(1.0)
        assert (module(**batch).logits - logits).abs().amax((0, 2)).min() > 1e-4


def test_the_orthogonality_term_is_in_the_loss() -> None:
    torch.manual_seed(0)
    spec = adapters.AdaLoRA(rank=4, orthogonality=0.5)
    plain = model(device="cpu").eval()
    batch = inputs()
    with torch.no_grad():
        without = plain(**batch).loss
        module = adapters.apply(plain, spec)
        pairs = [part for part in module.modules() if hasattr(part, "lora_e")]
        norms = [
            torch.linalg.matrix_norm(gram - torch.eye(4))
            for part in pairs
            for gram in (part.lora_a @ part.lora_a.T, part.lora_b.T @ part.lora_b)
        ]
        torch.testing.assert_close(module(**batch).loss, without + 0.5 * torch.stack(norms).mean())


def test_bottleneck_parameters_are_houlsbys() -> None:
    """``2 m d + d + m`` for each of two adapters of a layer (section 2.1), and two norms of the width in each layer."""
    width, size, layers = 128, 8, 3
    module = adapters.apply(model("gpt2"), adapters.BottleneckAdapter(size=size))
    graph = capture_module(module, kwargs=inputs("gpt2"), optimizer=None)
    each = 2 * size * width + width + size
    norms = (2 * layers + 1) * 2 * width
    assert graph.parameters(trainable_only=True) == 2 * layers * each + norms
    frozen = adapters.apply(model("gpt2"), adapters.BottleneckAdapter(size=size, train_norms=False))
    assert sum(p.numel() for p in frozen.parameters() if p.requires_grad) == 2 * layers * each


def test_qlora_stores_four_bits_and_makes_the_weights_twice() -> None:
    """A weight takes half a byte, a byte for each 64 (its scale) and four for each 256 of those (section 3)."""
    module = adapters.apply(model(dtype="bfloat16"), adapters.QLoRA(rank=4))
    graph = capture_module(module, kwargs=inputs(), optimizer="adamw")
    layers, width, inner, keys = 3, 128, 192, 64
    weights = [width * width, width * keys, width * keys, width * width, *[width * inner] * 3]
    held = sum(n // 2 + n // 64 + 4 * math.ceil(n // 64 / 256) for n in weights) * layers
    stored = [s for s in graph.storages if s.role in ("parameter", "buffer") and ".base." in s.name]
    constants = len(weights) * layers * (256 * 4 + 4)  # a table of codes and an offset for each layer
    assert sum(int(s.nbytes) for s in stored) == held + constants
    made = [op for op, _ in graph.ops() if op.name == "perfmodel.dequantize_4bit"]
    # Forward makes every weight; backward all but those of the first layer's q, k and v, whose input is frozen.
    assert [op.phase for op in made].count("forward") == len(weights) * layers
    assert [op.phase for op in made].count("backward") == len(weights) * layers - 3
    assert {op.outputs[0].dtype for op in made} == {"bfloat16"}
    lora = capture_module(
        adapters.apply(model(dtype="bfloat16"), adapters.LoRA(rank=4, targets=("all-linear",))),
        kwargs=inputs(),
        optimizer="adamw",
    )
    assert graph.flops() == lora.flops()
    assert graph.parameters(trainable_only=True) == lora.parameters(trainable_only=True)
    saved = 2 * sum(weights) * layers - held - constants
    ours, theirs = pm.memory_profile(graph), pm.memory_profile(lora)
    assert theirs.resident - ours.resident == saved


def test_qlora_runs_within_autocast() -> None:
    module = adapters.apply(model(layers=2), adapters.QLoRA(rank=4))
    graph = capture_module(module, kwargs=inputs(), optimizer=None, autocast="bfloat16")
    assert graph.flops() == graph.flops(dtype="bfloat16") > 0
    assert not graph.coverage.missing


def test_scales_may_stay_in_float32() -> None:
    module = adapters.apply(model(), adapters.QLoRA(double_quantization=False))
    graph = capture_module(module, kwargs=inputs(), optimizer=None)
    scales = [s for s in graph.storages if s.role == "buffer" and s.name.endswith("absmax")]
    assert sum(int(s.nbytes) for s in scales) == 4 * 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 192) // 64


def test_adapters_run_in_float32_beside_a_16_bit_base() -> None:
    batch = inputs()
    mixed = capture_module(adapters.apply(model(dtype="bfloat16"), adapters.LoRA(rank=4)), kwargs=batch, optimizer=None)
    assert 0 < mixed.flops(dtype="float32") < 0.2 * mixed.flops()
    low = capture_module(
        adapters.apply(model(dtype="bfloat16"), adapters.LoRA(rank=4, dtype="bfloat16")), kwargs=batch, optimizer=None
    )
    assert low.flops(dtype="float32") == 0
    assert low.flops() == mixed.flops()


def test_a_module_of_ones_own_takes_targets_by_name() -> None:
    module = adapters.apply(Gpt(depth=3), adapters.LoRA(rank=4, targets=("qkv", "up")))
    graph = pm.capture(module, (ids(), ids()), optimizer="adamw")
    assert graph.parameters(trainable_only=True) == 3 * 4 * ((32 + 96) + (32 + 128))
    assert max(block.count for block in graph.blocks) >= 2


@pytest.mark.parametrize(
    ("module", "spec", "message"),
    [
        (Gpt(depth=2), adapters.LoRA(), "give targets: down, head, out, qkv, up"),
        (ConvNet(), adapters.PromptTuning(), "embeds no tokens"),
        (Gpt(depth=2), adapters.PrefixTuning(), "no attention"),
        (Gpt(depth=2), "lora", "give one of AdaLoRA"),
    ],
)
def test_what_does_not_fit_is_refused(module: nn.Module, spec: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        adapters.apply(module, spec)


def test_prompt_tuning_needs_inputs_by_name() -> None:
    module = adapters.apply(Gpt(depth=2), adapters.PromptTuning())
    with pytest.raises(UnsupportedError, match="by position"):
        capture_module(module, (ids(), ids()), optimizer=None)


@pytest.mark.parametrize("wrong", [0, -4, True, 1.5])
def test_sizes_are_positive(wrong: Any) -> None:
    for make in (
        lambda: adapters.LoRA(rank=wrong),
        lambda: adapters.AdaLoRA(rank=wrong),
        lambda: adapters.PrefixTuning(virtual_tokens=wrong),
        lambda: adapters.PromptTuning(virtual_tokens=wrong),
        lambda: adapters.BottleneckAdapter(size=wrong),
    ):
        with pytest.raises(UnsupportedError, match="positive integer"):
            make()


def test_a_specification_is_plain_data() -> None:
    spec = adapters.QLoRA(rank=4, targets=("q_proj",))
    assert spec.to_dict()["kind"] == "qlora"
    assert spec.to_dict()["targets"] == ["q_proj"]
    assert spec == adapters.QLoRA(rank=4, targets=("q_proj",))
