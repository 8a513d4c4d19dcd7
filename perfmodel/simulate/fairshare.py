"""Max-min fair sharing of links among transfers.

Progressive filling (Bertsekas and Gallager, "Data Networks", section 6.5.2): every transfer's
rate grows alike until a link is full; the transfers on that link keep what they have, and the
others go on growing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["fair_rates"]


def fair_rates(routes: Mapping[int, Sequence[int]], bandwidth: Sequence[float]) -> dict[int, float]:
    """The rate of each transfer in bytes/s.

    Parameters
    ----------
    routes : mapping from transfer to the links it takes
        Each transfer takes at least one link; a link taken twice counts twice.
    bandwidth : sequence of float
        Bytes/s of each link.

    Examples
    --------
    >>> fair_rates({0: [0], 1: [0, 1], 2: [1]}, [10.0, 4.0])
    {1: 2.0, 2: 2.0, 0: 8.0}
    """
    on_link: dict[int, dict[int, int]] = {}
    for transfer, links in routes.items():
        for link in links:
            users = on_link.setdefault(link, {})
            users[transfer] = users.get(transfer, 0) + 1
    left = {link: bandwidth[link] for link in on_link}
    weight = {link: sum(users.values()) for link, users in on_link.items()}
    rates: dict[int, float] = {}
    while len(rates) < len(routes):
        full = min((link for link in weight if weight[link]), key=lambda link: (left[link] / weight[link], link))
        share = left[full] / weight[full]
        for transfer in sorted(on_link[full]):
            if transfer in rates:
                continue
            rates[transfer] = share
            for link in routes[transfer]:
                left[link] = max(left[link] - share, 0.0)
                weight[link] -= 1
    return rates
