"""The demo data that ship with pocketbert: small, made by the project, hard enough for early exits to matter."""

from __future__ import annotations

from pipeline.data.demo import classification, qa
from pipeline.data.examples import Example
from pipeline.names import Task
from pipeline.support.errors import UserError


def load_demo(task: Task) -> tuple[list[Example], list[Example]]:
    """Returns the train and the dev set of a task; every call returns the same examples.

    Raises:
        UserError: for a task without demo data.
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
