"""The families of ops that timing tells apart, and that a device has constants for."""

__all__ = ["FAMILIES"]

#: The op families.
FAMILIES = (
    "matmul",  # one matrix product: mm, addmm, convolution as its implicit product
    "batched_matmul",  # bmm, baddbmm
    "attention",  # fused attention, forward
    "attention_backward",
    "recurrent",  # LSTM, GRU and plain recurrent layers: products that wait for each other
    "scan",  # state-space scans, forward and backward
    "elementwise",
    "reduction",
    "norm",
    "softmax",
    "gather",  # index reads: embedding, index_select, gather
    "scatter",  # index writes: embedding backward, index_put, scatter_add
    "copy",  # copies, casts, fills, concatenations
    "random",  # random numbers and dropout
    "optimizer",  # fused optimizer kernels
    "view",  # no kernel: only another look at the same storage
    "host",  # runs on the host: scalar answers, size queries
)
