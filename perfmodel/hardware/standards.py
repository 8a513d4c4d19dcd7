"""What published link standards carry, to tell bits from bytes and one direction from two.

A link whose name is one of a standard (``pcie5-x16``, ``nvlink4``, ``infiniband-ndr``,
``ethernet-100g``) can't be faster than that, and is hardly ever built slower than half of it.
"""

from __future__ import annotations

import re

__all__ = ["standard_rate"]

#: GB/s a lane in one direction, after line coding.
_PCIE_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
#: GB/s a link in one direction.
_NVLINK = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 50.0}
#: Gbit/s a port of four lanes.
_INFINIBAND = {"fdr": 56.0, "edr": 100.0, "hdr": 200.0, "ndr": 400.0, "xdr": 800.0}
_SLINGSHOT = {"10": 100.0, "11": 200.0, "400": 400.0}


def standard_rate(name: str) -> float | None:
    """Bytes/s in one direction of the standard that ``name`` names; ``None`` for any other name.

    >>> standard_rate("pcie5-x16"), standard_rate("infiniband-ndr"), standard_rate("roce-100g"), standard_rate("ring")
    (63008000000.0, 50000000000.0, 12500000000.0, None)
    """
    text = name.lower()
    if match := re.fullmatch(r"pcie-?([1-6])(?:\.0)?[-x]+([0-9]{1,2})", text):
        return round(_PCIE_LANE[int(match[1])] * int(match[2]) * 1e9, 3)
    if match := re.fullmatch(r"nvlink-?([1-5])", text):
        return _NVLINK[int(match[1])] * 1e9
    if match := re.fullmatch(r"(?:infiniband|ib)-(fdr|edr|hdr|ndr|xdr)", text):
        return _INFINIBAND[match[1]] * 1e9 / 8
    if match := re.fullmatch(r"(?:ethernet|roce|efa|omni-path|opa)-([0-9]{1,4})(?:g|gbe)?", text):
        return float(match[1]) * 1e9 / 8
    if match := re.fullmatch(r"slingshot-(10|11|400)", text):
        return _SLINGSHOT[match[1]] * 1e9 / 8
    return None
