"""The ingress sends requests as HAProxy's leastconn does, and refuses as our lines in its file do."""

from hypothesis import given
from hypothesis import strategies as st

from planning.simulated.ingress import SURE_SHARE, LeastConnections


class Server:
    def __init__(self, name: int = 0) -> None:
        self.name, self.inside, self.free_at_s, self.row_s = name, 0, 0.0, 0.0


@given(
    st.lists(st.tuples(st.sampled_from(["take", "take", "release", "add", "remove"]), st.integers(0, 9)), max_size=80)
)
def test_the_server_with_the_fewest_inside_is_taken_the_one_that_waits_longest_first(
    steps: list[tuple[str, int]],
) -> None:
    """Against a list that is searched from the start."""
    ingress: LeastConnections[Server] = LeastConnections()
    waiting: list[Server] = []  # in the order in which their numbers changed
    inside: list[Server] = []
    for number, (step, choice) in enumerate(steps):
        if step == "add":
            server = Server(number)
            ingress.add(server)
            waiting.append(server)
        elif step == "take" and waiting:
            least = min(one.inside for one in waiting)
            expected = next(one for one in waiting if one.inside == least)
            assert ingress.take() is expected
            waiting.remove(expected)
            waiting.append(expected)
            inside.append(expected)
        elif step == "release" and inside:
            server = inside.pop(choice % len(inside))
            before = server.inside
            ingress.release(server)
            assert server.inside == before - 1
            if server in waiting:
                waiting.remove(server)
                waiting.append(server)
        elif step == "remove" and waiting:
            server = waiting.pop(choice % len(waiting))
            ingress.remove(server)
        assert len(ingress) == len(waiting)


def test_a_request_is_refused_where_every_server_said_that_it_is_busy_for_too_long() -> None:
    ingress: LeastConnections[Server] = LeastConnections()
    busy, free = Server(), Server()
    ingress.add(busy)
    ingress.add(free)
    busy.free_at_s = free.free_at_s = 100.0 + 10.0
    assert ingress.is_late(100.0, left_s=10.0, max_wait_s=30.0)
    assert not ingress.is_late(100.0, left_s=10.0 / SURE_SHARE + 0.1, max_wait_s=30.0)
    assert ingress.is_late(100.0, left_s=float("inf"), max_wait_s=5.0)
    free.free_at_s = 0.0
    assert not ingress.is_late(100.0, left_s=10.0, max_wait_s=30.0)
    free.inside, free.row_s = 20, 0.5  # its own count is ahead of what the server said
    assert ingress.is_late(100.0, left_s=10.0, max_wait_s=30.0)
