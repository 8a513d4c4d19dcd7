"""Rules of routing, recurrence, scans and resampling, derived by hand in each test."""

from __future__ import annotations

from perfmodel.ops import MatmulShape, RecurrentShape
from tests.ops.calls import cost_of, tensor


def test_grouped_mm_backward_for_weights_writes_every_weight() -> None:
    x = tensor(32, 64, dtype="bfloat16", strides=(1, 32))
    inputs = {"self": x, "mat2": tensor(64, 48, dtype="bfloat16"), "offs": tensor(4, dtype="int32")}
    c = cost_of("aten._grouped_mm", inputs, [tensor(4, 32, 48, dtype="bfloat16")])
    assert c.matrix_flops == 2 * 32 * 64 * 48
    assert c.written == 2 * 4 * 32 * 48
    assert c.shape == MatmulShape(b=1, m=32, n=48, k=64, groups=4, x_transposed=True)


def test_grouped_mm_of_stacks_is_a_batched_product() -> None:
    c = cost_of("aten._grouped_mm", {"self": tensor(4, 16, 32), "mat2": tensor(4, 32, 8)}, [tensor(4, 16, 8)])
    assert c.matrix_flops == 4 * 2 * 16 * 32 * 8
    assert c.shape == MatmulShape(b=4, m=16, n=8, k=32)


def test_addbmm_is_one_product() -> None:
    inputs = {"self": tensor(16, 8), "batch1": tensor(4, 16, 32), "batch2": tensor(4, 32, 8)}
    c = cost_of("aten.addbmm", inputs, [tensor(16, 8)])
    assert (c.matrix_flops, c.vector_flops) == (2 * 4 * 16 * 32 * 8, 16 * 8)
    assert c.shape == MatmulShape(b=1, m=16, n=8, k=4 * 32)


def test_a_sort_moves_keys_and_positions_once_a_byte() -> None:
    c = cost_of("aten.sort", {"self": tensor(100, dtype="int64")}, [tensor(100, dtype="int64")] * 2)
    assert c.kernels == 1 + 8
    assert c.read == 100 * 8 + 8 * 100 * (8 + 8)
    assert c.written == 8 * 100 * (8 + 8)
    assert cost_of("aten.sort", {"self": tensor(100, dtype="bfloat16")}, []).kernels == 1 + 2


def test_topk_reads_its_row_once() -> None:
    values, places = tensor(10, 2, dtype="bfloat16"), tensor(10, 2, dtype="int64")
    c = cost_of("aten.topk", {"self": tensor(10, 64, dtype="bfloat16")}, [values, places], k=2)
    assert (c.read, c.written) == (2 * 640, 20 * (2 + 8))
    assert (c.rows, c.cols) == (10, 64)
    # Two bits a look, eight looks at 16-bit keys.
    assert c.vector_flops == 3 * 8 * 640


def test_a_histogram_reads_all_and_writes_its_bins() -> None:
    c = cost_of("aten.histc", {"self": tensor(1000)}, [tensor(64)], bins=64)
    assert (c.read, c.written) == (4000, 2 * 4 * 64)


def test_bisection_looks_at_each_level() -> None:
    inputs = {"sorted_sequence": tensor(1000), "self": tensor(50)}
    assert cost_of("aten.searchsorted", inputs, [tensor(50, dtype="int64")]).vector_flops == 50 * 10
    inputs = {"self": tensor(50), "boundaries": tensor(8)}
    assert cost_of("aten.bucketize", inputs, [tensor(50, dtype="int64")]).vector_flops == 50 * 3


def test_an_lstm_reads_weights_once_and_hands_gates_on() -> None:
    steps, batch, width, hidden = 10, 2, 3, 5
    weights = {
        "weights.0": tensor(20, width),
        "weights.1": tensor(20, hidden),
        "weights.2": tensor(20),
        "weights.3": tensor(20),
    }
    x, state = tensor(steps, batch, width), tensor(1, batch, hidden)
    outputs = [tensor(steps, batch, hidden), state, state, tensor(1, steps, batch, 25)]
    c = cost_of(
        "perfmodel.lstm", {"input": x, "states.0": state, "states.1": state, **weights}, outputs,
        has_biases=True, bidirectional=False, train=True,
    )  # fmt: skip
    gates = steps * batch * 4 * hidden
    assert c.matrix_flops == 2 * steps * batch * 20 * (width + hidden)
    assert c.read == 4 * (steps * batch * width + 2 * batch * hidden + 20 * (width + hidden + 2) + gates)
    assert c.written == 4 * (steps * batch * hidden + 2 * batch * hidden + steps * batch * 25 + gates)
    # Sums 4, biases 8, three sigmoids 12, tanh 1, cell 3, output 2.
    assert c.vector_flops == steps * batch * hidden * 30
    assert c.shape == RecurrentShape(steps=10, directions=1, b=2, hidden=5, gates=4)


def test_a_fused_cell_is_element_wise() -> None:
    gates, cell = tensor(6, 20), tensor(6, 5)
    inputs = {"input_gates": gates, "hidden_gates": gates, "cx": cell, "input_bias": tensor(20)}
    c = cost_of("aten._thnn_fused_lstm_cell", inputs, [cell, cell, gates])
    assert (c.family, c.vector_flops, c.matrix_flops) == ("elementwise", 30 * 30, 0)
    inputs = {"grad_hy": cell, "cx": cell, "cy": cell, "workspace": gates}
    c = cost_of("aten._thnn_fused_lstm_cell_backward_impl", inputs, [gates, cell, tensor(20)], has_bias=False)
    assert c.vector_flops == 24 * 30


def test_ssd_hands_on_states_and_scores() -> None:
    batch, seq, heads, width, groups, state, chunk = 2, 16, 4, 8, 1, 32, 8
    x, shared = tensor(batch, seq, heads, width, dtype="bfloat16"), tensor(batch, seq, groups, state, dtype="bfloat16")
    inputs = {"x": x, "dt": tensor(batch, seq, heads), "A": tensor(heads), "B": shared, "C": shared}
    c = cost_of("perfmodel.ssd_scan", inputs, [x], chunk_size=chunk)
    chunks = batch * 2
    scores = chunks * groups * chunk * chunk * 4
    # A chunk's states are summed in float and passed on in the operands' type; steps and decays are float.
    handed_on = scores + chunks * heads * width * state * (4 + 2) + 2 * batch * seq * heads * 4
    elements = batch * seq * heads * width
    small = batch * seq * heads * 4 + heads * 4 + 2 * 2 * batch * seq * groups * state
    assert c.read == 2 * elements + small + handed_on
    assert c.written == 2 * elements + handed_on


def test_selective_scan_computes_in_float() -> None:
    u, shared = tensor(2, 8, 16, dtype="bfloat16"), tensor(2, 4, 16, dtype="bfloat16")
    inputs = {"u": u, "delta": u, "A": tensor(8, 4), "B": shared, "C": shared}
    c = cost_of("perfmodel.selective_scan", inputs, [u], delta_softplus=False)
    assert (c.dtype, c.matrix_flops, c.vector_flops) == ("float32", 0, 2 * 8 * 16 * (7 * 4 + 1))


def test_a_fourier_transform_has_five_n_log_n_steps() -> None:
    x, y = tensor(4, 1024, dtype="complex64"), tensor(4, 1024, dtype="complex64")
    assert cost_of("aten._fft_c2c", {"self": x}, [y], dim=[1]).vector_flops == 4 * 5 * 1024 * 10
    real, half = tensor(4, 1024), tensor(4, 513, dtype="complex64")
    assert cost_of("aten._fft_r2c", {"self": real}, [half], dim=[1]).vector_flops == 4 * 5 * 1024 * 10 / 2
    assert cost_of("aten._fft_c2r", {"self": half}, [real], dim=[1]).vector_flops == 4 * 5 * 1024 * 10 / 2


def test_a_sample_weighs_its_neighbours() -> None:
    inputs = {"input": tensor(2, 3, 8, 8), "grid": tensor(2, 5, 6, 2)}
    c = cost_of("aten.grid_sampler_2d", inputs, [tensor(2, 3, 5, 6)])
    # Of 60 positions 10 steps; of 180 results a product and a sum for each of four corners.
    assert c.vector_flops == 10 * 60 + 8 * 180


def test_bags_with_weights_read_rows_and_gradients() -> None:
    inputs = {
        "grad": tensor(4, 16), "weight": tensor(100, 16), "indices": tensor(12, dtype="int64"),
        "offsets": tensor(4, dtype="int64"), "offset2bag": tensor(12, dtype="int64"),
    }  # fmt: skip
    c = cost_of("aten._embedding_bag_per_sample_weights_backward", inputs, [tensor(12)], mode=0)
    assert c.read == 4 * 12 * 16 + 4 * 4 * 16 + 8 * 12 + 8 * 12
    assert (c.written, c.vector_flops) == (4 * 12, 2 * 12 * 16)


def test_weight_norm_has_a_norm_for_each_slice() -> None:
    c = cost_of("aten._weight_norm_interface", {"v": tensor(8, 4, 3), "g": tensor(8, 1, 1)}, [tensor(8, 4, 3)], dim=0)
    assert (c.rows, c.cols, c.vector_flops) == (8, 12, 4 * 96)
