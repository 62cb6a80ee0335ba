"""Two processes get what one gets on the same global batch; when one of them fails, both end, and one says why.

This file is also the program that the two processes run: `python test_processes.py FOLDER`, with a launcher's variables set.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.distill.student import initialise_student
from pipeline.distill.task import distill
from pipeline.distill.trainer import Trainer, parameter_groups
from pipeline.exits.self_distill import self_distill
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe, Training
from pipeline.support import processes
from pipeline.support.errors import UserError

# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = EncoderConfig(vocab_size=40, hidden_size=32, layers=3, heads=2, intermediate_size=64, max_positions=32)
# 21 items in batches of 4: the last batch of every epoch holds one, and one of two processes has nothing of it.
ITEMS, TRAINING = (
    21,
    {"epochs": 2, "batch_size": 4, "learning_rate": 0.3, "head_learning_rate": 0.3, "checkpoint_minutes": 1e-9},
)
ADAM = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}


def items_of(task: str, count: int = ITEMS) -> list[Item]:
    chance = np.random.default_rng(5)
    items = []
    for at in range(count):
        length = int(chance.integers(4, 16))
        mask = np.arange(length) >= 2 if task == "qa" else None
        target = (2, length - 1) if task == "qa" else (at % 3,)
        items.append(Item(chance.integers(1, 40, length), np.zeros(length, np.int64), target, mask))
    return items


def recipe_of(task: str, **distillation) -> Recipe:
    base = {"name": "t", "task": task, "precision": "fp32", "exits": {"training": TRAINING}}
    return Recipe.model_validate(base | {"distill": {"training": TRAINING | {"exit_weight": 0.5}} | distillation})


def models_of(task: str) -> tuple[ExitModel, ExitModel]:
    """(student, teacher) with opinions."""
    torch.manual_seed(0)
    teacher = ExitModel(
        task, CONFIG, 3 if task == "classification" else 2, "pooled" if task == "classification" else "attention", [3]
    )
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return initialise_student(teacher, [0, 2], None, teacher.head_kind), teacher


def distilled(task: str, folder: Path, **distillation) -> ExitModel:
    student, teacher = models_of(task)
    recipe = recipe_of(task, **distillation)
    return distill(student, teacher, items_of(task), recipe, folder / "checkpoint.pt", curve=folder / "losses.json")


def stopped_and_resumed(task: str, folder: Path) -> ExitModel:
    student, teacher = models_of(task)

    def stop(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    try:
        distill(student, teacher, items_of(task), recipe_of(task), folder / "checkpoint.pt", stop)
    except KeyboardInterrupt:
        processes.wait()
    return distilled(task, folder)


def heads_only(task: str, folder: Path) -> ExitModel:
    student, _ = models_of(task)
    return self_distill(
        student, items_of(task), recipe_of(task), folder / "checkpoint.pt", curve=folder / "losses.json"
    )


def accumulated(task: str, folder: Path) -> ExitModel:
    training = TRAINING | {"accumulate": 3, "exit_weight": 0}
    return distilled(task, folder, training=training, hard_weight=1.0)


STATES = {"hidden_weight": 0.7, "attention_weight": 0.3}
CASES = {
    "classification": lambda folder: distilled("classification", folder, **STATES),
    "qa": lambda folder: distilled("qa", folder, **STATES),
    "qa, kept targets": lambda folder: distilled("qa", folder, keep_targets=True),
    "classification, kept targets": lambda folder: distilled("classification", folder, keep_targets=True),
    "accumulated": lambda folder: accumulated("classification", folder),
    "heads": lambda folder: heads_only("qa", folder),
    "resumed": lambda folder: stopped_and_resumed("classification", folder),
    "adam": lambda folder: distilled("classification", folder, training=TRAINING | ADAM),
}


def run_case(name: str, folder: Path) -> ExitModel:
    """By plain gradient descent: Adam makes whole steps of the rounding of a gradient that is 0, as those of keys' biases are."""
    if name == "adam":
        return CASES[name](folder)
    with patch("torch.optim.AdamW", lambda groups, fused: torch.optim.SGD(groups)):
        return CASES[name](folder)


def worker(folder: Path) -> None:
    """What each of the two processes does: all cases, then two failures."""
    rank = processes.rank()
    for name in CASES:
        place = folder / name
        if processes.is_main():
            place.mkdir()
        processes.wait()
        torch.save(run_case(name, place).state_dict(), place / f"weights-{rank}.pt")
    said = {"nan": no_number(folder / "nan.pt"), "failure": failure(folder / "failure.pt")}
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def no_number(checkpoint: Path) -> str:
    """The loss of the second process alone is NaN at the fourth step."""
    model = torch.nn.Linear(1, 1)

    def loss(batch):
        return model(batch.mask[:, :1]).mean() * (float("nan") if processes.rank() == 1 and batch.number == 3 else 1.0)

    try:
        trainer(model, loss, checkpoint).run(items_of("classification"))
    except UserError as error:
        return str(error)
    return "nothing"


def failure(checkpoint: Path) -> str:
    """The second process fails at the fourth step, the first one does not."""
    model, numbers = torch.nn.Linear(1, 1), []

    def loss(batch):
        numbers.append(batch.number)
        if processes.rank() == 1 and batch.number == 3:
            raise UserError("this one is broken")
        return model(batch.mask[:, :1]).mean()

    try:
        with processes.together():
            trainer(model, loss, checkpoint).run(items_of("classification"))
    except (UserError, processes.FailedElsewhere) as error:
        return f"{type(error).__name__}: {error} in batch {numbers[-1]}"
    return "nothing"


def trainer(model, loss, checkpoint: Path) -> Trainer:
    training = Training(**TRAINING)
    groups = parameter_groups([], list(model.parameters()), training)
    return Trainer("training", model, groups, loss, training, precision="fp32", seed=0, checkpoint=checkpoint)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: object) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **{name: str(value) for name, value in more.items()},
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("two")
    about = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=rank, LOCAL_RANK=rank, **about),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate()[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_get_the_weights_and_losses_of_one(two, tmp_path, name):
    before = models_of("qa" if name.startswith("qa") or name == "heads" else "classification")[0].state_dict()
    one = run_case(name, tmp_path).state_dict()
    first, second = (torch.load(two / name / f"weights-{rank}.pt") for rank in range(2))
    for key in one:
        assert torch.equal(first[key], second[key])
        if name != "adam":
            torch.testing.assert_close(first[key], one[key], rtol=0, atol=1e-5)
    assert max((one[key] - before[key]).abs().max() for key in one) > 5e-3
    losses = [json.loads((place / "losses.json").read_text())["losses"] for place in (two / name, tmp_path)]
    assert len(losses[0]) == (4 if name == "accumulated" else 12)
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_no_number_on_one_stops_both_at_the_same_step(two):
    said = [json.loads((two / f"said-{rank}.json").read_text())["nan"] for rank in range(2)]
    assert said[0] == said[1] and "loss is nan at step 4 of 12" in said[0]
    assert torch.load(two / "nan.pt")["step"] == 3


def test_a_failure_on_one_ends_both_and_one_says_why(two):
    said = [json.loads((two / f"said-{rank}.json").read_text())["failure"] for rank in range(2)]
    assert said == ["FailedElsewhere:  in batch 3", "UserError: this one is broken in batch 3"]


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
