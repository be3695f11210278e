"""The C allocator's settings, which a process can have only from its start."""

import os
import sys

TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000"


def restart_with_huge_pages() -> None:
    """Starts the program anew with glibc told to keep its memory, and to use huge pages.

    Otherwise the large temporaries of a step on a CPU go back to the system when it ends and are
    faulted in again, 4 KiB at a time, by the next, which `benchmarks/step.py` shows.
    Nothing happens where it is no Linux, or where GLIBC_TUNABLES is set already (to "", say).
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
