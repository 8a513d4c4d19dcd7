"""Studies of single kernels: fits, scores on kernels that weren't fitted, constants for the device files."""
