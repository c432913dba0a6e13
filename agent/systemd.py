"""Tells systemd how the daemon is. Source: sd_notify(3); the datagram protocol needs no library."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send states such as ``READY=1``. Does nothing where systemd did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendall("\n".join(lines).encode())
        except OSError:
            return  # systemd went away; it will notice us by itself


def watchdog_s() -> float | None:
    """Seconds between two signs of life that systemd expects; None when it expects none."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdigit() and int(text) > 0 else None
