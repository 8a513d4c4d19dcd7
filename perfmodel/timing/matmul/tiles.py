"""How libraries cut a matrix product into tiles: facts about software and chips, each with its source.

A menu is a set of tiles of which the library takes the fastest, split along k or not. Some libraries choose
by a fixed rule of the shape instead; that rule is then the menu's ``rule``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnknownNameError

__all__ = ["MENUS", "Menu", "Tile", "menu_named"]

Floats = npt.NDArray[np.float64]

#: ``(m, n, k, units)`` -> index of the tile of each product.
Rule = Callable[[Floats, Floats, Floats, float], npt.NDArray[np.intp]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A part of the result, ``m`` rows of ``n`` columns, computed by ``units`` units together in steps of ``k``."""

    m: int
    n: int
    k: int
    units: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """What a library may choose from.

    Attributes
    ----------
    name : str
    tiles : tuple of Tile
    splits : tuple of int
        Into how many parts k may be cut; the parts' sums need a second kernel.
    rule : callable, optional
        Which tile the library takes; ``None``: the fastest.
    lanes : int
        Units of the device's vector arithmetic that work on one tile.
    feed : float
        Bytes that a unit can take from the cache at each clock; twice as many where two units of a cluster share
        an operand that is read once.
    resident : float
        Share of the cache next to main memory in which operands stay from one kernel to the next.
    shared_issue : bool
        Whether loads take instruction slots from the arithmetic: then the times to feed and to compute a tile
        add up. Without a matrix unit they do where an operand's k is its fast dimension, as for nn.Linear: it is
        transposed on its way to shared memory.
    source : str
    """

    name: str
    tiles: tuple[Tile, ...]
    source: str
    splits: tuple[int, ...] = (1,)
    rule: Rule | None = None
    lanes: int = 1
    feed: float = 64.0
    resident: float = 0.0
    shared_issue: bool = False


#: 64 bytes a clock and multiprocessor between L1 and L2 since Volta (Jia et al., 2018, *Dissecting the NVIDIA Volta
#: GPU architecture via microbenchmarking*, table 3.1); Hopper's clusters read for two at once (TMA multicast).
_CLUSTER = 2 * 64.0

_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_POWERS = (1, 2, 4, 8, 16)


def _tiles(k: int, *sizes: tuple[int, int], units: int = 1) -> tuple[Tile, ...]:
    """Each size in both orientations."""
    both = sorted({size for m, n in sizes for size in ((m, n), (n, m))}, reverse=True)
    return tuple(Tile(m=m, n=n, k=k, units=units) for m, n in both)


def _scaled_sm90(m: Floats, n: Floats, k: Floats, units: float) -> npt.NDArray[np.intp]:
    del k, units
    narrow = (m <= 16) | ((m <= 64) & (n <= 1280))
    return np.select([narrow, m <= 64, m <= 128], [0, 1, 2], 3)


def _scaled_sm100(m: Floats, n: Floats, k: Floats, units: float) -> npt.NDArray[np.intp]:
    del n, k, units
    return np.select([m <= 16, m <= 64, m <= 256], [0, 1, 2], 3)


def _blockwise_sm100(m: Floats, n: Floats, k: Floats, units: float) -> npt.NDArray[np.intp]:
    del k
    across = np.ceil(n / 128)
    fits = [m <= 64, across * np.ceil(m / 64) <= units, across * np.ceil(m / 128) <= units]
    return np.select(fits, [0, 1, 2], 3)


def _fp4_sm100(m: Floats, n: Floats, k: Floats, units: float) -> npt.NDArray[np.intp]:
    del n, k, units
    return np.select([m <= 16, m <= 256], [0, 1], 2)


_AMPERE = _tiles(32, (256, 128), (256, 64), (128, 128), (128, 64), (64, 64), (128, 32), (64, 32))
_AMPERE += (Tile(m=16, n=128, k=32), Tile(m=16, n=64, k=32))
_VLLM = "https://github.com/vllm-project/vllm, csrc/quantization"

#: Every menu by its name.
MENUS: dict[str, Menu] = {
    menu.name: menu
    for menu in (
        Menu(
            name="cublas-ampere",
            tiles=_AMPERE,
            splits=_SPLITS,
            source="kernels ampere_…gemm_MxN and cutlass_…_MxN of cuBLAS 11 and 12 in profiles; "
            "CUTLASS, tiles of its SM80 profiler",
        ),
        Menu(
            name="cublas-ada",
            tiles=_AMPERE,
            splits=_SPLITS,
            resident=1.0,
            source="as cublas-ampere. AD102 has one large L2; those of GA100, GH100 and GB100 are two halves that "
            "mirror each other, and nothing in the measured rows tells of operands that stayed in them",
        ),
        Menu(
            name="cublas-hopper",
            feed=_CLUSTER,
            tiles=_tiles(
                64,
                *(
                    (256, 128),
                    (256, 96),
                    (256, 64),
                    (256, 32),
                    (256, 16),
                    (192, 192),
                    (192, 128),
                    (192, 64),
                    (160, 128),
                ),
                *((128, 128), (128, 96), (128, 64), (128, 32), (128, 16), (128, 8), (96, 64)),
                *((64, 64), (64, 32), (64, 16), (64, 8)),
            ),
            splits=_POWERS,
            source="kernels nvjet_…_MxN of cuBLAS 12 in published profiles of H100, with and without splitK: "
            "64 along k, N in steps of 8 up to 256",
        ),
        Menu(
            name="cublas-blackwell",
            feed=_CLUSTER,
            tiles=_tiles(64, (256, 256), (256, 192), (256, 128), (256, 96), (256, 64), units=2)
            + _tiles(
                64,
                *((256, 128), (192, 128), (128, 128), (192, 64), (128, 64), (64, 64)),
                *((128, 32), (64, 32), (64, 16), (128, 16), (64, 8), (128, 8)),
            ),
            splits=_POWERS,
            source="kernels nvjet_…_MxN_…2cta of cuBLAS 12.8 in published profiles of B200: two multiprocessors "
            "share a tile of 256",
        ),
        Menu(
            name="cublas-simt",
            tiles=_tiles(8, (128, 128), (128, 64), (128, 32), (64, 64), (64, 32), (32, 32)),
            splits=_SPLITS,
            shared_issue=True,
            source="kernels maxwell_, volta_ and ampere_sgemm_MxN in the measured rows",
        ),
        Menu(
            name="cublas-simt-batched-pascal",
            tiles=(Tile(m=64, n=128, k=8),),
            source="maxwell_sgemm_128x64_nn, the kernel of every measured batched product but 16 on P100",
        ),
        Menu(
            name="cublas-simt-batched-volta",
            tiles=(Tile(m=64, n=64, k=8), Tile(m=128, n=32, k=8), Tile(m=32, n=128, k=8)),
            source="volta_sgemm_64x64_nn, 32x128_nn and 128x32_nn, the kernels of measured batched products on V100",
        ),
        Menu(
            name="cublas-simt-batched-ampere",
            tiles=(Tile(m=128, n=128, k=8),),
            source="ampere_sgemm_128x128_nn, the kernel of every measured batched product but 16 on A100",
        ),
        Menu(
            name="cublas-simt-batched-hopper",
            tiles=_tiles(8, (128, 128), (256, 64), (128, 64), (64, 64), (128, 32), (32, 32)),
            source="sm80_xmma_gemm_f32f32_…_tilesizeMxN, the kernels of measured batched products on H100",
        ),
        Menu(
            name="rocblas",
            tiles=_tiles(16, (128, 160), (144, 128), (128, 128), (128, 96), (144, 64), (128, 64), (96, 96), (64, 64))
            + _tiles(32, (64, 32), (32, 32), (64, 16), (16, 16)),
            splits=_SPLITS,
            source="Cijk_…_MTMxNxK, the kernels of measured products on MI100 (Tensile)",
        ),
        Menu(
            name="rocblas-batched",
            tiles=_tiles(16, (144, 128), (128, 128), (144, 64), (128, 64), (96, 96), (64, 64))
            + _tiles(32, (128, 32), (64, 32), (32, 32), (64, 16), (16, 16)),
            source="as rocblas; batched kernels aren't split",
        ),
        Menu(
            name="cutlass-scaled-sm90",
            feed=_CLUSTER,
            tiles=(
                Tile(m=16, n=64, k=256),
                Tile(m=64, n=64, k=256),
                Tile(m=64, n=128, k=128),
                Tile(m=128, n=128, k=128),
            ),
            rule=_scaled_sm90,
            source=f"{_VLLM}/w8a8/cutlass/c3x/scaled_mm_sm90_fp8_dispatch.cuh",
        ),
        Menu(
            name="cutlass-scaled-sm100",
            feed=_CLUSTER,
            tiles=(
                Tile(m=32, n=128, k=128),
                Tile(m=64, n=128, k=256),
                Tile(m=128, n=128, k=128),
                Tile(m=256, n=128, k=128, units=2),
            ),
            rule=_scaled_sm100,
            source=f"{_VLLM}/w8a8/cutlass/c3x/scaled_mm_sm100_fp8_dispatch.cuh",
        ),
        Menu(
            name="cutlass-blockwise-sm100",
            feed=_CLUSTER,
            tiles=(
                Tile(m=16, n=128, k=128),
                Tile(m=64, n=128, k=128),
                Tile(m=128, n=128, k=128),
                Tile(m=256, n=128, k=128, units=2),
            ),
            rule=_blockwise_sm100,
            source=f"{_VLLM}/w8a8/cutlass/c3x/scaled_mm_blockwise_sm100_fp8_dispatch.cuh",
        ),
        Menu(
            name="cutlass-fp4-sm100",
            feed=_CLUSTER,
            tiles=(
                Tile(m=128, n=128, k=256),
                Tile(m=256, n=128, k=256, units=2),
                Tile(m=256, n=256, k=256, units=2),
            ),
            rule=_fp4_sm100,
            source=f"{_VLLM}/fp4/nvfp4_scaled_mm_kernels.cu",
        ),
        Menu(
            name="deepgemm-sm90",
            feed=_CLUSTER,
            tiles=_tiles(
                128,
                *((128, 256), (128, 192), (128, 128), (128, 96), (128, 64), (128, 32), (128, 16)),
                *((64, 128), (64, 64), (64, 32), (64, 16)),
            ),
            source="https://github.com/deepseek-ai/DeepGEMM: blocks of 64, 128 or 256 rows, 16 to 256 "
            "columns in steps of 8 or 16, k in steps of 128, never split",
        ),
        Menu(
            name="composable-kernel",
            tiles=_tiles(128, (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (128, 32), (64, 32), (64, 16)),
            splits=_SPLITS,
            source="https://github.com/ROCm/aiter: tuned instances of Composable Kernel, 16 to 256 rows, k may be cut",
        ),
        Menu(
            name="xe2",
            tiles=_AMPERE,
            splits=_SPLITS,
            resident=1.0,
            lanes=8,
            source="Intel Xe2: 8 vector engines, one tile's, in each Xe core; oneDNN's GEMM kernels have such tiles",
        ),
    )
}


def menu_named(name: str) -> Menu:
    """The menu of a name.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    try:
        return MENUS[name]
    except KeyError:
        raise UnknownNameError("tile menu", name, MENUS) from None
