"""What this process has of the machine: the CPUs that it reserves, its memory, and since when."""

import os
from pathlib import Path


def assigned_cpus() -> int:
    """The whole CPUs that this replica reserves: Ray tells every worker so, in the variable that OpenMP reads."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


def alive_s() -> float:
    """Seconds since this process began."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    booted_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return booted_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")  # its 22nd field, the first two left out


def resident_bytes() -> int:
    """The memory that this process has of the machine's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
