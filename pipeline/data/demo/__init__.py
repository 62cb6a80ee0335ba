"""The demo data sets: small, written by the project, and hard enough that early exits matter."""

from __future__ import annotations

from pipeline.data.demo import classification, qa
from pipeline.data.examples import Example
from pipeline.names import Task
from pipeline.support.errors import UserError


def load_demo(task: Task) -> tuple[list[Example], list[Example]]:
    """Returns the train and the dev set of a task. Every call returns the same examples.

    Raises:
        UserError: the task has no demo data.
    """
    if task == "classification":
        train, dev = classification.generate()
    elif task == "qa":
        train, dev = qa.generate()
    else:
        raise UserError(
            f"there is no demo data for {task}, only for classification and qa; name a file or a hub data set",
            file="demo",
        )
    return list(train), list(dev)
