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


__all__ = ["TASKS", "AnyTask", "AnswerContext", "Labels", "Request", "Result", "TaskDefinition", "Walk", "get_task"]
