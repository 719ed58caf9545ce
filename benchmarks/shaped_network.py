"""Network namespaces with shaped links between them, on one machine; needs root, ``ip`` and ``tc`` of iproute2.

Each namespace has a TUN device whose outgoing bandwidth ``tc tbf`` limits. One process, the switch, holds all devices:
it limits what arrives in a namespace to the same bandwidth and delivers each packet after the latency, as ``tc netem``
would, which many kernels are built without. All packets pass the switch, which carries some 100 MB/s.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import heapq
import os
import pathlib
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator

from moec.common.errors import MoecError
from moec.predicting.links import Link

MTU = 9000
_HEADERS = 52
"""Bytes of IP, TCP and its time stamps in each packet."""
_SET_NAME, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
_NEW_NETWORK = 0x40000000
_DESTINATION = slice(16, 20)
"""The destination in the header of an IPv4 packet."""
_LIMIT = "1s"
_LONGEST_WAIT = 0.05
_WATCHED_AHEAD = 100e-6
"""Seconds before a packet is due in which the switch looks for it without sleeping."""


def problem() -> str | None:
    """Say why this machine does not let a program make shaped links; None if it does."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 are missing"
    with contextlib.suppress(MoecError, OSError), namespaces(1, Link(1e6, 1e-3)):
        return None
    return "the system refuses namespaces, TUN devices or tbf"


def address(rank: int) -> str:
    return f"10.137.{rank // 200}.{rank % 200 + 1}"


def payload(link: Link) -> Link:
    """Return the link as data sees it: without the headers of packets."""
    return Link(link.bandwidth * (MTU - _HEADERS) / MTU, link.latency)


def name_of(rank: int, parent: int | None = None) -> str:
    """Name the namespace of a rank, and its device, which the process ``parent`` made, by default this one."""
    return f"moec{(parent or os.getpid()) % 100000}r{rank}"


@contextlib.contextmanager
def namespaces(count: int, link: Link) -> Iterator[list[int]]:
    """Make namespaces whose devices are joined by the switch. Yields the files by which :func:`enter` enters them.

    Raises MoecError where a command fails.
    """
    with contextlib.ExitStack() as stack:
        devices, entries = [], []
        for rank in range(count):
            name = name_of(rank)
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, device)
            fcntl.ioctl(device, _SET_NAME, struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER))
            _join(name, rank, link)
            devices.append(device)
            entries.append(os.open(f"/run/netns/{name}", os.O_RDONLY))
            stack.callback(os.close, entries[-1])
        switch = os.fork()
        if switch == 0:
            _forward(devices, link)
        stack.callback(_end, switch)
        yield entries


def _join(name: str, rank: int, link: Link) -> None:
    _run("ip", "link", "set", name, "mtu", str(MTU), "txqueuelen", "10000", "netns", name)
    _run("ip", "-n", name, "addr", "add", f"{address(rank)}/16", "dev", name)
    _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "-n", name, "link", "set", name, "up")
    rate, burst = f"{round(link.bandwidth * 8)}bit", str(2 * MTU)
    _run("tc", "-n", name, "qdisc", "add", "dev", name, "root", "tbf", "rate", rate, "burst", burst, "latency", _LIMIT)


def enter(entry: int) -> None:
    """Move this process to a namespace, where connections keep their speed when nothing was sent for a while."""
    if ctypes.CDLL(None, use_errno=True).setns(entry, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")
    pathlib.Path("/proc/sys/net/ipv4/tcp_slow_start_after_idle").write_text("0")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MoecError(f"{' '.join(command)}: {done.stderr.strip()[:200]}")


def _end(process: int) -> None:
    os.kill(process, 9)
    os.waitpid(process, 0)


def _forward(devices: list[int], link: Link) -> None:
    """Deliver packets until the process is killed."""
    gc.disable()
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    rank_of = {bytes(map(int, address(rank).split("."))): rank for rank in range(len(devices))}
    free = [0.0] * len(devices)
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait = waiting[0][0] - time.monotonic() - _WATCHED_AHEAD if waiting else _LONGEST_WAIT
        ready, _, _ = select.select(devices, [], [], min(max(wait, 0.0), _LONGEST_WAIT))
        now = time.monotonic()
        for device in ready:
            packet = os.read(device, MTU)
            to = rank_of.get(packet[_DESTINATION])
            if to is not None:
                free[to] = max(free[to], now) + len(packet) / link.bandwidth
                number += 1
                heapq.heappush(waiting, (free[to] + link.latency, number, to, packet))
        while waiting and waiting[0][0] <= now:
            _, _, to, packet = heapq.heappop(waiting)
            with contextlib.suppress(BlockingIOError):
                os.write(devices[to], packet)
