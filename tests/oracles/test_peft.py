"""Fine-tuning against peft: its modules captured as they are, and ours beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import perfmodel as pm
from perfmodel.models import adapters
from tests.oracles.real_memory import real_peaks

peft = pytest.importorskip("peft", reason="peft isn't installed")
transformers = pytest.importorskip("transformers", reason="transformers isn't installed")

#: 48 tokens: as many as no weight has rows or columns.
TOKENS = torch.zeros(2, 24, dtype=torch.long)
INPUTS = {"input_ids": TOKENS, "labels": TOKENS}
TASK = {"task_type": "CAUSAL_LM"}


def llama(dtype: str = "float32", device: str = "meta", **sizes: int) -> Any:
    """No two widths are equal, so that a shape says which weight it is of."""
    config = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            made = transformers.LlamaConfig(
                **{**config, **sizes}, bos_token_id=None, eos_token_id=None, use_cache=False
            )
            return transformers.LlamaForCausalLM(made).train()
    finally:
        torch.set_default_dtype(before)


def theirs(config: Any, dtype: str = "float32", device: str = "meta", **sizes: int) -> Any:
    with torch.device(device):
        return peft.get_peft_model(llama(dtype, device, **sizes), config).train()


METHODS = {
    "lora": (lambda: peft.LoraConfig(r=8, lora_alpha=16, **TASK), adapters.LoRA(rank=8), 0.0),
    "lora, dropout, all linear": (
        lambda: peft.LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear", **TASK),
        adapters.LoRA(rank=4, dropout=0.1, targets=("all-linear",)),
        0.0,
    ),
    "adalora": (lambda: peft.AdaLoraConfig(init_r=8, total_step=100, **TASK), adapters.AdaLoRA(rank=8), 0.0),
    # peft copies the prompt for each sequence of the batch before it joins it to the text.
    "prompt": (
        lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **TASK),
        adapters.PromptTuning(virtual_tokens=5),
        0.001,
    ),
    # peft copies the prefix for each sequence, and its cache holds the keys and values of all layers to the end.
    "prefix": (
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **TASK),
        adapters.PrefixTuning(virtual_tokens=5),
        0.04,
    ),
}


@pytest.mark.parametrize(
    ("method", "dtype"), [*((method, "bfloat16") for method in METHODS), ("lora", "float32"), ("adalora", "float32")]
)
def test_ours_is_pefts_in_parameters_arithmetic_and_memory(method: str, dtype: str) -> None:
    config, spec, tolerance = METHODS[method]
    module = theirs(config(), dtype)
    ours = pm.capture(adapters.apply(llama(dtype), spec), kwargs=INPUTS, optimizer="adamw")
    captured = pm.capture(module, kwargs=INPUTS, optimizer="adamw")
    trained, everything = module.get_nb_trainable_parameters()
    for graph in (ours, captured):
        assert not graph.coverage.missing
        assert (graph.parameters(trainable_only=True), graph.parameters()) == (trained, everything)
    for phase in ("forward", "backward", "optimizer"):
        assert ours.flops(phase=phase) == captured.flops(phase=phase)
    for first in (True, False):
        a, b = (pm.memory_profile(graph, first_step=first).peak for graph in (ours, captured))
        assert a == pytest.approx(b, rel=tolerance or 1e-12)
    if not tolerance:
        assert ours.bytes() == captured.bytes()
        assert ours.depth == captured.depth


@pytest.mark.parametrize("method", ["lora", "adalora", "prompt"])
def test_flops_are_those_that_pytorch_counts_in_a_real_step(method: str) -> None:
    config, spec, _ = METHODS[method]
    sizes = {"num_hidden_layers": 2}
    for module in (theirs(config(), device="cpu", **sizes), adapters.apply(llama(device="cpu", **sizes), spec)):
        graph = pm.capture(module, kwargs=INPUTS, optimizer=None)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(**INPUTS).loss.backward()
        # The first layer's keys need no gradient where nothing before them is trained. A fused kernel makes it all the
        # same; as separate products PyTorch leaves that one out.
        keys = 0 if method == "prompt" else 2 * 2 * 24 * 24 * 64
        assert graph.flops(recompute=False) == counter.get_total_flops() + keys


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "prompt"])
def test_peak_memory_is_that_of_a_real_step(method: str) -> None:
    config, _, _ = METHODS[method]
    module = theirs(config(), device="cpu")
    real = real_peaks(module, INPUTS, lambda p: torch.optim.AdamW([each for each in p if each.requires_grad]))
    graph = pm.capture(module, kwargs=INPUTS, optimizer="adamw", dispatch="cpu")
    ours = [pm.memory_profile(graph, first_step=first).peak for first in (True, False)]
    assert ours == pytest.approx(real, rel=0.005)


def test_backward_of_lora_is_what_one_derives() -> None:
    """Products of backward, for T tokens: each frozen weight gives the gradient of its input, ``2 T in out``, each
    factor of rank r both gradients, ``4 T r (in + out)``, and attention four products of its two.

    The first layer's input needs no gradient: embeddings are frozen. So nothing goes back through its q, k and v,
    nor to the input of its factors ``A``.
    """
    tokens, hidden, inner, keys, vocab, rank, layers = 2 * 24, 64, 176, 32, 500, 8, 3
    module = theirs(peft.LoraConfig(r=rank, **TASK))
    graph = pm.capture(module, kwargs=INPUTS, optimizer=None)
    attention_weights = 2 * hidden * hidden + 2 * hidden * keys
    frozen = 2 * tokens * (layers * (attention_weights + 3 * hidden * inner) + hidden * vocab)
    factors = 4 * tokens * rank * layers * (2 * hidden + hidden + keys)
    attention = layers * 4 * 2 * 2 * 24 * 24 * hidden
    first = 2 * tokens * (hidden * hidden + 2 * hidden * keys) + 2 * (2 * tokens * rank * hidden)
    assert graph.flops(phase="backward", recompute=False) == frozen + factors + attention - first


def test_frozen_weights_get_no_gradient_work() -> None:
    graph = pm.capture(theirs(peft.LoraConfig(r=8, **TASK)), kwargs=INPUTS, optimizer="adamw")
    trained = {s.name for s in graph.storages if s.role == "parameter" and s.trainable}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {s.name.removesuffix(".grad") for s in graph.storages if s.role == "gradient"} == trained
    assert {s.name.rpartition(".")[0] for s in graph.storages if s.role == "optimizer"} == trained
    weights = {(64, 64), (32, 64), (176, 64), (64, 176), (500, 64)}
    shapes = {t.shape for op, _ in graph.ops() if op.phase == "backward" and op.name == "aten.mm" for t in op.outputs}
    assert not {shape for shape in shapes if shape in weights or shape[::-1] in weights}


def test_llama_of_8b_with_lora() -> None:
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    rank = 16
    module = theirs(peft.LoraConfig(r=rank, **TASK), "bfloat16", **sizes)
    graph = pm.capture(module, kwargs=INPUTS, optimizer="adamw")
    trained, everything = module.get_nb_trainable_parameters()
    # A and B of the query and the value projection in 32 layers.
    assert trained == 32 * rank * ((4096 + 4096) + (4096 + 1024)) == 6_815_744
    assert graph.parameters(trainable_only=True) == trained
    assert graph.parameters() == everything == 8_030_261_248 + trained
    # Two float32 moments, and a counter for each of 128 tensors: the factors are float32 beside a bfloat16 base.
    state = sum(int(s.nbytes) * s.count for s in graph.storages if s.role == "optimizer")
    assert state == 2 * 4 * trained + 4 * 128
    weights = 2 * 8_030_261_248 + 4 * trained
    assert pm.memory_profile(graph).at_peak["parameter"] == weights
    assert max(block.count for block in graph.blocks) >= 30
