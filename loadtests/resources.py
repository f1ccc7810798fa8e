"""What the gateway's processes use while they are loaded, when they run on this machine."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

import gevent
import psutil

from loadtests.tally import Usage

_SAMPLE_S = 0.2


def gateway_processes(url: str) -> list[psutil.Process]:
    """The processes that listen at the address, and their children; none when it is not of this machine."""
    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    if not _is_here(address.hostname or ""):
        return []
    try:
        listening = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # on some systems only root may look
        return []
    pids = {
        c.pid
        for c in listening
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid
    }
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):  # it ended, or belongs to somebody else
            process = psutil.Process(pid)
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())


class Meter:
    """Measures processes from its construction until `stop`."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._started = {process: _cpu_s(process) for process in processes}
        self._last = dict(self._started)
        self._rss_bytes = 0
        self._look()
        self._looking = gevent.spawn(self._keep_looking)

    def stop(self) -> Usage | None:
        """What they used, or None of no processes."""
        self._looking.kill()
        self._look()
        if not self._started:
            return None
        cpu_s = sum(self._last[process] - started for process, started in self._started.items())
        return Usage(cpu_s, self._rss_bytes, len(self._started))

    def _keep_looking(self) -> None:
        while True:
            gevent.sleep(_SAMPLE_S)
            self._look()

    def _look(self) -> None:
        held = 0
        for process, known in self._last.items():
            self._last[process] = max(known, _cpu_s(process))
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        self._rss_bytes = max(self._rss_bytes, held)


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended: what it used before counts
        return 0.0
    return float(times.user + times.system)


def _is_here(host: str) -> bool:
    here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    try:
        return socket.gethostbyname(host) in here
    except OSError:
        return False
