"""How plots and pages name things and write numbers."""

from __future__ import annotations

import math

MEGABYTE = 1e6
MIN_MEGABYTE_BYTES = 1e5  # smaller sizes are written in kilobytes

BACKENDS = {"executorch": "ExecuTorch", "coreml": "Core ML", "executorch-coreml": "ExecuTorch, Core ML delegate"}
METRIC_NAMES = {"accuracy": "accuracy", "f1": "F1", "pearson": "Pearson", "one_minus_nmae": "1 − NMAE"}
PLAIN_METRICS = ("pearson", "spearman", "mean_absolute_error")  # the others are fractions, written as percentages
MEASURE_NAMES = {
    "max_probability": "greatest probability",
    "span_entropy": "entropy over spans",
    "span_probability": "probability of the span",
    "unscaled_entropy": "entropy, not scaled",
}


def capitalized(text: str) -> str:
    """Returns the text with a capital first letter."""
    return text[0].upper() + text[1:]


def metric_name(metric: str) -> str:
    """Returns the words for a score."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def measure_name(measure: str) -> str:
    """Returns the words for a measure of uncertainty."""
    return MEASURE_NAMES.get(measure, measure.replace("_", " "))


def is_full_depth(speed: str) -> bool:
    """Returns whether a speed is "full" or the number 0: no uncertainty is below 0, so every segment runs."""
    try:
        return speed == "full" or float(speed) == 0.0
    except ValueError:
        return False


def speed_label(speed: str) -> str:
    """Returns what plots call a speed."""
    return "full depth" if is_full_depth(speed) else f"speed {speed}"


def short_scheme(scheme: str) -> str:
    """Returns a scheme in fewer letters, for a plot's label."""
    return scheme.replace(", embeddings ", " + ")


def percent(fraction: float | None) -> str:
    """Writes a fraction as a percentage with one decimal, or a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def score(value: float | None, metric: str) -> str:
    """Writes a score: a fraction as a percentage, a correlation or an error as it is, None as a dash."""
    if metric in PLAIN_METRICS:
        return "–" if value is None else number(value)
    return percent(value)


def points(fraction: float) -> str:
    """Writes a difference of two fractions in percentage points with two decimals and a typographic minus."""
    return f"{100 * fraction:.2f}".replace("-0.00", "0.00").replace("-", "−")


def megabytes(count: float) -> str:
    """Writes bytes in megabytes, or in kilobytes if they are few."""
    return f"{count / MEGABYTE:.1f} MB" if abs(count) >= MIN_MEGABYTE_BYTES else f"{count / 1e3:.1f} kB"


def times(ratio: float) -> str:
    """Writes a ratio such as a speed-up."""
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def number(value: float) -> str:
    """Writes four significant digits."""
    return f"{value:.4g}"


def milliseconds(value: float) -> str:
    """Writes three digits and the unit."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} ms"


def duration(seconds: float) -> str:
    """Writes seconds in the unit that suits them, from seconds to hours; NaN as a dash."""
    if math.isnan(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
