"""The C allocator's settings, which a process can have only from its start."""

import os
import sys

TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000"


def restart_with_huge_pages() -> None:
    """Re-executes the program with glibc tunables that keep its memory, in huge pages.

    Otherwise the large temporaries of a step on a CPU go back to the system when it ends and the
    next one faults them in again, 4 KiB at a time; `benchmarks/step.py` measures it.
    Does nothing outside Linux, or where GLIBC_TUNABLES is set already, be it to "".
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
