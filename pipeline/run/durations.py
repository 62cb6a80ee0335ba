"""Says how long something takes, no more exactly than is known."""

from __future__ import annotations

MINUTE, HOUR = 60.0, 3600.0  # seconds


def say_duration(seconds: float) -> str:
    """Returns a duration in words: "20 seconds", "1.5 minutes", "6 minutes", "2.5 hours"."""
    if seconds < 50:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    if seconds < 55 * MINUTE:
        return _count(seconds / MINUTE, "minute")
    return _count(seconds / HOUR, "hour")


def _count(value: float, unit: str) -> str:
    rounded = max(1.0, round(2 * value) / 2) if value < 4 else float(round(value))
    return f"{rounded:g} {unit}" if rounded == 1 else f"{rounded:g} {unit}s"
