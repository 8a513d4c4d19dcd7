"""Hardware as data: devices described in YAML, loaded into frozen types with a source for every number."""

from perfmodel.hardware.catalogue import (
    SEARCH_VARIABLE,
    check_file,
    device_files,
    device_names,
    hardware_roots,
    load_device,
)
from perfmodel.hardware.device import Calibration, ComputeUnit, Device, Link, MemoryLevel, Power, Price

__all__ = [
    "SEARCH_VARIABLE",
    "Calibration",
    "ComputeUnit",
    "Device",
    "Link",
    "MemoryLevel",
    "Power",
    "Price",
    "check_file",
    "device_files",
    "device_names",
    "hardware_roots",
    "load_device",
]
