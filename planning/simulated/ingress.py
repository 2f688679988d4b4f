"""The ingress: which replica gets a request, and which request none gets."""

from typing import Generic, Protocol, TypeVar

from deployments.ingress.overload import SURE_PERCENT

SURE_SHARE = SURE_PERCENT / 100


class Server(Protocol):
    """A replica as HAProxy sees it: by its own count of requests inside, and by what the replica said last.

    It said that it is free at `free_at_s`, and that each request inside delays a new one by `row_s`.
    """

    inside: int
    free_at_s: float
    row_s: float


ServerT = TypeVar("ServerT", bound=Server)


class LeastConnections(Generic[ServerT]):
    """HAProxy's `balance leastconn`, which Ray Serve configures: the server with the fewest requests inside; of those,
    the one whose number changed longest ago.
    """

    def __init__(self) -> None:
        self._by_inside: list[dict[ServerT, None]] = [{}]
        self._lowest = 0
        self.servers: dict[ServerT, None] = {}

    def __len__(self) -> int:
        return len(self.servers)

    def add(self, server: ServerT) -> None:
        self.servers[server] = None
        self._put(server)

    def remove(self, server: ServerT) -> None:
        del self.servers[server]
        del self._by_inside[server.inside][server]

    def take(self) -> ServerT:
        """A server, which has one more request inside from now on."""
        by_inside = self._by_inside
        while not by_inside[self._lowest]:
            self._lowest += 1
        server = next(iter(by_inside[self._lowest]))
        del by_inside[self._lowest][server]
        server.inside += 1
        self._put(server)
        return server

    def release(self, server: ServerT) -> None:
        """A request has left the server."""
        if server in self.servers:
            del self._by_inside[server.inside][server]
            server.inside -= 1
            self._put(server)
        else:
            server.inside -= 1

    def is_late(self, now_s: float, left_s: float, max_wait_s: float) -> bool:
        """Whether no server can begin in time, by what they said (deployments/ingress/overload.py)."""
        due_s = now_s + min(SURE_SHARE * left_s, max_wait_s)
        return all(max(one.free_at_s, now_s + one.inside * one.row_s) > due_s for one in self.servers)

    def _put(self, server: ServerT) -> None:
        while len(self._by_inside) <= server.inside:
            self._by_inside.append({})
        self._by_inside[server.inside][server] = None
        self._lowest = min(self._lowest, server.inside)
