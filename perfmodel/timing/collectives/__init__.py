"""How long collective operations take.

::

    group = group_of(cluster, ranks)             where the ranks sit
    collective_time("all_reduce", 2**28, group)  seconds, algorithm, protocol, interval
    collective_times("all_reduce", sizes, …)     the same over arrays
"""

from perfmodel.timing.collectives.group import Network, RankGroup, group_of, network_of, regular_group
from perfmodel.timing.collectives.model import ALGORITHMS, OPS, PROTOCOLS
from perfmodel.timing.collectives.paths import LinkLoad, link_capacity, link_loads, transfer_path
from perfmodel.timing.collectives.route import Route
from perfmodel.timing.collectives.time import (
    CollectiveTime,
    CollectiveTimes,
    bus_factor,
    collective_time,
    collective_times,
)
from perfmodel.timing.collectives.torus import torus_time

__all__ = [
    "ALGORITHMS",
    "OPS",
    "PROTOCOLS",
    "CollectiveTime",
    "CollectiveTimes",
    "LinkLoad",
    "Network",
    "RankGroup",
    "Route",
    "bus_factor",
    "collective_time",
    "collective_times",
    "group_of",
    "link_capacity",
    "link_loads",
    "network_of",
    "regular_group",
    "torus_time",
    "transfer_path",
]
