"""What a prediction says about a plan: the layout, where a rank's step goes, memory of each rank."""

from __future__ import annotations

from perfmodel.parallel.plan import Plan
from perfmodel.prediction import Prediction
from perfmodel.report.table import table

__all__ = ["plan_text", "rank_lines", "share_lines"]

_SHOWN_RANKS = 8


def plan_text(plan: Plan) -> str:
    """A plan in the field's words, what is off left out.

    >>> plan_text(Plan(tp=8, sp=True, pp=2, dp=4, zero=1, global_batch=64))
    'tp 8 with sp, pp 2, dp 4, zero 1; 1F1B, 16 micro-batches of 1'
    """
    parts = [f"tp {plan.tp}" + (" with sp" if plan.sp else "")] if plan.tp > 1 else []
    if plan.pp > 1:
        parts.append(f"pp {plan.pp}" + (f" × {plan.vpp} stages" if plan.vpp > 1 else ""))
    parts += [f"cp {plan.cp} ({plan.cp_kind})"] if plan.cp > 1 else []
    parts += [f"ep {plan.ep}"] if plan.ep > 1 else []
    parts.append(f"dp {plan.data_parallel}" + (f", zero {plan.zero}" if plan.zero else ""))
    rest = [plan.schedule] if plan.pp > 1 else []
    rest.append(f"{plan.micro_batches:,} micro-batches of {plan.micro_batch}")
    rest += [f"recompute {plan.recompute}"] if plan.recompute != "none" else []
    return f"{', '.join(parts)}; {', '.join(rest)}"


def share_lines(p: Prediction) -> list[str]:
    """Where the busiest rank's step goes, and how much of what it sends is hidden."""
    b = p.breakdown
    shares = ", ".join(f"{name} {seconds / p.step_time:.1%}" for name, seconds in b.time.items())
    lines = [f"  time        {shares}"]
    sent = []
    for name, seconds in b.communication.items():
        # What transfers between stages cost shows as bubble.
        hidden = "" if name == "pp" else f" ({1 - b.time.get(name, 0.0) / seconds:.0%} hidden)"
        sent.append(f"{name} {seconds / p.step_time:.1%}{hidden}")
    return [*lines, f"  sends       {', '.join(sent)}"] if sent else lines


def rank_lines(p: Prediction) -> list[str]:
    """Peak memory of each pipeline rank: all of them, or the ends and those that come nearest to their capacity."""
    ranks = list(p.ranks)
    if len(ranks) > _SHOWN_RANKS:
        full = sorted(ranks, key=lambda rank: -rank.peak / rank.capacity)[: _SHOWN_RANKS - 2]
        ranks = sorted({rank.rank: rank for rank in (ranks[0], ranks[-1], *full)}.values(), key=lambda rank: rank.rank)
    rows = [
        [
            f"{rank.rank}",
            f"{rank.peak / 2**30:,.2f} GiB",
            "" if rank.fits else "DOES NOT FIT",
            rank.action,
            f"{sum(rank.live.values())}",
            f"{rank.largest} {rank.at_peak[rank.largest] / 2**30:,.2f} GiB",
        ]
        for rank in ranks
    ]
    shown = table(["rank", "peak", "", "in", "live", "most of it"], rows)
    return [f"              {line}" for line in shown.splitlines()]
