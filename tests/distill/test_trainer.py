"""Training learns, goes on exactly where it was killed, and stops with one line when it cannot go on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.distill.finetune import finetune
from pipeline.distill.losses import hard_loss
from pipeline.distill.student import initialise_student
from pipeline.distill.task import distill
from pipeline.distill.trainer import Trainer, compute_dtype, parameter_groups, schedule
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe, Training
from pipeline.support.errors import UserError

CONFIG = EncoderConfig(vocab_size=40, hidden_size=32, layers=2, heads=2, intermediate_size=64, max_positions=32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def items_of(count: int, seed: int = 0, lengths: tuple[int, int] = (4, 12)) -> list[Item]:
    """Texts whose label is whether token 7 stands in them."""
    random = np.random.default_rng(seed)
    items = []
    for at in range(count):
        ids = random.integers(10, 40, random.integers(*lengths, endpoint=True))
        if at % 2:
            ids[random.integers(1, len(ids))] = 7
        items.append(Item(ids, np.zeros(len(ids), np.int64), (at % 2,)))
    return items


class Bag(torch.nn.Module):
    """The least that can learn: the mean of its words' vectors, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.word, self.out = torch.nn.Embedding(40, 16), torch.nn.Linear(16, 2)

    def loss(self, batch) -> torch.Tensor:
        mean = (self.word(batch.ids) * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
        return torch.nn.functional.cross_entropy(self.out(mean), batch.targets[:, 0])


def trainer_of(model, loss, training: Training, checkpoint, precision="fp32", **options) -> Trainer:
    groups = parameter_groups([], list(model.parameters()), training)
    return Trainer(
        "training", model, groups, loss, training, precision=precision, seed=3, checkpoint=checkpoint, **options
    )


class Killed(Exception):
    pass


def train(make, training, items, checkpoint, precision="fp32", kill_at=None) -> tuple[dict, list[int]]:
    """(the weights after it, the steps that ran); stops without a word at step `kill_at`."""
    torch.manual_seed(0)
    model, loss = make()
    steps = []

    def on_step(what, done, total):
        if done == kill_at:
            raise Killed
        steps.append(done)

    try:
        trainer_of(model, loss, training, checkpoint, precision, on_step=on_step).run(items)
    except Killed:
        assert kill_at is not None
    return {name: value.clone() for name, value in model.state_dict().items()}, steps


def bag():
    model = Bag()
    return model, model.loss


def exit_model():
    model = ExitModel("classification", CONFIG, 2, "pooled", [1, 2]).train()

    def loss(batch):
        logits = model(batch.ids, batch.mask).logits
        return sum(hard_loss("classification", part, batch.targets, None) for part in logits)

    return model, loss


# 20 items in batches of 4 are 5 batches an epoch. Killed in the first epoch, on its border, in the second one, at the last step.
@pytest.mark.parametrize(
    ("make", "precision", "accumulate", "kill_at"),
    [
        *((bag, "fp32", 1, at) for at in (1, 2, 5, 6, 8, 10)),
        *((bag, "fp32", 2, at) for at in (2, 3, 5)),
        (exit_model, "fp32", 1, 7),
        (exit_model, "fp32", 2, 3),
        (exit_model, "bf16", 1, 4),
    ],
)
def test_killed_and_resumed_is_bitwise_the_same(tmp_path, make, precision, accumulate, kill_at):
    training = Training(epochs=2, batch_size=4, accumulate=accumulate, checkpoint_minutes=1e-9)
    items, total = items_of(20), 10 // accumulate
    whole, steps = train(make, training, items, tmp_path / "whole.pt", precision)
    assert steps == list(range(1, total + 1))
    checkpoint = tmp_path / "checkpoint.pt"
    killed, _ = train(make, training, items, checkpoint, precision, kill_at=kill_at)
    resumed, steps = train(make, training, items, checkpoint, precision)
    # The last checkpoint is of the step before the one that never finished; what came before it does not run again.
    assert steps == list(range(kill_at, total + 1))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    if kill_at < total:
        assert any(not torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kill_at", [1, 4, 10])
def test_the_loss_curve_is_the_same_after_a_kill(tmp_path, kill_at):
    """Also where the loss draws by chance: what a step draws depends on the step alone."""
    training, items, curves = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9), items_of(20), []
    for name, stops in (("whole", [None]), ("killed", [kill_at, None])):
        for stop in stops:
            torch.manual_seed(0)
            model = Bag()

            def loss(batch, model=model):
                keep = torch.nn.functional.dropout(torch.ones(()), 0.5) + 0.5
                return model.loss(batch) * keep

            def on_step(what, done, total, stop=stop):
                if done == stop:
                    raise Killed

            trainer = trainer_of(model, loss, training, tmp_path / f"{name}.pt", on_step=on_step)
            try:
                trainer.run(items)
            except Killed:
                torch.rand(7)  # another process, another state of chance
        trainer.write_losses(tmp_path / f"{name}.json")
        curves.append(json.loads((tmp_path / f"{name}.json").read_text()))
    whole, killed = curves
    assert whole == killed and len(whole["losses"]) == 10 and whole["training"] == "training"
    assert len(set(whole["losses"])) == 10


def test_batches_know_their_items(tmp_path):
    """By `indices` and `number` a loss finds what belongs to an item, and draws anew for every batch."""
    items, seen, model = items_of(10), [], Bag()

    def loss(batch):
        for row, index in enumerate(batch.indices):
            length = len(items[index].ids)
            assert batch.ids[row, :length].tolist() == items[index].ids.tolist() and batch.mask[row].sum() == length
        assert (batch.whole == batch.indices).all() and batch.token_weight == 1.0
        seen.append((batch.number, *batch.indices))
        return model.loss(batch)

    trainer_of(model, loss, Training(epochs=2, batch_size=4), tmp_path / "a.pt").run(items)
    assert [number for number, *_ in seen] == list(range(6))
    for epoch in (seen[:3], seen[3:]):
        assert sorted(index for _, *indices in epoch for index in indices) == list(range(10))


def test_killed_twice(tmp_path):
    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    whole, _ = train(bag, training, items_of(20), tmp_path / "whole.pt")
    for kill_at in (3, 8):
        train(bag, training, items_of(20), tmp_path / "checkpoint.pt", kill_at=kill_at)
    resumed, steps = train(bag, training, items_of(20), tmp_path / "checkpoint.pt")
    assert steps == [8, 9, 10]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    whole, _ = train(bag, training, items_of(20), tmp_path / "whole.pt")
    checkpoint = tmp_path / "checkpoint.pt"
    train(bag, training, items_of(20), checkpoint, kill_at=4)
    (tmp_path / "checkpoint.partial").write_bytes(checkpoint.read_bytes()[:100])
    resumed, _ = train(bag, training, items_of(20), checkpoint)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_checkpoints_keep_their_distance(tmp_path):
    train(bag, Training(epochs=2, batch_size=4, checkpoint_minutes=60), items_of(20), tmp_path / "checkpoint.pt")
    assert list(tmp_path.iterdir()) == []


def test_accumulated_batches_are_one_large_batch(tmp_path):
    """With plain gradient descent: Adam would hide a gradient of the wrong size."""
    items, after = items_of(8, lengths=(6, 6)), []
    torch.manual_seed(0)
    start = Bag().state_dict()
    for size, accumulate in ((8, 1), (4, 2)):
        model, said = Bag(), []
        model.load_state_dict(start)
        training = Training(epochs=4, batch_size=size, accumulate=accumulate, head_learning_rate=0.5)
        trainer = trainer_of(
            model,
            model.loss,
            training,
            tmp_path / f"{size}.pt",
            on_step=lambda what, *_, said=said: said.append(float(what.split()[-1])),
        )
        trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups)
        trainer.run(items)
        after.append((model.state_dict(), said))
    (large, losses), (small, again) = after
    assert len(losses) == 4 and losses == pytest.approx(again, abs=2e-3)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-6)
        assert (large[name] - start[name]).abs().max() > 1e-3


def test_fewer_batches_than_accumulate_still_make_a_step(tmp_path):
    """Otherwise a small data set would be "trained" without a single update, and nobody told."""
    _, steps = train(bag, Training(epochs=1, batch_size=4, accumulate=8), items_of(8), tmp_path / "a.pt")
    assert steps == [1]
    _, steps = train(bag, Training(epochs=0, batch_size=4), items_of(8), tmp_path / "a.pt")
    assert steps == []


def test_a_share_of_an_epoch(tmp_path):
    _, steps = train(bag, Training(epochs=1.5, batch_size=4), items_of(18), tmp_path / "a.pt")  # 5 batches an epoch
    assert len(steps) == 7


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_names_its_step(tmp_path, value):
    model, calls = Bag(), []

    def loss(batch):
        calls.append(1)
        return model.loss(batch) * (float(value) if len(calls) == 4 else 1.0)

    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    with pytest.raises(UserError, match=f"loss is {value} at step 4 of 10.*learning rate"):
        trainer_of(model, loss, training, tmp_path / "checkpoint.pt").run(items_of(20))
    state = torch.load(tmp_path / "checkpoint.pt")
    assert state["step"] == 3 and all(torch.isfinite(tensor).all() for tensor in state["parameters"].values())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_gradient_that_is_no_number_is_not_stepped_along(tmp_path):
    """The loss is still finite then; after the step all weights, and the next checkpoint, would not be."""
    model = Bag()

    def loss(batch):
        bias = model.out.bias.sum()
        root = (bias - bias.detach()).abs().sqrt() if batch.number == 3 else 0.0  # it is 0, its slope is not a number
        return model.loss(batch) + root

    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    with pytest.raises(UserError, match="gradient is nan at step 4 of 10"):
        trainer_of(model, loss, training, tmp_path / "checkpoint.pt").run(items_of(20))
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 3
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_nothing_to_train_on(tmp_path):
    model, loss = bag()
    with pytest.raises(UserError, match="data.train: no example is left"):
        trainer_of(model, loss, Training(), tmp_path / "checkpoint.pt").run([])


def test_schedule_rises_over_the_warm_up_and_falls_to_0():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], np.arange(90, 0, -1) / 90)
    assert schedule(100, 100, 0.1) == 0.0
    assert schedule(0, 1, 0.0) == schedule(0, 1, 0.9) == 1.0  # a single step is a whole one
    assert all(
        0 < schedule(step, steps, warmup) <= 1
        for steps in (1, 2, 3, 7)
        for warmup in (0, 0.5, 0.9)
        for step in range(steps)
    )


def test_the_schedule_scales_both_learning_rates(tmp_path):
    model = ExitModel("classification", CONFIG, 2, "linear", [2])
    training = Training(
        epochs=1, batch_size=4, learning_rate=1e-3, head_learning_rate=1e-2, warmup=0.4, weight_decay=0.1
    )
    groups = parameter_groups(list(model.encoder.parameters()), list(model.heads.parameters()), training)
    seen = []
    trainer = Trainer(
        "training", model, groups, lambda batch: model(batch.ids, batch.mask).logits[-1].sum(), training, precision="fp32", seed=0,
        checkpoint=tmp_path / "a.pt", on_step=lambda *_: seen.append([group["lr"] for group in trainer.optimizer.param_groups]),
    )  # fmt: skip
    trainer.run(items_of(20))
    shape = np.array([1 / 2, 1, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(np.array(seen), shape[:, None] * [1e-3, 1e-3, 1e-2, 1e-2])


def test_biases_and_norms_are_not_decayed_and_frozen_parameters_left_out():
    model = ExitModel("classification", CONFIG, 2, "linear", [2])
    model.encoder.embeddings.word.weight.requires_grad_(False)
    groups = parameter_groups(
        list(model.encoder.parameters()), list(model.heads.parameters()), Training(weight_decay=0.1)
    )
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.1}
    given = {id(parameter) for group in groups for parameter in group["params"]}
    assert given == {id(p) for name, p in model.named_parameters() if name != "encoder.embeddings.word.weight"}


def test_precision_is_what_the_recipe_says():
    assert compute_dtype("fp32") == torch.float32 and compute_dtype("bf16") == torch.bfloat16
    assert compute_dtype("auto") in (torch.float32, torch.bfloat16)


def recipe_of(**sections) -> Recipe:
    training = {"epochs": 6, "batch_size": 16, "learning_rate": 2e-3, "head_learning_rate": 2e-3}
    base = {
        "name": "test",
        "task": "classification",
        "precision": "fp32",
        "teacher": {"training": training},
        "distill": {"training": training},
    }
    return Recipe.model_validate(base | sections)


@torch.no_grad()
def answers(model: ExitModel, items: list[Item]) -> np.ndarray:
    return np.array(
        [int(model(torch.from_numpy(i.ids)[None], torch.ones(1, len(i.ids))).logits[-1].argmax()) for i in items]
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> ExitModel:
    torch.manual_seed(0)
    model = ExitModel("classification", CONFIG, 2, "pooled", [2])
    return finetune(model, items_of(320), recipe_of(), tmp_path_factory.mktemp("teacher") / "checkpoint.pt")


def test_a_teacher_learns_what_is_easy(teacher):
    test = items_of(100, seed=9)
    assert not teacher.training
    assert (answers(teacher, test) == [item.target[0] for item in test]).mean() >= 0.95


def test_a_frozen_embedding_stays_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = ExitModel("classification", CONFIG, 2, "pooled", [2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = recipe_of(teacher={"training": {"epochs": 1, "batch_size": 8, "freeze_embeddings": True}})
    finetune(model, items_of(16), recipe, tmp_path / "checkpoint.pt")
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"encoder.embeddings.word.weight"}


def test_a_student_learns_from_its_teacher_without_labels(teacher, tmp_path):
    """A head of its own, and one layer of two: what it knows of the labels it has from the teacher's answers."""
    torch.manual_seed(1)
    student = initialise_student(teacher, [0], None, "linear")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    training = recipe_of().distill.training.model_dump()
    unlabelled = [Item(item.ids, item.type_ids, None) for item in items_of(320, seed=4)]
    recipe = recipe_of(distill={"hard_weight": 0, "hidden_weight": 0.5, "training": training})
    student = distill(student, teacher, unlabelled, recipe, tmp_path / "checkpoint.pt")
    test = items_of(100, seed=9)
    assert (answers(student, test) == answers(teacher, test)).mean() >= 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_exit_weight_trains_the_early_exits_too(teacher, tmp_path):
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        student = initialise_student(teacher, None, None, "pooled")
        before = student.heads[0].out.bias.clone()
        recipe = recipe_of(distill={"training": {"epochs": 1, "batch_size": 8, "exit_weight": weight}})
        distill(student, teacher, items_of(16), recipe, tmp_path / f"{weight}.pt")
        assert torch.equal(student.heads[0].out.bias, before) == (weight == 0)


def test_exit_shares_say_which_exits_the_weight_is_for(teacher, tmp_path):
    deeper = ExitModel("classification", CONFIG.with_(layers=3), 2, "pooled", [1, 2, 3])
    before = [head.out.bias.clone() for head in deeper.heads]
    training = {"epochs": 1, "batch_size": 8, "exit_weight": 0.5, "exit_shares": [0, 3]}
    distill(deeper, teacher, items_of(16), recipe_of(distill={"training": training}), tmp_path / "checkpoint.pt")
    assert [torch.equal(head.out.bias, bias) for head, bias in zip(deeper.heads, before)] == [True, False, False]
    with pytest.raises(UserError, match=r"^distill\.training\.exit_shares: has 2 numbers for the 1 exits"):
        distill(
            initialise_student(teacher, None, None, "pooled"),
            teacher,
            items_of(8),
            recipe_of(distill={"training": training}),
            tmp_path / "none.pt",
        )


def test_hidden_states_of_another_width_cannot_be_compared(teacher, tmp_path):
    narrow = ExitModel("classification", CONFIG.with_(hidden_size=16), 2, "pooled", [2])
    with pytest.raises(UserError, match=r"^distill\.hidden_weight: .*as wide"):
        distill(narrow, teacher, items_of(8), recipe_of(distill={"hidden_weight": 1.0}), tmp_path / "checkpoint.pt")


def test_a_last_head_that_nothing_would_train_is_refused(teacher, tmp_path):
    recipe = recipe_of(distill={"training": {"epochs": 0}})
    new = ExitModel("classification", CONFIG, 2, "linear", [2])
    with pytest.raises(
        UserError,
        match=r"^distill\.training\.epochs: .*linear where the teacher's is pooled.*; set it above 0, or exits\.head to pooled",
    ):
        distill(new, teacher, items_of(8), recipe, tmp_path / "checkpoint.pt")
    taken_over = distill(
        initialise_student(teacher, None, None, "pooled"), teacher, items_of(8), recipe, tmp_path / "checkpoint.pt"
    )
    assert torch.equal(taken_over.heads[-1].out.bias, teacher.heads[-1].out.bias)
