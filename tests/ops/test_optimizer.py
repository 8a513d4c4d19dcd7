"""Optimizer kernels: bytes, and how many launches lists of tensors take."""

from __future__ import annotations

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from perfmodel.ops import Tensor
from tests.ops.calls import cost_of, tensor


def lists(shapes: list[tuple[int, ...]], *names: str) -> dict[str, Tensor]:
    return {f"{name}.{i}": tensor(*shape) for name in names for i, shape in enumerate(shapes)}


def test_fused_adam_reads_four_lists_and_writes_three() -> None:
    inputs = lists([(10, 4), (4,)], "self", "grads", "exp_avgs", "exp_avg_sqs") | lists([(), ()], "state_steps")
    c = cost_of("aten._fused_adamw_", inputs, lr=1e-3)
    assert (c.read, c.written) == (4 * 44 * 4 + 2 * 4, 3 * 44 * 4)
    assert (c.family, c.kernels, c.vector_flops) == ("optimizer", 1, 15 * 44)
    amsgrad = cost_of("aten._fused_adamw_", inputs | lists([(10, 4), (4,)], "max_exp_avg_sqs"), lr=1e-3)
    assert amsgrad.written == 4 * 44 * 4


def test_fused_adam_with_a_scaler_writes_the_gradients_too() -> None:
    inputs = lists([(10,)], "self", "grads", "exp_avgs", "exp_avg_sqs") | {"grad_scale": tensor()}
    assert cost_of("aten._fused_adam_", inputs).written == 4 * 10 * 4


def test_fused_sgd_does_not_read_the_momentum_of_the_first_step() -> None:
    inputs = lists([(10,)], "self", "grads", "momentum_buffer_list")
    assert cost_of("aten._fused_sgd_", inputs, is_first_step=False).read == 3 * 40
    first = cost_of("aten._fused_sgd_", inputs, is_first_step=True)
    assert (first.read, first.written) == (2 * 40, 2 * 40)


def test_foreach_in_place_and_out_of_place() -> None:
    shapes = [(10, 4), (4,)]
    c = cost_of("aten._foreach_addcdiv_", lists(shapes, "self", "tensor1", "tensor2"), value=-0.1)
    assert (c.read, c.written, c.vector_flops) == (3 * 44 * 4, 44 * 4, 3 * 44)
    outputs = [tensor(*shape) for shape in shapes]
    c = cost_of("aten._foreach_sqrt", lists(shapes, "self"), outputs)
    assert (c.read, c.written, c.family) == (176, 176, "elementwise")


def test_foreach_copy_zero_and_norm() -> None:
    shapes = [(10, 4), (4,)]
    c = cost_of("aten._foreach_copy_", lists(shapes, "self", "src"))
    assert (c.read, c.written, c.family) == (176, 176, "copy")
    c = cost_of("aten._foreach_zero_", lists(shapes, "self"))
    assert (c.read, c.written) == (0, 176)
    c = cost_of("aten._foreach_norm", lists(shapes, "self"), [tensor(), tensor()])
    assert (c.read, c.written, c.family) == (176, 8, "reduction")


def test_foreach_pow_of_a_number() -> None:
    c = cost_of("aten._foreach_pow", lists([(), ()], "exponent"), [tensor(), tensor()], self=0.9)
    assert (c.read, c.written, c.vector_flops) == (8, 8, 2)


def launches(sizes: list[int], limit: int) -> int:
    """The loop of ``multi_tensor_apply``, chunk by chunk."""
    count = held = blocks = 0
    for size in sizes:
        if size == 0:
            continue
        held += 1
        chunks = (size + 65535) // 65536
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (held == limit and last) or blocks == 320:
                count += 1
                blocks = 0
                held = 0 if last else 1
    return count + (blocks > 0)


#: Chunks of a tensor around what fills a launch of 320 blocks.
chunk_counts = st.sampled_from([0, 1, 2, 63, 64, 159, 160, 161, 319, 320, 321, 639, 640, 641])
near_the_limits = st.builds(
    lambda chunks, short: max(0, chunks * 65536 - short), chunk_counts, st.sampled_from([0, 1, 65535])
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 260).flatmap(lambda n: st.lists(near_the_limits, min_size=n, max_size=n)) | st.lists(near_the_limits)
)
@example([1] * 110)
@example([1] * 111)
@example([320 * 65536] + [1] * 110)
@example([320 * 65536] + [1] * 111)
@example([321 * 65536] + [1] * 109)
@example([321 * 65536] + [1] * 110)
def test_launches_follow_the_loop_of_multi_tensor_apply(sizes: list[int]) -> None:
    shapes = [(size,) for size in sizes]
    assume(sizes)
    assert cost_of("aten._foreach_mul_", lists(shapes, "self"), scalar=2).kernels == launches(sizes, 110)
    fused = lists(shapes, "self", "grads", "exp_avgs", "exp_avg_sqs")
    assert cost_of("aten._fused_adam_", fused).kernels == launches(sizes, 36)
