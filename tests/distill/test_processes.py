"""Two processes get the result of one process; when one of them fails, both end and one reports why.

This file is also the program that both processes run: `python test_processes.py FOLDER`, with a launcher's environment
variables.
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
# In batches of 4, the last batch of every epoch holds one item, so one of two processes gets no row of it.
ITEMS = 21
TRAINING = {"epochs": 2, "batch_size": 4, "learning_rate": 0.3, "head_learning_rate": 0.3, "checkpoint_minutes": 1e-9}
ADAM = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}


def make_items(task: str, count: int = ITEMS) -> list[Item]:
    random = np.random.default_rng(5)
    items = []
    for index in range(count):
        length = int(random.integers(4, 16))
        mask = np.arange(length) >= 2 if task == "qa" else None
        target = (2, length - 1) if task == "qa" else (index % 3,)
        items.append(Item(random.integers(1, 40, length), np.zeros(length, np.int64), target, mask))
    return items


def make_recipe(task: str, **distillation) -> Recipe:
    base = {"name": "t", "task": task, "precision": "fp32", "exits": {"training": TRAINING}}
    return Recipe.model_validate(base | {"distill": {"training": TRAINING | {"exit_weight": 0.5}} | distillation})


def make_models(task: str) -> tuple[ExitModel, ExitModel]:
    """Returns a student and a teacher whose answers are far from uniform."""
    torch.manual_seed(0)
    teacher = ExitModel(
        task, CONFIG, 3 if task == "classification" else 2, "pooled" if task == "classification" else "attention", [3]
    )
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return initialise_student(teacher, [0, 2], None, teacher.head_kind), teacher


def distill_student(task: str, folder: Path, **distillation) -> ExitModel:
    student, teacher = make_models(task)
    recipe = make_recipe(task, **distillation)
    return distill(student, teacher, make_items(task), recipe, folder / "checkpoint.pt", curve=folder / "losses.json")


def stop_and_resume(task: str, folder: Path) -> ExitModel:
    student, teacher = make_models(task)

    def stop(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    try:
        distill(student, teacher, make_items(task), make_recipe(task), folder / "checkpoint.pt", stop)
    except KeyboardInterrupt:
        processes.wait()
    return distill_student(task, folder)


def distill_heads(task: str, folder: Path) -> ExitModel:
    student, _ = make_models(task)
    return self_distill(
        student, make_items(task), make_recipe(task), folder / "checkpoint.pt", curve=folder / "losses.json"
    )


def distill_accumulated(task: str, folder: Path) -> ExitModel:
    training = TRAINING | {"accumulate": 3, "exit_weight": 0}
    return distill_student(task, folder, training=training, hard_weight=1.0)


STATE_WEIGHTS = {"hidden_weight": 0.7, "attention_weight": 0.3}
CASES = {
    "classification": lambda folder: distill_student("classification", folder, **STATE_WEIGHTS),
    "qa": lambda folder: distill_student("qa", folder, **STATE_WEIGHTS),
    "qa, kept targets": lambda folder: distill_student("qa", folder, keep_targets=True),
    "classification, kept targets": lambda folder: distill_student("classification", folder, keep_targets=True),
    "accumulated": lambda folder: distill_accumulated("classification", folder),
    "heads": lambda folder: distill_heads("qa", folder),
    "resumed": lambda folder: stop_and_resume("classification", folder),
    "adam": lambda folder: distill_student("classification", folder, training=TRAINING | ADAM),
}


def run_case(name: str, folder: Path) -> ExitModel:
    """Runs a case with plain gradient descent, except for "adam".

    Adam turns the rounding errors of a gradient that should be 0 (that of the key biases) into full steps.
    """
    if name == "adam":
        return CASES[name](folder)
    with patch("torch.optim.AdamW", lambda groups, fused: torch.optim.SGD(groups)):
        return CASES[name](folder)


def worker(folder: Path) -> None:
    """Runs all cases, then two failures, in each of the two processes."""
    rank = processes.rank()
    for name in CASES:
        case_folder = folder / name
        if processes.is_main():
            case_folder.mkdir()
        processes.wait()
        torch.save(run_case(name, case_folder).state_dict(), case_folder / f"weights-{rank}.pt")
    errors = {"nan": run_with_nan(folder / "nan.pt"), "failure": run_with_failure(folder / "failure.pt")}
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))


def run_with_nan(checkpoint: Path) -> str:
    """Trains until the second process's loss is NaN, at the fourth step. Returns the error's message."""
    model = torch.nn.Linear(1, 1)

    def loss(batch):
        return model(batch.mask[:, :1]).mean() * (float("nan") if processes.rank() == 1 and batch.number == 3 else 1.0)

    try:
        make_trainer(model, loss, checkpoint).run(make_items("classification"))
    except UserError as error:
        return str(error)
    return "nothing"


def run_with_failure(checkpoint: Path) -> str:
    """Trains until the second process fails, at the fourth step. Returns the error and the last batch's number."""
    model, numbers = torch.nn.Linear(1, 1), []

    def loss(batch):
        numbers.append(batch.number)
        if processes.rank() == 1 and batch.number == 3:
            raise UserError("this one is broken")
        return model(batch.mask[:, :1]).mean()

    try:
        with processes.together():
            make_trainer(model, loss, checkpoint).run(make_items("classification"))
    except (UserError, processes.FailedElsewhere) as error:
        return f"{type(error).__name__}: {error} in batch {numbers[-1]}"
    return "nothing"


def make_trainer(model, loss, checkpoint: Path) -> Trainer:
    training = Training(**TRAINING)
    groups = parameter_groups([], list(model.parameters()), training)
    return Trainer("training", model, groups, loss, training, precision="fp32", seed=0, checkpoint=checkpoint)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**variables: object) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **{name: str(value) for name, value in variables.items()},
    }


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Path:
    """The folder with the results of two processes."""
    folder = tmp_path_factory.mktemp("two")
    variables = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=rank, LOCAL_RANK=rank, **variables),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        output = [process.communicate()[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(output)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_get_the_weights_and_losses_of_one(shared_run, tmp_path, name):
    before = make_models("qa" if name.startswith("qa") or name == "heads" else "classification")[0].state_dict()
    single = run_case(name, tmp_path).state_dict()
    first, second = (torch.load(shared_run / name / f"weights-{rank}.pt") for rank in range(2))
    for key in single:
        assert torch.equal(first[key], second[key])
        if name != "adam":
            torch.testing.assert_close(first[key], single[key], rtol=0, atol=1e-5)
    assert max((single[key] - before[key]).abs().max() for key in single) > 5e-3
    folders = (shared_run / name, tmp_path)
    losses = [json.loads((folder / "losses.json").read_text())["losses"] for folder in folders]
    assert len(losses[0]) == (4 if name == "accumulated" else 12)
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)


def read_errors(folder: Path, case: str) -> list[str]:
    return [json.loads((folder / f"errors-{rank}.json").read_text())[case] for rank in range(2)]


def test_a_nan_loss_in_one_process_stops_both_at_the_same_step(shared_run):
    first, second = read_errors(shared_run, "nan")
    assert first == second and "loss is nan at step 4 of 12" in first
    assert torch.load(shared_run / "nan.pt")["step"] == 3


def test_a_failure_in_one_process_ends_both_and_one_says_why(shared_run):
    expected = ["FailedElsewhere:  in batch 3", "UserError: this one is broken in batch 3"]
    assert read_errors(shared_run, "failure") == expected


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
