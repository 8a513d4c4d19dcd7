"""Products on units that each compute a tile of the result at a time: GPUs.

Legend, for one product of b times m x n x k whose elements take e bytes: U units with peak P together, C the bytes/s
that the cache could feed them, feed x clock x U, main memory bandwidth W; a tile of t_m x t_n computed by u units in
steps of t_k, k cut into s parts::

    waves = ceil(b ceil(m / t_m) ceil(n / t_n) s u / U)
    k_s   = t_k ceil(k / (s t_k))
    tile  = k_s (U / u) max(2 t_m t_n / (P rate), e (t_m + t_n) / (C cache)) + fill       (sum, if issue is shared)
    loop  = waves tile (1 + throttle L / (L + 1 ms)),  L = waves tile
    read  = bytes of x and w that come from main memory / (W bandwidth);  write = those of the result, alike
    time  = launch + max(loop, read + (1 - store) write) + store write
            + (s > 1: launch + split + 8 s b m n / (C cache))          the parts are added by another kernel

``launch``, ``fill`` and ``split`` are counted in clocks. ``rate``, ``bandwidth`` and ``cache`` are the shares that a
large product reaches. ``throttle``: a chip at its power limit lowers its clock within about a millisecond; in a step,
where products follow each other, it always has. ``store`` is the share of the writing that the next tile's work
doesn't hide.

The tile and s are those of the least time over the library's menu, or what its rule says. Every term grows with
every size and falls with U at a given peak a unit, so their minimum does too.

Waves and tiles as in Li et al., *NeuSight* (2025), section 4; split k as in Osama et al., *Stream-K* (2023).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from perfmodel.timing.matmul.products import Format, Machine, Products
from perfmodel.timing.matmul.tiles import Menu, Tile

__all__ = ["TileConstants", "tiled_time"]

Floats = npt.NDArray[np.float64]

_CHUNK = 4096  # cases at a time: their temporaries stay in a core's cache
_SETTLING = 1e-3  # s: the time constant of power management
_EXACT = 1 - 1e-12
_PARTIAL = 4.0  # bytes of an element of a partial sum


@dataclass(frozen=True, slots=True, kw_only=True)
class TileConstants:
    """Constants of the formula above; ``launch``, ``fill`` and ``split`` count clocks. Some needn't be stated."""

    rate: float
    bandwidth: float
    cache: float
    launch: float
    throttle: float = 0.0
    store: float = 1.0
    fill: float = 0.0
    split: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Some cases: products and the machine, each value a number or an array of the same length."""

    products: Products
    machine: Machine


def tiled_time(
    products: Products, form: Format, machine: Machine, constants: TileConstants, menu: Menu, *, sustained: bool = False
) -> Floats:
    """Seconds of each product.

    Parameters
    ----------
    products : Products
        Arrays that broadcast against each other and against ``machine``.
    form : Format
    machine : Machine
    constants : TileConstants
    menu : Menu
    sustained : bool
        The chip is at its power limit already, as in a step; otherwise only long products are throttled.

    Returns
    -------
    ndarray
        Of the broadcast shape.
    """
    names = [field.name for field in fields(Machine)]
    given = [products.b, products.m, products.n, products.k, products.uneven]
    given += [getattr(machine, name) for name in names]
    arrays = [np.asarray(value, float) for value in given]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    size = int(np.prod(shape, dtype=np.int64))
    flat = [array if array.size == 1 else np.broadcast_to(array, shape).reshape(-1) for array in arrays]
    time = np.empty(size)
    for start in range(0, size, _CHUNK):
        part = slice(start, min(start + _CHUNK, size))
        b, m, n, k, uneven, *rest = (array.reshape(-1) if array.size == 1 else array[part] for array in flat)
        chunk = _Chunk(
            products=Products(b=b, m=m, n=n, k=k, uneven=uneven, copies=products.copies),
            machine=Machine(**dict(zip(names, rest, strict=True))),
        )
        time[part] = _chunk_time(chunk, form, constants, menu, sustained)
    return time.reshape(shape)


def _chunk_time(chunk: _Chunk, form: Format, constants: TileConstants, menu: Menu, sustained: bool) -> Floats:
    products, machine = chunk.products, chunk.machine
    elements = products.b * products.m * products.n
    units = np.asarray(machine.units / menu.lanes, float)
    near = np.asarray(units * machine.clock * menu.feed * constants.cache, float)
    x, w, out = _sizes(products, form)
    kept = menu.resident * machine.cache if products.copies is not None else 0.0
    absent = _misses((products.copies or 1.0) * (x + w) + out, kept)
    overwritten = 1 - _misses(x + w + out, kept)
    far = machine.bandwidth * constants.bandwidth
    read = (x + w) * absent / far
    write = np.maximum(out * (1 - overwritten) / far, out / near)
    start = constants.launch / machine.clock
    hidden, shown = read + (1 - constants.store) * write, constants.store * write

    best: Floats | None = None
    for split, loop in _loops(chunk, form, constants, menu, units, near):
        busy = loop if sustained else loop * loop / (loop + _SETTLING)
        time = np.maximum(loop + constants.throttle * busy, hidden) + shown
        if split > 1:
            time = time + (start + constants.split / machine.clock + 2 * _PARTIAL * split * elements / near)
        best = time if best is None else np.minimum(best, time)
    assert best is not None
    # Whatever the tiles, all operands pass the nearest memory once.
    time = start + np.maximum(best, (x + w + out) / machine.cache_bandwidth)
    if form.quantized_from:
        both = products.b * products.m * products.k * form.quantized_from + x
        time = time + start + np.maximum(both * _misses(both + w + out, kept) / far, both / near)
    return np.asarray(time, float)


def _loops(
    chunk: _Chunk, form: Format, constants: TileConstants, menu: Menu, units: Floats, near: Floats
) -> list[tuple[int, Floats]]:
    """For each split of k the main loop of the tile with the shortest one."""
    products, machine = chunk.products, chunk.machine
    if menu.rule is not None:
        index = menu.rule(products.m, products.n, products.k, float(np.min(units)))
        index = np.broadcast_to(index, np.broadcast_shapes(np.shape(index), products.m.shape, products.n.shape))
        column = {name: np.array([getattr(tile, name) for tile in menu.tiles], float)[index] for name in Tile.__slots__}
        slow = _pace(column["m"], column["n"], column["units"], form, menu, constants, machine, units, near)
        tiles = _rows(products, column["m"]) * np.ceil(products.n / column["n"])
        deep = np.ceil(products.k / column["k"]) * column["k"]
        return [(1, np.ceil(tiles * column["units"] / units) * (deep * slow + constants.fill / machine.clock))]
    rows = {size: _rows(products, size) for size in {tile.m for tile in menu.tiles}}
    columns = {size: np.ceil(products.n / size) for size in {tile.n for tile in menu.tiles}}
    paces = [_pace(tile.m, tile.n, tile.units, form, menu, constants, machine, units, near) for tile in menu.tiles]
    shape = np.broadcast_shapes(*(np.shape(value) for value in (products.b, products.m, products.n, products.k, units)))
    # A little less, so that a full wave times a split isn't rounded up to two.
    tiles = [rows[tile.m] * columns[tile.n] * (tile.units * _EXACT) / units for tile in menu.tiles]
    time, more = np.empty(shape), np.empty(shape)
    found = []
    for split in menu.splits:
        deep = {step: np.ceil(products.k / (split * step)) * step for step in {tile.k for tile in menu.tiles}}
        loop = np.full(shape, np.inf)
        for tile, count, pace in zip(menu.tiles, tiles, paces, strict=True):
            # In place: this is where a sweep's time goes.
            np.ceil(np.multiply(count, split, out=time), out=time)
            np.multiply(deep[tile.k], pace, out=more)
            if constants.fill:
                np.add(more, constants.fill / machine.clock, out=more)
            np.minimum(loop, np.multiply(time, more, out=time), out=loop)
        found.append((split, loop))
    return found


def _pace(
    m: Floats | int,
    n: Floats | int,
    units: Floats | int,
    form: Format,
    menu: Menu,
    constants: TileConstants,
    machine: Machine,
    all_units: Floats,
    near: Floats,
) -> Floats:
    """Seconds that the units of one tile take for one step of k."""
    arithmetic = 2.0 * m * n / (machine.peak * constants.rate)
    feeding = form.operand * (m + n) / near
    both = arithmetic + feeding if menu.shared_issue else np.maximum(arithmetic, feeding)
    return np.asarray(both * all_units / units, float)


def _rows(products: Products, size: Floats | int) -> Floats:
    """Tiles down the results of all b products; of an uneven group the largest product is counted by itself."""
    b, m, uneven = products.b, products.m, np.asarray(products.uneven)
    if np.all(uneven == 1):
        return np.asarray(b * np.ceil(m / size), float)
    largest = np.minimum(uneven, b) * m
    others = np.maximum(b - 1, 0)
    rest = (b * m - largest) / np.maximum(others, 1)
    return np.asarray(np.ceil(largest / size) + others * np.ceil(rest / size), float)


def _sizes(products: Products, form: Format) -> tuple[Floats, Floats, Floats]:
    """Bytes of x, w and the result."""
    b, m, n, k = products.b, products.m, products.n, products.k
    return b * m * k * form.operand, b * k * n * form.operand, b * m * n * form.result


def _misses(distance: Floats, cache: Floats | float) -> Floats:
    """Share of an operand that main memory serves: it left the cache while ``distance`` bytes passed.

    All of it stays while they fill at most half of the cache, nothing once they fill it.
    """
    if np.all(np.asarray(cache) == 0):
        return np.ones(())
    return np.asarray(np.clip(2 * distance / cache - 1, 0.0, 1.0), float)
