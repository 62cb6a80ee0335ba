"""Says before and during a run how long it will take."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.run.forecast import Forecast, forecast
from pipeline.run.results import Results
from pipeline.run.workload import SAMPLED_EXAMPLES, estimate_tokens
from pipeline.support.durations import say_duration
from pipeline.support.progress import console
from pipeline.tasks import get_task

SHORT_SECONDS = 10.0  # a run of less is not forecast aloud
# A forecast is corrected by the stages that have finished, but one odd stage does not turn it upside down.
LEAST_CORRECTION, MOST_CORRECTION = 0.5, 4.0


class RunClock:
    """Forecasts the stages of a run that are not done, and corrects itself by those that finish.

    Attributes:
        remaining: the seconds that were forecast for each stage that is not done yet, in order.
    """

    def __init__(self) -> None:
        self.remaining: dict[str, float] = {}
        self._forecast_seconds = self._real_seconds = 0.0

    @property
    def correction(self) -> float:
        """How many times longer than forecast the finished stages took."""
        if self._forecast_seconds < SHORT_SECONDS:
            return 1.0
        return min(max(self._real_seconds / self._forecast_seconds, LEAST_CORRECTION), MOST_CORRECTION)

    def announce(self, run: Forecast) -> None:
        """Says how long the stages of a forecast take together, and counts them down from here on."""
        self.remaining = dict(run.seconds)
        if run.total >= SHORT_SECONDS:
            console.print(f"this run takes {run.sentence()}")

    def expected(self, stage: str) -> float | None:
        """Returns the seconds that a stage will take; None if there is no forecast of it."""
        seconds = self.remaining.get(stage)
        return None if seconds is None else seconds * self.correction

    def start(self, stage: str) -> str:
        """Returns what to say when a stage starts: its time, and that of the run where more stages follow."""
        expected = self.expected(stage)
        if expected is None or expected < SHORT_SECONDS:
            return ""
        left = self.correction * sum(self.remaining.values())
        more = f", {say_duration(left)} to the end of the run" if left > expected + SHORT_SECONDS else ""
        return f" about {say_duration(expected)}{more}"

    def finish(self, stage: str, seconds: float | None) -> None:
        """Notes how long a stage took."""
        forecast_seconds = self.remaining.pop(stage, None)
        if forecast_seconds is not None and seconds is not None:
            self._forecast_seconds += forecast_seconds
            self._real_seconds += seconds


def forecast_stages(results: Results, stages: Sequence[str]) -> Forecast:
    """Forecasts some stages of a run from its prepared data. A run without a task's data has no examples yet."""
    recipe = results.recipe
    counts, tokens = {"train": 0, "calibration": 0, "dev": 0}, 2.0
    for part in counts:
        file = results.path("prepare") / f"{part}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        counts[part] = len(lines)
        if part == "train" and lines:
            read = get_task(recipe.task).example_from_json
            sample = [read(json.loads(line)) for line in lines[:: max(1, len(lines) // SAMPLED_EXAMPLES)]]
            tokens = estimate_tokens(sample, recipe)
    return forecast(recipe, counts["train"] + counts["calibration"], counts["dev"], tokens).of(stages)
