"""Shares: what the ingress of this node reads of the file of shares, for people who ask how a task's requests go."""

import os
from pathlib import Path

from deployments.ingress.haproxy import SETTINGS
from deployments.ingress.lines import Settings
from deployments.ingress.model_rules.traffic import Split, TrafficError, read_traffic

WRAPPER_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def split_of(task: str) -> Split | None:
    """That of a task: empty where nothing is given away; None where the file is wrong, so that an earlier one holds."""
    try:
        settings = Settings.read(Path(os.environ.get(WRAPPER_VARIABLE, "")).with_name(SETTINGS))
    except (OSError, ValueError, KeyError, TypeError):  # no HAProxy, or one that we have not started
        return Split()
    if not settings.traffic:
        return Split()
    try:
        return read_traffic(Path(settings.traffic)).get(task, Split())
    except TrafficError:
        return None
