"""Devices by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from perfmodel.hardware.device import Device
from perfmodel.hardware.files import file_of, index, is_path
from perfmodel.hardware.override import Override
from perfmodel.hardware.schema import device_of, load_device_file

__all__ = ["device_files", "device_names", "load_device"]


def load_device(name_or_path: str | os.PathLike[str], *, overrides: Mapping[str, Override] | None = None) -> Device:
    """Load a device by its catalogue name, an alias of it, or the path of its file.

    Parameters
    ----------
    name_or_path : str or path
        A path if it ends with ``.yaml`` or ``.yml`` or contains a separator; else a name.
    overrides : mapping, optional
        Other values by dotted path, e.g. ``{"memory.hbm.bandwidth": "4 TB/s"}``; see :meth:`Device.override`.

    Raises
    ------
    UnknownNameError
        If no device has that name; names the nearest ones.
    UnsupportedError
        If two devices claim the alias, or an override isn't valid.
    FileError
        If the file is missing or wrong.

    Examples
    --------
    >>> load_device("h100").name
    'nvidia-h100-sxm-80gb'
    """
    path = Path(name_or_path) if is_path(name_or_path) else file_of("device", str(name_or_path))
    return device_of(load_device_file(path, overrides), path, overrides)


def device_names() -> tuple[str, ...]:
    """Names of all devices of the catalogue, sorted.

    Raises
    ------
    FileError
        If a file of the catalogue isn't YAML with a name.
    """
    return tuple(sorted(index("device")))


def device_files() -> dict[str, Path]:
    """The file of each device of the catalogue, by name, sorted."""
    return {name: entry.path for name, entry in sorted(index("device").items())}
