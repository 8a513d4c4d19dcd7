"""The table of rules."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from perfmodel.ops import OpCost, cost, has_rule, known_ops, register
from tests.ops.calls import Call, tensor

OWN_OPS = {
    *(
        f"perfmodel.{name}{backward}"
        for name in ("attention", "lstm", "gru", "rnn", "ssd_scan", "selective_scan")
        for backward in ("", "_backward")
    ),
    "perfmodel.dequantize_4bit",
    "perfmodel.release",
}


def test_ops_of_our_own_have_rules() -> None:
    assert {name for name in known_ops() if name.startswith("perfmodel.")} >= OWN_OPS


def test_every_rule_is_for_an_op_that_exists() -> None:
    names = {name for name in known_ops() if name.startswith("aten.")}
    assert [name for name in names if not hasattr(torch.ops.aten, name.removeprefix("aten."))] == []
    assert len(names) > 500


def test_an_op_without_a_rule_has_no_cost() -> None:
    call = Call(name="aten.linalg_eig", inputs={"self": tensor(4, 4)}, outputs=(tensor(4),))
    assert not has_rule(call.name)
    assert cost(call) is None


def test_a_second_rule_is_refused() -> None:
    def rule(call: object) -> OpCost:
        raise AssertionError

    with pytest.raises(ValueError, match=r"'aten\.mm' has a rule already"):
        register("aten.mm")(rule)


def test_rules_do_not_need_pytorch() -> None:
    code = "import sys, perfmodel.ops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
