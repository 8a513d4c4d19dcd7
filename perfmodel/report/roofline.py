"""Roofline plot of a predicted step."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from perfmodel.errors import FileError, MissingDependencyError
from perfmodel.hardware import Device
from perfmodel.prediction import Prediction

__all__ = ["plot_roofline"]


def plot_roofline(prediction: Prediction, device: Device, path: str | os.PathLike[str]) -> None:
    """Each op class by module as a point under the device's roof; areas are shares of the step.

    Parameters
    ----------
    prediction : Prediction
    device : Device
        The device that it's for.
    path : path
        Where the picture goes; its ending decides the format (png, svg, pdf).

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    FileError
        If the file can't be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        raise MissingDependencyError("matplotlib", "a plot", "plot") from None
    groups: dict[tuple[str, str], list[float]] = {}
    for op in prediction.ops:
        if op.time > 0 and op.bytes > 0:
            total = groups.setdefault((op.family, op.phase), [0.0, 0.0, 0.0])
            for i, value in enumerate((op.matrix_flops + op.vector_flops, op.bytes, op.time)):
                total[i] += value * op.times
    peak = device.peak("matrix", prediction.compute_dtype)
    bandwidth = device.main_memory.bandwidth
    figure, axes = plt.subplots(figsize=(9, 6))
    intensity = np.logspace(-2, 4.5, 200)
    axes.loglog(
        intensity,
        np.minimum(peak, intensity * bandwidth),
        color="black",
        label=f"{prediction.compute_dtype} matrix and memory roof",
    )
    busy = prediction.breakdown.device_busy
    families = list(dict.fromkeys(family for family, _ in groups))
    markers = {"forward": "o", "backward": "s", "recompute": "^", "optimizer": "D"}
    for (family, phase), (flops, size, time) in groups.items():
        if flops <= 0:
            continue
        axes.scatter(
            flops / size,
            flops / time,
            s=30 + 2500 * time / busy,
            alpha=0.6,
            color=f"C{families.index(family) % 10}",
            marker=markers.get(phase, "o"),
            label=f"{family}, {phase}: {time / busy:.1%}",
        )
    axes.set_xlabel("operations per byte of eager traffic")
    axes.set_ylabel("operations per second")
    axes.set_title(f"{prediction.model} on {prediction.device} ({prediction.runtime}); area: share of device time")
    axes.grid(True, which="both", alpha=0.2)
    legend = axes.legend(fontsize=7, loc="lower right")
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([30])
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
        temporary.replace(target)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise FileError(
            f"{path}: can't be written: {error}; choose a writable place and an ending such as .png"
        ) from None
    finally:
        plt.close(figure)
