"""How much memory this process holds, has held, and could still take, where the system reports it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def reset_peak() -> None:
    """Start the measurement of `peak` again, where the system can (Linux, CUDA)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """The most memory, in bytes, that this process has held; with CUDA that on the device, where it is more. 0: not known."""
    bytes_held = _told("/proc/self/status", "VmHWM")
    if bytes_held is None:
        with contextlib.suppress(ImportError):  # not on Windows
            import resource

            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            bytes_held = most if sys.platform == "darwin" else most * 1024
    bytes_held = bytes_held or 0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        bytes_held = max(bytes_held, torch.cuda.max_memory_allocated())
    return bytes_held


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not report it."""
    return _told("/proc/self/status", "VmRSS")


def free() -> int | None:
    """Bytes that this process could still take, of the machine and of its control group; None where the system reports neither."""
    bounds = [_told("/proc/meminfo", "MemAvailable")]
    if bounds[0] is None:
        with contextlib.suppress(ValueError, OSError, AttributeError):
            bounds.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        bounds.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(b for b in bounds if b is not None), 0) if any(b is not None for b in bounds) else None


def _told(file: str, what: str) -> int | None:
    """Bytes under the name `what` in a status file of Linux; None where there is no such line."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1024
    return None
