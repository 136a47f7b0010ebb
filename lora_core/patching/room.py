"""How much memory a device has left for copies."""

import os
from pathlib import Path

import torch

_KEEP_FREE = 0.1  # share of a device's memory that stays free
_MEMINFO = Path("/proc/meminfo")


class Room:
    """Bytes that copies may take on each device, asked of the system once and counted down."""

    def __init__(self) -> None:
        self._left: dict[torch.device, float] = {}

    def take(self, device: torch.device, count: int) -> bool:
        """Whether ``count`` bytes fit; then they are taken."""
        if device not in self._left:
            free = free_bytes(device)
            self._left[device] = float("inf") if free is None else free[0] - _KEEP_FREE * free[1]
        if self._left[device] < count:
            return False
        self._left[device] -= count
        return True


def free_bytes(device: torch.device) -> tuple[int, int] | None:
    """Free and total memory of a device in bytes, or None where the system does not tell.

    On a CPU what the page cache holds counts as free, where the system tells (Linux).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    if device.type != "cpu":
        return None
    if _MEMINFO.is_file():
        pairs = (line.split(":") for line in _MEMINFO.read_text().splitlines())
        sizes = {name: int(text.split()[0]) << 10 for name, text in pairs}  # in kB
        if "MemAvailable" in sizes:
            return sizes["MemAvailable"], sizes["MemTotal"]
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in os.sysconf_names for name in names):
        return None
    available, total, page = (os.sysconf(name) for name in names)
    return available * page, total * page
