"""Asking a training to stop at its next step, where it saves its state; the same command resumes it.

The flag belongs to this process. Whoever starts a training sets it, e.g. in a handler of SIGTERM or SIGINT.
"""

from __future__ import annotations

_requested = False


class Stopped(Exception):
    """A training was asked to stop, and ended early after saving its state."""


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
