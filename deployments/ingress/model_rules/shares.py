"""Shares: what the ingress of this node reads of the file of shares, for people who ask how a task's requests go."""

from pathlib import Path

from deployments.ingress.haproxy import told
from deployments.ingress.model_rules.traffic import Split, TrafficError, read_traffic


def split_of(task: str) -> Split | None:
    """That of a task: empty where nothing is given away; None where the file is wrong, so that an earlier one holds."""
    settings = told()
    if settings is None or not settings.traffic:
        return Split()
    try:
        return read_traffic(Path(settings.traffic)).get(task, Split())
    except TrafficError:
        return None
