"""What this process has of the machine: the CPUs that it reserves, and its memory."""

import os
from pathlib import Path


def assigned_cpus() -> int:
    """The whole CPUs that this replica reserves: Ray tells every worker so, in the variable that OpenMP reads."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


def resident_bytes() -> int:
    """The memory that this process has of the machine's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
