"""How many servers a level needs, by the M/M/n queue (Erlang C), corrected for how evenly requests take their time.

HAProxy sends each request to the replica with the fewest, which comes close to one queue for all.
"""

import math

VARIABILITY = 0.5
"""Of service times: variance over squared mean. 1 is exponential, 0 is constant."""


def waiting_share(servers: int, offered: float) -> float:
    """The share of requests that wait at all; `offered` is arrivals per second x seconds of service. Erlang C."""
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for number in range(1, servers + 1):  # Erlang B
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - (offered / servers) * (1 - blocked))


def late_share(servers: int, offered: float, service_s: float, budget_s: float) -> float:
    """The share of requests that wait longer than `budget_s`."""
    if offered >= servers:
        return 1.0
    mean_s = service_s * (1 + VARIABILITY) / 2  # Allen and Cunneen: the wait scales with it
    if mean_s <= 0:
        return 0.0
    patience = (servers - offered) * max(0.0, budget_s) / mean_s
    return waiting_share(servers, offered) * math.exp(-patience)


def replicas_for(offered: float, servers: float, service_s: float, budget_s: float, late: float) -> int:
    """The fewest replicas, of `servers` each, with which at most a share `late` waits longer than `budget_s`.

    `offered` is in replicas. Raises ValueError for a negative one.
    """
    if offered < 0:
        raise ValueError(f"offered is {offered}; allowed: 0 and above")
    each = max(1, round(servers))
    replicas = max(1, math.floor(offered) + 1)
    while late_share(replicas * each, offered * each, service_s, budget_s) > late:
        replicas += 1
    return replicas
