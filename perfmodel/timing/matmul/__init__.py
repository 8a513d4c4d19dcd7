"""How long a matrix product takes: tiles and waves on GPUs, systolic arrays, packed blocks on CPUs."""

from perfmodel.timing.matmul.blocked import BlockConstants, packed_time, systolic_time
from perfmodel.timing.matmul.model import MatmulModel, kernel_of, matmul_time, model_of
from perfmodel.timing.matmul.products import FORMATS, Format, Machine, Products, machine_of, products_of
from perfmodel.timing.matmul.tiled import TileConstants, tiled_time
from perfmodel.timing.matmul.tiles import MENUS, Menu, Tile, menu_named

__all__ = [
    "FORMATS",
    "MENUS",
    "BlockConstants",
    "Format",
    "Machine",
    "MatmulModel",
    "Menu",
    "Products",
    "Tile",
    "TileConstants",
    "kernel_of",
    "machine_of",
    "matmul_time",
    "menu_named",
    "model_of",
    "packed_time",
    "products_of",
    "systolic_time",
    "tiled_time",
]
