"""Hardware as data: devices, nodes, fabrics and clusters described in YAML, a source for every number."""

from typing import TYPE_CHECKING

from perfmodel._lazy import lazy

if TYPE_CHECKING:
    from perfmodel.hardware.catalogue import device_files, device_names, load_device
    from perfmodel.hardware.check import check_file
    from perfmodel.hardware.device import Calibration, ComputeUnit, Device, Link, MemoryLevel, Power, Price
    from perfmodel.hardware.fabric import Fabric, Tier, Torus
    from perfmodel.hardware.files import SEARCH_VARIABLE, hardware_roots
    from perfmodel.hardware.listing import records
    from perfmodel.hardware.system import Cluster, Failures, Group, Host, Interconnect, Location, Nic, Node
    from perfmodel.hardware.systems import load_cluster, load_fabric, load_node

_ROOMS = {
    "catalogue": ("device_files", "device_names", "load_device"),
    "check": ("check_file",),
    "device": ("Calibration", "ComputeUnit", "Device", "Link", "MemoryLevel", "Power", "Price"),
    "files": ("SEARCH_VARIABLE", "hardware_roots"),
    "listing": ("records",),
    "fabric": ("Fabric", "Tier", "Torus"),
    "system": ("Cluster", "Failures", "Group", "Host", "Interconnect", "Location", "Nic", "Node"),
    "systems": ("load_cluster", "load_fabric", "load_node"),
}

__all__ = [
    "SEARCH_VARIABLE",
    "Calibration",
    "Cluster",
    "ComputeUnit",
    "Device",
    "Fabric",
    "Failures",
    "Group",
    "Host",
    "Interconnect",
    "Link",
    "Location",
    "MemoryLevel",
    "Nic",
    "Node",
    "Power",
    "Price",
    "Tier",
    "Torus",
    "check_file",
    "device_files",
    "device_names",
    "hardware_roots",
    "load_cluster",
    "load_device",
    "load_fabric",
    "load_node",
    "records",
]

__getattr__ = lazy(__name__, {name: f"{__name__}.{room}" for room, names in _ROOMS.items() for name in names})
