"""When the tasks of a step run: two engines, and the timeline they make."""

from perfmodel.simulate.engine import Engine, simulate
from perfmodel.simulate.fairshare import fair_rates
from perfmodel.simulate.jitter import Makespans, Straggler, jitter
from perfmodel.simulate.timeline import CriticalStep, Timeline

__all__ = ["CriticalStep", "Engine", "Makespans", "Straggler", "Timeline", "fair_rates", "jitter", "simulate"]
