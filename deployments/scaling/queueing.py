"""How many servers a level needs, by the M/M/n queue (Erlang C), corrected for how evenly requests take their time.

HAProxy sends each request to the replica with the fewest, which comes close to one queue for all.
"""

import math

VARIABILITY = 0.5
"""Of service times: variance over squared mean. 1 is exponential, 0 is constant."""


def waiting_share(servers: int, offered: float) -> float:
    """The share of requests that wait at all; `offered` is arrivals per second x seconds of service. Erlang C."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = _blocked(number, offered, blocked)
    return _waiting(servers, offered, blocked)


def late_share(servers: int, offered: float, service_s: float, budget_s: float) -> float:
    """The share of requests that wait longer than `budget_s`."""
    return _late(servers, offered, waiting_share(servers, offered), service_s, budget_s)


def replicas_for(offered: float, servers: float, service_s: float, budget_s: float, late: float) -> int:
    """The fewest replicas, of `servers` each, with which at most a share `late` waits longer than `budget_s`.

    `offered` is in replicas. Raises ValueError for a negative one. The time grows with the answer: 0.2 ms for a
    thousand replicas of one server.
    """
    if offered < 0:
        raise ValueError(f"offered is {offered}; allowed: 0 and above")
    each = max(1, round(servers))
    of_servers, blocked, number = offered * each, 1.0, 0
    while True:
        number += 1
        blocked = _blocked(number, of_servers, blocked)
        if number % each == 0 and number > of_servers:
            waiting = _waiting(number, of_servers, blocked)
            if _late(number, of_servers, waiting, service_s, budget_s) <= late:
                return number // each


def _blocked(servers: int, offered: float, with_one_fewer: float) -> float:
    """Erlang B, from that of one server fewer."""
    return offered * with_one_fewer / (servers + offered * with_one_fewer)


def _waiting(servers: int, offered: float, blocked: float) -> float:
    return 1.0 if offered >= servers else blocked / (1 - (offered / servers) * (1 - blocked))


def _late(servers: int, offered: float, waiting: float, service_s: float, budget_s: float) -> float:
    if offered >= servers:
        return 1.0
    mean_s = service_s * (1 + VARIABILITY) / 2  # Allen and Cunneen: the wait scales with it
    if mean_s <= 0:
        return 0.0
    return waiting * math.exp(-(servers - offered) * max(0.0, budget_s) / mean_s)
