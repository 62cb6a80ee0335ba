"""The tasks, one file each. `get_task` is the only place where a task's name is looked up."""

from __future__ import annotations

from typing import Any

from pipeline.tasks.classification import Classification
from pipeline.tasks.definition import TaskDefinition
from pipeline.tasks.qa import QuestionAnswering
from pipeline.tasks.regression import Regression
from pipeline.tasks.types import AnswerContext, Labels, Request, Result, Walk

AnyTask = TaskDefinition[Any, Any, Any]

TASKS: dict[str, AnyTask] = {task.name: task for task in (Classification(), Regression(), QuestionAnswering())}


def get_task(name: str) -> AnyTask:
    """Returns the definition of the task that recipes and manifests call `name`. KeyError if there is none."""
    return TASKS[name]


def fitting_task(articles: bool, numbers: bool) -> AnyTask:
    """Returns the task for data of a form: questions on passages, or else texts with numbers or classes as labels."""
    return next(
        task
        for task in TASKS.values()
        if task.cuts_into_windows == articles and (articles or task.predicts_number == numbers)
    )


__all__ = [
    "TASKS",
    "AnswerContext",
    "AnyTask",
    "Labels",
    "Request",
    "Result",
    "TaskDefinition",
    "Walk",
    "fitting_task",
    "get_task",
]
