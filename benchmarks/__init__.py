"""Measures a running cluster over HTTP, and in comparison the same artifacts in this process and on other servers."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Reports one line of progress."""
