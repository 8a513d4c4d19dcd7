"""Bytes and steps of single calls, derived by hand in each test."""

from __future__ import annotations

from perfmodel.ops import AttentionShape, MatmulShape
from tests.ops.calls import cost_of, tensor


def test_mm_reads_both_and_writes_one() -> None:
    x, w, y = tensor(64, 32, dtype="bfloat16"), tensor(32, 16, dtype="bfloat16"), tensor(64, 16, dtype="bfloat16")
    c = cost_of("aten.mm", {"self": x, "mat2": w}, [y])
    assert c.read == 2 * (64 * 32 + 32 * 16)
    assert c.written == 2 * 64 * 16
    assert c.shape == MatmulShape(b=1, m=64, n=16, k=32)
    assert (c.family, c.dtype, c.vector_flops) == ("matmul", "bfloat16", 0)


def test_mm_tells_the_layout() -> None:
    # nn.Linear forward: the weight [16, 32] is seen as its transpose [32, 16].
    w = tensor(32, 16, strides=(1, 32))
    forward = cost_of("aten.mm", {"self": tensor(64, 32), "mat2": w}, [tensor(64, 16)])
    assert (forward.shape.x_transposed, forward.shape.w_transposed) == (False, True)
    # The weight's gradient: grad [64, 16] is seen as its transpose [16, 64].
    grad = tensor(16, 64, strides=(1, 16))
    wgrad = cost_of("aten.mm", {"self": grad, "mat2": tensor(64, 32)}, [tensor(16, 32)])
    assert (wgrad.shape.x_transposed, wgrad.shape.w_transposed) == (True, False)


def test_addmm_reads_its_bias_once() -> None:
    c = cost_of("aten.addmm", {"self": tensor(16), "mat1": tensor(64, 32), "mat2": tensor(32, 16)}, [tensor(64, 16)])
    assert c.read == 4 * (16 + 64 * 32 + 32 * 16)
    assert c.vector_flops == 64 * 16


def test_bmm_reads_an_expanded_operand_once() -> None:
    # A key head that 4 query heads share, expanded without a copy.
    shared = tensor(4, 32, 8, strides=(0, 8, 1))
    c = cost_of("aten.bmm", {"self": tensor(4, 16, 32), "mat2": shared}, [tensor(4, 16, 8)])
    assert c.read == 4 * (4 * 16 * 32 + 32 * 8)
    assert c.matrix_flops == 2 * 4 * 16 * 8 * 32
    assert c.family == "batched_matmul"


def test_baddbmm_in_place_writes_its_self() -> None:
    inputs = {"self": tensor(4, 16, 8), "batch1": tensor(4, 16, 32), "batch2": tensor(4, 32, 8)}
    c = cost_of("aten.baddbmm_", inputs)
    assert c.written == 4 * 4 * 16 * 8


def test_mv_is_work_of_the_vector_unit() -> None:
    c = cost_of("aten.mv", {"self": tensor(64, 32), "vec": tensor(32)}, [tensor(64)])
    assert (c.family, c.matrix_flops, c.vector_flops) == ("reduction", 0, 2 * 64 * 32)


def test_convolution_reads_the_image_once() -> None:
    inputs = {"input": tensor(2, 8, 10, 10), "weight": tensor(16, 4, 3, 3), "bias": tensor(16)}
    c = cost_of("aten.convolution", inputs, [tensor(2, 16, 8, 8)], transposed=False, groups=2)
    assert c.read == 4 * (2 * 8 * 10 * 10 + 16 * 4 * 3 * 3 + 16)
    assert c.written == 4 * 2 * 16 * 8 * 8
    # 2 images of 8 x 8 positions; each of 16 channels takes 4 channels of 3 x 3.
    assert c.matrix_flops == 2 * (2 * 8 * 8) * 16 * (4 * 3 * 3)
    assert c.shape == MatmulShape(b=2, m=2 * 64, n=8, k=36, w_transposed=True)


def test_convolution_backward_reads_what_the_asked_gradients_need() -> None:
    inputs = {"grad_output": tensor(2, 16, 8, 8), "input": tensor(2, 8, 10, 10), "weight": tensor(16, 8, 3, 3)}
    attrs = {"transposed": False, "groups": 1}
    grad, x, w = 4 * 2 * 16 * 8 * 8, 4 * 2 * 8 * 10 * 10, 4 * 16 * 8 * 3 * 3
    first_layer = cost_of(
        "aten.convolution_backward", inputs, [inputs["weight"]], output_mask=[False, True, False], **attrs
    )
    assert (first_layer.read, first_layer.written, first_layer.kernels) == (grad + x, w, 1)
    both = cost_of(
        "aten.convolution_backward",
        inputs,
        [inputs["input"], inputs["weight"]],
        output_mask=[True, True, False],
        **attrs,
    )
    assert (both.read, both.written, both.kernels) == (grad + x + w, x + w, 2)


def test_attention_of_fewer_key_heads() -> None:
    q, kv = tensor(2, 8, 64, 32, dtype="bfloat16"), tensor(2, 2, 64, 32, dtype="bfloat16")
    lse = tensor(2, 8, 64)
    inputs = {"query": q, "key": kv, "value": kv}
    c = cost_of("perfmodel.attention", inputs, [q, lse], is_causal=True, dropout_p=0.0)
    assert c.read == 2 * (2 * 8 * 64 * 32 + 2 * 2 * 2 * 64 * 32)
    assert c.written == 2 * 2 * 8 * 64 * 32 + 4 * 2 * 8 * 64
    pairs, visible = 2 * 8 * 64 * 64, 2 * 8 * (64 * 65 // 2)
    assert c.matrix_flops == 2 * pairs * (32 + 32)
    assert c.masked == 2 * (pairs - visible) * (32 + 32)
    # Five steps a visible score, a division an output element.
    assert c.vector_flops == 5 * visible + 2 * 8 * 64 * 32
    assert c.shape == AttentionShape(
        b=2, heads=8, kv_heads=2, q_len=64, kv_len=64, head_dim=32, v_head_dim=32, causal=True
    )


def test_attention_ignores_random_state_and_debug_outputs() -> None:
    q, lse, seed = tensor(1, 2, 8, 4), tensor(1, 2, 8), tensor(dtype="int64")
    inputs = {"query": q, "key": q, "value": q}
    c = cost_of("aten._scaled_dot_product_flash_attention", inputs, [q, lse, seed, seed], dropout_p=0.1)
    assert c.written == 4 * (2 * 8 * 4 + 2 * 8)


def test_layer_norm_and_its_backward() -> None:
    x, w, stat = tensor(6, 32), tensor(32), tensor(6, 1)
    c = cost_of(
        "aten.native_layer_norm", {"input": x, "weight": w, "bias": w}, [x, stat, stat], normalized_shape=[32], eps=1e-5
    )
    assert (c.read, c.written) == (4 * (6 * 32 + 2 * 32), 4 * (6 * 32 + 2 * 6))
    assert (c.rows, c.cols, c.vector_flops) == (6, 32, 6 * 32 * 8)
    inputs = {"grad_out": x, "input": x, "mean": stat, "rstd": stat, "weight": w, "bias": w}
    c = cost_of("aten.native_layer_norm_backward", inputs, [x, w, w], normalized_shape=[32], output_mask=[True] * 3)
    assert (c.read, c.written) == (4 * (2 * 6 * 32 + 2 * 6 + 2 * 32), 4 * (6 * 32 + 2 * 32))
    assert c.kernels == 2


def test_batch_norm_updates_its_running_statistics_in_training_only() -> None:
    x, c8 = tensor(2, 8, 5, 5), tensor(8)
    inputs = {"input": x, "weight": c8, "bias": c8, "running_mean": c8, "running_var": c8}
    training = cost_of("aten.native_batch_norm", inputs, [x, c8, c8], training=True)
    assert training.written == 4 * (2 * 8 * 25 + 2 * 8 + 2 * 8)
    frozen = cost_of("aten.native_batch_norm", inputs, [x, tensor(0), tensor(0)], training=False)
    assert frozen.written == 4 * 2 * 8 * 25
    assert (training.rows, training.cols) == (8, 50)
    # Statistics and transformation, or the transformation only; eight steps an element, or four.
    assert (training.kernels, frozen.kernels) == (2, 1)
    assert (training.vector_flops, frozen.vector_flops) == (8 * 400, 4 * 400)


def test_softmax_rows_run_along_its_dimension() -> None:
    x = tensor(2, 3, 5)
    assert cost_of("aten._softmax", {"self": x}, [x], dim=1).cols == 3
    c = cost_of("aten._softmax", {"self": x}, [x], dim=-1)
    assert (c.rows, c.cols, c.read, c.written, c.vector_flops) == (6, 5, 120, 120, 150)


def test_cross_entropy_reads_one_logit_a_sample_and_fills_a_gradient() -> None:
    x, target, loss = tensor(10, 1000), tensor(10, dtype="int64"), tensor()
    c = cost_of("aten.nll_loss_forward", {"self": x, "target": target}, [loss, loss], reduction=1)
    assert (c.read, c.written) == (10 * 4 + 10 * 8, 8)
    inputs = {"grad_output": loss, "self": x, "target": target, "total_weight": loss}
    c = cost_of("aten.nll_loss_backward", inputs, [x], reduction=1)
    assert (c.read, c.written, c.kernels) == (10 * 8 + 4 + 4, 4 * 10 * 1000 + 10 * 4, 2)


def test_embedding_reads_rows_not_the_table() -> None:
    table, indices, rows = tensor(50000, 64), tensor(2, 7, dtype="int64"), tensor(2, 7, 64)
    c = cost_of("aten.embedding", {"weight": table, "indices": indices}, [rows])
    assert (c.read, c.written) == (14 * 64 * 4 + 14 * 8, 14 * 64 * 4)
    assert (c.rows, c.cols) == (14, 64)
    c = cost_of("aten.embedding_dense_backward", {"grad_output": rows, "indices": indices}, [table], num_weights=50000)
    # Zeros everywhere, then 14 rows read, added to and written.
    assert c.read == 14 * 64 * 4 + 14 * 8 + 14 * 64 * 4
    assert c.written == 50000 * 64 * 4 + 14 * 64 * 4


def test_index_takes_whole_rows_of_the_dimensions_left() -> None:
    x, index = tensor(9, 5, 7), tensor(3, 1, dtype="int64")
    other = tensor(4, dtype="int64")
    c = cost_of("aten.index", {"self": x, "indices.0": index, "indices.2": other}, [tensor(3, 4, 5)])
    assert (c.rows, c.cols) == (12, 5)
    assert c.read == 12 * 5 * 4 + (3 + 4) * 8


def test_index_put_adds_to_rows_in_place() -> None:
    table, index, values = tensor(100, 8), tensor(6, dtype="int64"), tensor(6, 8)
    inputs = {"self": table, "indices.0": index, "values": values}
    c = cost_of("aten.index_put_", inputs, [table], accumulate=True)
    assert (c.read, c.written) == (6 * 8 + 6 * 8 * 4 + 6 * 8 * 4, 6 * 8 * 4)
    overwriting = cost_of("aten.index_put_", inputs, [table])
    assert (overwriting.read, overwriting.vector_flops) == (6 * 8 + 6 * 8 * 4, 0)
    functional = cost_of("aten.index_put", inputs, [table])
    assert functional.written == 100 * 8 * 4 + 6 * 8 * 4


def test_elementwise_in_place_reads_and_writes_its_self() -> None:
    x, y = tensor(8, 4), tensor(8, 4, dtype="bfloat16")
    c = cost_of("aten.add_", {"self": x, "other": y}, [x], alpha=0.5)
    assert (c.read, c.written) == (8 * 4 * 4 + 8 * 4 * 2, 8 * 4 * 4)
    assert (c.dtype, c.vector_flops) == ("float32", 2 * 32)
    # What an in-place op writes is its self, whether or not its result is named.
    assert cost_of("aten.add_", {"self": x, "other": y}, alpha=0.5) == c


def test_a_broadcast_operand_is_read_once() -> None:
    c = cost_of("aten.mul", {"self": tensor(8, 4), "other": tensor(8, 4, strides=(0, 1))}, [tensor(8, 4)])
    assert (c.read, c.vector_flops) == (8 * 4 * 4 + 4 * 4, 32)


def test_comparison_computes_in_the_type_of_its_operands() -> None:
    c = cost_of("aten.gt", {"self": tensor(8, dtype="bfloat16")}, [tensor(8, dtype="bool")], other=0)
    assert (c.dtype, c.written) == ("bfloat16", 8)


def test_gelu_by_its_formula() -> None:
    x = tensor(10)
    assert cost_of("aten.gelu", {"self": x}, [x]).vector_flops == 50
    assert cost_of("aten.gelu", {"self": x}, [x], approximate="tanh").vector_flops == 90


def test_sum_over_rows_and_over_all() -> None:
    x = tensor(6, 32, dtype="bfloat16")
    c = cost_of("aten.sum", {"self": x}, [tensor(6, 1)], dim=[-1], keepdim=True)
    assert (c.rows, c.cols, c.read, c.written, c.dtype) == (6, 32, 384, 24, "float32")
    c = cost_of("aten.sum", {"self": x}, [tensor(dtype="bfloat16")])
    assert (c.rows, c.cols, c.written) == (1, 192, 2)


def test_copy_does_not_read_what_it_overwrites() -> None:
    c = cost_of("aten.copy_", {"self": tensor(5), "src": tensor(5, dtype="bfloat16")}, [tensor(5)])
    assert (c.read, c.written) == (10, 20)


def test_zeros_are_written_and_empty_costs_nothing() -> None:
    assert cost_of("aten.zeros", {}, [tensor(5)]).written == 20
    like = cost_of("aten.zeros_like", {"self": tensor(5)}, [tensor(5)])
    assert (like.read, like.written) == (0, 20)
    empty = cost_of("aten.empty", {}, [tensor(5)])
    assert (empty.kernels, empty.read, empty.written) == (0, 0, 0)


def test_slice_backward_fills_and_copies() -> None:
    c = cost_of("aten.slice_backward", {"grad_output": tensor(2, 4)}, [tensor(8, 4)], dim=0)
    assert (c.read, c.written) == (32, 128 + 32)


def test_dropout_writes_a_mask_of_bytes() -> None:
    x = tensor(100, dtype="bfloat16")
    c = cost_of("aten.native_dropout", {"input": x}, [x, tensor(100, dtype="bool")], p=0.1, train=True)
    assert (c.read, c.written) == (200, 300)


def test_max_pool_and_its_backward() -> None:
    x, y, where = tensor(2, 3, 8, 8), tensor(2, 3, 4, 4), tensor(2, 3, 4, 4, dtype="int64")
    c = cost_of("aten.max_pool2d_with_indices", {"self": x}, [y, where], kernel_size=[2, 2])
    assert (c.read, c.written, c.vector_flops) == (4 * 384, 96 * 4 + 96 * 8, 96 * 4)
    inputs = {"grad_output": y, "self": x, "indices": where}
    c = cost_of("aten.max_pool2d_with_indices_backward", inputs, [x], kernel_size=[2, 2])
    # Zeros, then each of 96 gradients read with its place, and its target read and written.
    assert (c.read, c.written) == (96 * 4 + 96 * 8 + 96 * 4, 384 * 4 + 96 * 4)


def test_views_and_answers_launch_nothing() -> None:
    x = tensor(8, 4)
    for name in ("aten.view", "aten.t", "aten.expand", "aten.detach", "aten._unsafe_view", "perfmodel.release"):
        c = cost_of(name, {"self": x}, [x])
        assert (c.family, c.kernels, c.read, c.written) == ("view", 0, 0, 0)
    assert cost_of("aten._local_scalar_dense", {"self": tensor()}).family == "host"


def test_random_numbers_are_written_probabilities_read() -> None:
    x = tensor(10)
    assert cost_of("aten.bernoulli", {"self": x}, [x]).read == 40
    assert cost_of("aten.bernoulli", {"self": x}, [x], p=0.5).read == 0
    drawn = cost_of("aten.normal_", {"self": x}, [x])
    assert (drawn.read, drawn.written) == (0, 40)
