"""Asking a training to stop at the next step: its state is saved there, and the same command continues.

The flag belongs to this process; whoever starts a training sets it, e.g. in a handler of SIGTERM or SIGINT.
"""

from __future__ import annotations

_requested = False


class Stopped(Exception):
    """A training was asked to stop, saved its state and ended early."""


def request_stop() -> None:
    """Ask the training of this process to stop at its next step. Safe in signal handlers."""
    global _requested
    _requested = True


def stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return _requested


def clear_stop() -> None:
    """Forget the request, before another training in the same process."""
    global _requested
    _requested = False
