from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from perfmodel.errors import FileError, PerfModelError, UnknownNameError, UnsupportedError
from perfmodel.models.dims import TransformerDims
from perfmodel.parallel.plan import Plan

DIMS = TransformerDims(
    family="decoder", vocab_size=128, hidden_size=64, num_hidden_layers=12, num_attention_heads=8,
    num_key_value_heads=2, head_dim=8, intermediate_size=128, max_position_embeddings=64, hidden_act="silu",
    norm="rmsnorm", norm_eps=1e-5, position_embedding="rope",
)  # fmt: skip


def test_data_parallel_degree_is_what_the_others_leave() -> None:
    plan = Plan(tp=4, pp=2, cp=2, micro_batch=2, global_batch=128).on(128)
    assert (plan.dp, plan.devices, plan.micro_batches) == (8, 128, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan(tp=8, pp=3, dp=2).on(64), "tp 8 × pp 3 × cp 1 × dp 2 = 48 ranks, the cluster has 64"),
        (lambda: Plan(tp=8, pp=3).on(64), "tp 8 × pp 3 × cp 1 = 24 ranks don't divide the cluster's 64"),
        (lambda: Plan(dp=3, micro_batch=2, global_batch=16), "16 isn't a multiple of micro_batch 2 × dp 3 = 6"),
        (lambda: Plan(dp=4, ep=8), "ep 8 × etp 1 = 8 doesn't divide tp 1 × cp 1 × dp 4 = 4"),
        (lambda: Plan(sp=True), "tp is 1"),
        (lambda: Plan(tp=2, ep=2), "needs sp=True"),
        (lambda: Plan(tp=4, etp=2), "etp=2 is neither 1 nor tp=4"),
        (lambda: Plan(pp=2, vpp=2), "use 'Interleaved1F1B'"),
        (lambda: Plan(pp=2, vpp=1, schedule="ZBVZeroBubble"), "set vpp=2"),
        (lambda: Plan(zero=4), "give 0, 1, 2 or 3"),
        (lambda: Plan(shard_group=4), "is for zero=3"),
        (lambda: Plan(dp=6, zero=3, shard_group=4), "doesn't divide dp 6 × cp 1 = 6"),
        (lambda: Plan(pp=2, stage_layers=(1, 2, 3)), "pp 2 × vpp 1 = 2 are needed"),
        (lambda: Plan(tp=0), "tp=0 must be a whole number of 1 or more"),
        (lambda: Plan(tp=True), "tp=True must be a whole number"),
        (lambda: Plan(order="tp-dp-pp"), "must name each of tp, cp, ep, dp, pp once"),
        (lambda: Plan(recompute="ful"), "did you mean 'full'"),
        (lambda: Plan(schedule="1f1b"), "known are GPipe, 1F1B"),
        (lambda: Plan(dtypes={"gradients": "fp32"}), "unknown dtype 'fp32'"),
        (lambda: Plan(dtypes={"grads": "float32"}), "unknown dtypes 'grads'"),
        (lambda: Plan().data_parallel, "plan.on(devices)"),
        (lambda: Plan(tp=3, dp=1).check(DIMS), "tp 3 doesn't divide 8 attention heads; give one of 1, 2, 4, 8"),
        (lambda: Plan(pp=5, dp=1).check(DIMS), "2 stages of 3 and 3 of 2"),
        (lambda: Plan(pp=2, stage_layers=(5, 5)).check(DIMS), "add up to 10 layers, the model has 12"),
        (lambda: Plan(ep=2, dp=2).check(DIMS), "has no routed experts"),
        (lambda: Plan(tp=4, cp=4, cp_kind="all-to-all", dp=1).check(DIMS), "tp 4 × cp 4 = 16 doesn't divide 8"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_with_what_fails(make: Any, message: str) -> None:
    with pytest.raises(PerfModelError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_key_value_heads_may_be_fewer_than_ranks_but_must_divide_them() -> None:
    assert Plan(tp=8, dp=1).check(DIMS).tp == 8
    odd = dataclasses.replace(DIMS, num_attention_heads=12, num_key_value_heads=3)
    with pytest.raises(UnsupportedError, match="neither a divisor nor a multiple of 3 key-value heads"):
        Plan(tp=4, dp=1).check(odd)


def test_dictionary_round_trip() -> None:
    plan = Plan(
        tp=2, sp=True, pp=2, vpp=2, dp=4, zero=1, schedule="Interleaved1F1B", stage_layers=(3, 3, 3, 3),
        recompute=("layers.*.mlp",), offload=("optimizer",), dtypes={"gradients": "float32"},
        overlap=frozenset({"p2p"}),
    )  # fmt: skip
    assert Plan.from_dict(plan.to_dict()) == plan
    with pytest.raises(UnknownNameError, match="did you mean 'tp'"):
        Plan.from_dict({"tpp": 2})
    with pytest.raises(FileError, match="plan version 7"):
        Plan.from_dict({"version": 7})


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("schema: plan/1\ntp: 8\nsp: true\nrecompute: [layers.*.mlp]\noverlap: [p2p]\n")
    assert Plan.load(path) == Plan(tp=8, sp=True, recompute=("layers.*.mlp",), overlap=frozenset({"p2p"}))
    path.write_text("schema: plan/1\ntp: 8\nseqence: true\n")
    with pytest.raises(FileError, match=r"plan\.yaml:3:1: unknown key 'seqence'"):
        Plan.load(path)
    path.write_text("schema: plan/1\ntp: eight\n")
    with pytest.raises(FileError, match=r"plan\.yaml:2:5"):
        Plan.load(path)
    path.write_text("schema: plan/1\nsp: true\n")
    with pytest.raises(FileError, match=r"plan\.yaml: sp=True splits the sequence over tp"):
        Plan.load(path)


def test_megatron_arguments() -> None:
    plan = Plan.from_megatron(
        "--tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --num-layers 32 "
        "--num-layers-per-virtual-pipeline-stage 2 --sequence-parallel --micro-batch-size 1 --global-batch-size 256 "
        "--use-distributed-optimizer --recompute-granularity=selective --overlap-grad-reduce --bf16 --lr 1e-4 "
        "--accumulate-allreduce-grads-in-fp32 --hidden-size 8192"
    )
    assert plan == Plan(
        tp=8, sp=True, pp=4, vpp=4, micro_batch=1, global_batch=256, zero=1, recompute="selective",
        schedule="Interleaved1F1B", dtypes={"gradients": "float32"}, overlap=frozenset({"grad_reduce", "p2p"}),
    )  # fmt: skip
    assert Plan.from_megatron(["--context-parallel-size", "2", "--cp-comm-type", "a2a"]).cp_kind == "all-to-all"
    with pytest.raises(UnsupportedError, match="did you mean 'tensor-model-parallel-size'"):
        Plan.from_megatron("--tensor-modl-parallel-size 8")
    with pytest.raises(UnsupportedError, match="only 'uniform' with 1 layer"):
        Plan.from_megatron("--recompute-granularity full --recompute-method block --recompute-num-layers 4")
    with pytest.raises(UnsupportedError, match="isn't a multiple of 3 layers a virtual stage × pp 4 = 12"):
        Plan.from_megatron("--num-layers 32 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 3")


def test_torchtitan_names() -> None:
    plan = Plan.from_torchtitan(
        {
            "parallelism": {"tensor_parallel_degree": 8, "data_parallel_shard_degree": 16},
            "training": {"local_batch_size": 2},
            "activation_checkpoint": {"mode": "selective", "selective_ac_option": "2"},
        }
    )
    assert plan == Plan(tp=8, sp=True, dp=16, zero=3, micro_batch=2, recompute=2, sequence_gather="keep")
    hybrid = {"parallelism": {"data_parallel_shard_degree": 8, "data_parallel_replicate_degree": 4}}
    assert (Plan.from_torchtitan(hybrid).dp, Plan.from_torchtitan(hybrid).shard_group) == (32, 8)
    with pytest.raises(UnknownNameError, match="did you mean 'tensor_parallel_degree'"):
        Plan.from_torchtitan({"parallelism": {"tensor_paralel_degree": 8}})


def test_groups_of_megatron_order() -> None:
    """tp is innermost, then cp, dp, pp (Megatron-LM, ``RankGenerator``, order tp-cp-ep-dp-pp)."""
    plan = Plan(tp=2, cp=2, dp=2, pp=2)
    assert plan.groups("tp")[:2] == ((0, 1), (2, 3))
    assert plan.groups("cp")[:2] == ((0, 2), (1, 3))
    assert plan.groups("dp")[:2] == ((0, 4), (1, 5))
    assert plan.groups("pp")[:2] == ((0, 8), (1, 9))
    assert plan.groups("dp-cp")[0] == (0, 2, 4, 6)
    with pytest.raises(UnknownNameError, match="kind of group"):
        plan.groups("mp")


@pytest.mark.parametrize("kind", ["tp", "cp", "dp", "pp", "dp-cp", "shard", "replicate", "ep", "etp", "edp"])
def test_groups_of_a_kind_partition_the_ranks(kind: str) -> None:
    plan = Plan(tp=2, sp=True, cp=2, dp=4, pp=3, ep=4, etp=1, zero=3, shard_group=4)
    groups = plan.groups(kind)
    assert sorted(rank for group in groups for rank in group) == list(range(plan.devices))
    assert len({len(group) for group in groups}) == 1


def test_groups_of_experts_and_of_hybrid_sharding() -> None:
    plan = Plan(tp=2, sp=True, dp=8, ep=4, etp=1)
    assert plan.groups("ep")[0] == (0, 1, 2, 3)
    assert plan.groups("edp")[0] == (0, 4, 8, 12)
    hybrid = Plan(dp=8, zero=3, shard_group=4)
    assert hybrid.groups("shard") == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert hybrid.groups("replicate")[0] == (0, 4)
