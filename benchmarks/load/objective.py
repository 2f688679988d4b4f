"""Objective: what an answer has to be to count as good, and how many may be otherwise."""

from dataclasses import dataclass

from benchmarks.load.client import Exchange

BAD_SHARE = 0.01  # the share of requests beyond the objective at which the p99 misses it


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A service level. Times are in seconds from the intended send time; None is no bound.

    `latency_s` bounds the whole answer. A stream is bounded by the time to its first token, `first_token_s`, and by the
    mean time between its tokens, `token_s`: some servers send several tokens in one event, so the number of tokens is
    that of the request. `bad_share` of the requests may miss it.
    """

    latency_s: float | None = None
    first_token_s: float | None = None
    token_s: float | None = None
    bad_share: float = BAD_SHARE

    def is_met(self, exchange: Exchange) -> bool:
        """Whether an exchange that has ended well was in time."""
        return not self.is_missed(exchange, exchange.ended_at)

    def is_missed(self, exchange: Exchange, now: float) -> bool:
        """Whether an exchange, under way or ended, has missed it at `now`; it may miss it later."""
        if self.latency_s is not None and now - exchange.intended_at > self.latency_s:
            return True
        times = exchange.event_times
        first_at = times[0] if times else now
        if self.first_token_s is not None and first_at - exchange.intended_at > self.first_token_s:
            return True
        if self.token_s is None or not times:
            return False
        allowed_s = self.token_s * max(1, exchange.new_tokens - 1)
        return (times[-1] - first_at if exchange.ended_at else now - first_at) > allowed_s
