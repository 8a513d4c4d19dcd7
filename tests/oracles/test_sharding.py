"""A rank's flops and collectives equal those that PyTorch itself issues.

The same model under ``parallelize_module``, ``fully_shard`` (FSDP2) and both runs on rank 0 of a
fake process group and is recorded op by op; ours is sharded from a capture of the plain model.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.distributed  # noqa: E402, F811

if not torch.distributed.is_available():  # pragma: no cover
    pytest.skip("this build of PyTorch has no torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import Replicate, Shard  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

import perfmodel as pm  # noqa: E402
from perfmodel.models import decoder, encoder  # noqa: E402
from perfmodel.models.dims import TransformerDims  # noqa: E402
from perfmodel.parallel.plan import Plan  # noqa: E402
from perfmodel.parallel.shard import shard  # noqa: E402
from tests.oracles.parallel_step import (  # noqa: E402
    ConvColwise,
    ConvRowwise,
    Recorded,
    parallelize,
    ranks,
    record,
    shared_input,
)

BATCH, SEQ = 2, 32
_SIZES = {
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16, "vocab_size": 512,
    "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 128, "norm_eps": 1e-5,
}  # fmt: skip
_BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
DIMS = {
    "llama": TransformerDims(
        family="decoder", hidden_act="silu", norm="rmsnorm", position_embedding="rope", gated_mlp=True, **_SIZES
    ),
    "gpt2": TransformerDims(
        family="decoder", hidden_act="gelu_new", norm="layernorm", position_embedding="learned", projection="conv1d",
        **_BIASED, **_SIZES,
    ),
    "bert": TransformerDims(
        family="encoder", hidden_act="gelu", norm="layernorm", position_embedding="learned", type_vocab_size=2,
        **_BIASED, **_SIZES,
    ),
}  # fmt: skip

#: By columns and rows as for all three; embedding and head whole.
BLOCKS = {
    "llama": {
        **{f"layers.*.attention.{n}_proj": "colwise" for n in "qkv"},
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    },
    "gpt2": {
        "layers.*.attention.qkv_proj": "colwise",
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    },
    "bert": {
        **{f"layers.*.attention.{n}_proj": "colwise" for n in "qkv"},
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    },
}


def _build(name: str) -> Any:
    dims = DIMS[name]
    return (decoder if dims.family == "decoder" else encoder).build(dims)


@cache
def _graph(name: str) -> pm.Graph:
    with torch.device("meta"):
        module = _mixtral() if name == "mixtral" else _build(name)
        ids = torch.zeros(BATCH, SEQ, dtype=torch.int64)
    axes = {0: "batch", 1: "seq"}
    return pm.capture(
        module, kwargs={"input_ids": ids, "labels": ids}, optimizer=None,
        dynamic_shapes={"input_ids": axes, "labels": axes},
    )  # fmt: skip


def _ours(name: str, plan: Plan, placements: Any) -> Recorded:
    program = shard(_graph(name), plan, placements)
    found: Counter[Any] = Counter()
    for c in program.collectives():
        found[c.op, c.ranks, c.nbytes, c.phase] += c.count
    return Recorded(program.graph.flops(), found)


def _loss(module: Any) -> torch.Tensor:
    ids = torch.zeros(BATCH, SEQ, dtype=torch.int64)
    result = module(input_ids=ids, labels=ids)
    return getattr(result, "loss", result)


def _shard_fully(layers: Any, module: Any, mesh: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)


def _torch_styles(name: str, *, vocabulary: bool) -> dict[str, Any]:
    columns, rows = (ConvColwise, ConvRowwise) if name == "gpt2" else (ColwiseParallel, RowwiseParallel)
    styles: dict[str, Any] = {
        "layers.*.attention": shared_input((Replicate(), None, None)),
        "layers.*.mlp": shared_input((Replicate(),)),
        **{path: columns() if style == "colwise" else rows() for path, style in BLOCKS[name].items()},
    }
    if vocabulary:
        styles["embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
        styles["lm_head"] = ColwiseParallel(use_local_output=False)
    return styles


def _theirs(name: str, tp: int, dp: int) -> Recorded:
    vocabulary = name == "llama" and tp > 1
    with ranks(tp * dp):
        mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=("dp", "tp"))
        module = _build(name)
        if tp > 1:
            parallelize(module, mesh["tp"], _torch_styles(name, vocabulary=vocabulary))
        if dp > 1:
            _shard_fully(module.layers, module, mesh["dp"])
        return record(module, _loss, loss_parallel if vocabulary else None)


LAYOUTS = [(2, 1), (4, 1), (8, 1), (1, 8), (8, 8)]


@pytest.mark.parametrize(("tp", "dp"), LAYOUTS)
@pytest.mark.parametrize("name", sorted(DIMS))
def test_rank_equals_pytorch(name: str, tp: int, dp: int) -> None:
    plan = Plan(tp=tp, dp=dp, zero=3 if dp > 1 else 0, micro_batch=BATCH)
    # Llama's placements are inferred, with a vocabulary-parallel embedding, head and loss.
    ours = _ours(name, plan, None if name == "llama" or tp == 1 else BLOCKS[name])
    theirs = _theirs(name, tp, dp)
    assert ours.collectives == theirs.collectives
    assert ours.flops == theirs.flops


class _FullRotary(torch.nn.Module):
    """Positions of the whole sequence, where the hidden states that they are made for are a shard."""

    def __init__(self, rotary: torch.nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, _hidden: torch.Tensor) -> Any:
        return self.rotary(torch.empty(BATCH, SEQ, 1))


@pytest.mark.parametrize(("tp", "dp"), [(4, 1), (8, 8)])
def test_sequence_parallel_rank_equals_pytorch(tp: int, dp: int) -> None:
    """torchtitan's plan of a Llama: norms on sequence shards, gathers and scatters around the blocks."""
    rows = RowwiseParallel
    styles = {
        **_torch_styles("llama", vocabulary=True),
        "embed_tokens": rows(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "layers.*.attention_norm": SequenceParallel(),
        "layers.*.mlp_norm": SequenceParallel(),
        "layers.*.attention": shared_input((Shard(1), None, None)),
        "layers.*.mlp": shared_input((Shard(1),)),
        "layers.*.attention.o_proj": rows(output_layouts=Shard(1)),
        "layers.*.mlp.down_proj": rows(output_layouts=Shard(1)),
        "lm_head": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
    }
    with ranks(tp * dp):
        mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=("dp", "tp"))
        module = _build("llama")
        module.rotary = _FullRotary(module.rotary)
        parallelize(module, mesh["tp"], styles)
        if dp > 1:
            _shard_fully(module.layers, module, mesh["dp"])
        theirs = record(module, _loss, loss_parallel)
    plan = Plan(tp=tp, sp=True, dp=dp, zero=3 if dp > 1 else 0, micro_batch=BATCH, sequence_gather="keep")
    ours = _ours("llama", plan, None)
    if dp == 1:
        # The weights of norms see a part of the sequence. Without FSDP, DTensor leaves their gradients as terms,
        # which the optimizer's first use then sums.
        norms = ("all_reduce", tp, DIMS["llama"].hidden_size * 4, "backward")
        assert ours.collectives.pop(norms) == 2 * 3 + 1
    assert ours.collectives == theirs.collectives
    assert ours.flops == theirs.flops


def test_dtensor_reduces_once_a_projection_where_inputs_are_not_shared() -> None:
    """Styles alone make each of q, k, v (and gate, up) reduce its input's gradient; a plan reduces their sum."""
    with ranks(4):
        mesh = init_device_mesh("cpu", (4,))
        module = _build("llama")
        styles = {
            path: ColwiseParallel() if style == "colwise" else RowwiseParallel()
            for path, style in BLOCKS["llama"].items()
        }
        parallelize(module, mesh, styles)
        theirs = record(module, _loss)
    ours = _ours("llama", Plan(tp=4, dp=1, micro_batch=BATCH), BLOCKS["llama"])
    assert ours.flops == theirs.flops
    reduced = ("all_reduce", 4, BATCH * SEQ * 128 * 4, "backward")
    assert (theirs.collectives.pop(reduced), ours.collectives.pop(reduced)) == (3 * (3 + 2), 3 * (1 + 1))
    assert ours.collectives == theirs.collectives


# -- experts --------------------------------------------------------------------------


def _mixtral() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=128,
        use_cache=False, experts_implementation="grouped_mm", attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).to(torch.bfloat16)


def _hugging_face_styles(module: Any) -> dict[str, str]:
    """The model's tensor-parallel plan for every module and parameter that it names."""
    found: dict[str, str] = {}
    for pattern, style in module.tp_plan.items():
        text = re.escape(pattern).replace(r"\*", r"\d+")
        for path, _ in (*module.named_modules(), *module.named_parameters()):
            if re.fullmatch(text, path):
                found[path] = style
    for path, _ in module.named_parameters():
        owner = found.get(path.rpartition(".")[0])
        if owner and owner != "moe_tp_experts":
            found.setdefault(path, owner)
    return found


@pytest.mark.parametrize(("tp", "dp"), LAYOUTS)
def test_experts_rank_equals_pytorch(tp: int, dp: int) -> None:
    """Mixtral by transformers, with the tensor-parallel plan that it comes with."""
    tensor_parallel = pytest.importorskip("transformers.distributed.tensor_parallel")
    with ranks(tp * dp):
        mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=("dp", "tp"))
        module = _mixtral()
        plan_of_model = dict(module.tp_plan)
        if tp > 1:
            tensor_parallel.apply_tensor_parallelism(module, mesh["tp"], _hugging_face_styles(module))
            for layer in module.model.layers:
                parallelize_module(layer.self_attn, mesh["tp"], shared_input(Replicate(), keyword="hidden_states"))
        if dp > 1:
            _shard_fully(module.model.layers, module, mesh["dp"])
        theirs = record(module, _loss)
    plan = Plan(tp=tp, dp=dp, zero=3 if dp > 1 else 0, micro_batch=BATCH)
    ours = _ours("mixtral", plan, plan_of_model if tp > 1 else None)
    assert ours.collectives == theirs.collectives
    assert ours.flops == theirs.flops


def test_oracle_models_are_what_they_claim() -> None:
    """Flops of the whole step by the closed form, so that two graphs that lack the same op aren't called equal."""
    for name, dims in DIMS.items():
        tokens = BATCH * SEQ
        attention = 12 * dims.num_hidden_layers * dims.num_attention_heads * dims.head_dim * SEQ * tokens
        products = 6 * dims.matmul_parameters() * tokens
        # Fused attention multiplies the scores once more in backward.
        again = attention // 12 * 2
        assert _graph(name).flops() == products + attention + again, name
