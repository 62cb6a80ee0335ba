"""Training learns, resumes exactly where it was killed, and stops with one line when it cannot continue."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.distill import trainer
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_items(count: int, seed: int = 0, lengths: tuple[int, int] = (4, 12)) -> list[Item]:
    """Returns texts with two labels: whether they contain token 7."""
    random = np.random.default_rng(seed)
    items = []
    for index in range(count):
        ids = random.integers(10, 40, random.integers(*lengths, endpoint=True))
        if index % 2:
            ids[random.integers(1, len(ids))] = 7
        items.append(Item(ids, np.zeros(len(ids), np.int64), (index % 2,)))
    return items


class BagOfWords(torch.nn.Module):
    """A minimal trainable model: a linear layer on the mean of the words' vectors."""

    def __init__(self):
        super().__init__()
        self.word, self.out = torch.nn.Embedding(40, 16), torch.nn.Linear(16, 2)

    def loss(self, batch) -> torch.Tensor:
        mean = (self.word(batch.ids) * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
        return torch.nn.functional.cross_entropy(self.out(mean), batch.targets[:, 0])


def make_trainer(model, loss, training: Training, checkpoint, precision="fp32", **options) -> Trainer:
    groups = parameter_groups([], list(model.parameters()), training)
    return Trainer(
        "training", model, groups, loss, training, precision=precision, seed=3, checkpoint=checkpoint, **options
    )


class Killed(Exception):
    pass


def train(make, training, items, checkpoint, precision="fp32", kill_at=None) -> tuple[dict, list[int]]:
    """Trains a new model and returns its weights and the steps that ran. Stops silently at step `kill_at`."""
    torch.manual_seed(0)
    model, loss = make()
    steps = []

    def on_step(what, done, total):
        if done == kill_at:
            raise Killed
        steps.append(done)

    try:
        make_trainer(model, loss, training, checkpoint, precision, on_step=on_step).run(items)
    except Killed:
        assert kill_at is not None
    return {name: value.clone() for name, value in model.state_dict().items()}, steps


def bag_of_words():
    model = BagOfWords()
    return model, model.loss


def exit_model():
    model = ExitModel("classification", CONFIG, 2, "pooled", [1, 2]).train()

    def loss(batch):
        logits = model(batch.ids, batch.mask).logits
        return sum(hard_loss("classification", part, batch.targets, None) for part in logits)

    return model, loss


# 20 items in batches of 4 are 5 batches an epoch. The kills are in the first epoch, at its end, in the second and at
# the last step.
@pytest.mark.parametrize(
    ("make", "precision", "accumulate", "kill_at"),
    [
        *((bag_of_words, "fp32", 1, step) for step in (1, 2, 5, 6, 8, 10)),
        *((bag_of_words, "fp32", 2, step) for step in (2, 3, 5)),
        (exit_model, "fp32", 1, 7),
        (exit_model, "fp32", 2, 3),
        (exit_model, "bf16", 1, 4),
    ],
)
def test_a_killed_and_resumed_training_gives_the_same_bits(tmp_path, make, precision, accumulate, kill_at):
    training = Training(epochs=2, batch_size=4, accumulate=accumulate, checkpoint_minutes=1e-9)
    items, total = make_items(20), 10 // accumulate
    whole, steps = train(make, training, items, tmp_path / "whole.pt", precision)
    assert steps == list(range(1, total + 1))
    checkpoint = tmp_path / "checkpoint.pt"
    killed, _ = train(make, training, items, checkpoint, precision, kill_at=kill_at)
    resumed, steps = train(make, training, items, checkpoint, precision)
    # The last checkpoint was written before the step that was killed; the steps before that do not run again.
    assert steps == list(range(kill_at, total + 1))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    if kill_at < total:
        assert any(not torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kill_at", [1, 4, 10])
def test_the_loss_curve_is_the_same_after_a_kill(tmp_path, kill_at):
    """This holds for a loss that draws random numbers too, since they depend on the step only."""
    training, items, curves = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9), make_items(20), []
    for name, stops in (("whole", [None]), ("killed", [kill_at, None])):
        for stop in stops:
            torch.manual_seed(0)
            model = BagOfWords()

            def loss(batch, model=model):
                keep = torch.nn.functional.dropout(torch.ones(()), 0.5) + 0.5
                return model.loss(batch) * keep

            def on_step(what, done, total, stop=stop):
                if done == stop:
                    raise Killed

            curve = tmp_path / f"{name}.json"
            trainer = make_trainer(model, loss, training, tmp_path / f"{name}.pt", on_step=on_step, curve=curve)
            try:
                trainer.run(items)
            except Killed:
                torch.rand(7)  # the resuming process starts with another random state
        curves.append(json.loads((tmp_path / f"{name}.json").read_text()))
    whole, killed = curves
    assert whole == killed and len(whole["losses"]) == 10 and whole["training"] == "training"
    assert len(set(whole["losses"])) == 10


def test_a_batch_carries_its_items_indices_and_its_number(tmp_path):
    """With them a loss finds what belongs to an item, and draws new random numbers for every batch."""
    items, seen, model = make_items(10), [], BagOfWords()

    def loss(batch):
        for row, index in enumerate(batch.indices):
            length = len(items[index].ids)
            assert batch.ids[row, :length].tolist() == items[index].ids.tolist() and batch.mask[row].sum() == length
        assert (batch.whole == batch.indices).all() and batch.token_weight == 1.0
        seen.append((batch.number, *batch.indices))
        return model.loss(batch)

    make_trainer(model, loss, Training(epochs=2, batch_size=4), tmp_path / "a.pt").run(items)
    assert [number for number, *_ in seen] == list(range(6))
    for epoch in (seen[:3], seen[3:]):
        assert sorted(index for _, *indices in epoch for index in indices) == list(range(10))


def test_a_training_killed_twice_gives_the_same_bits(tmp_path):
    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    whole, _ = train(bag_of_words, training, make_items(20), tmp_path / "whole.pt")
    for kill_at in (3, 8):
        train(bag_of_words, training, make_items(20), tmp_path / "checkpoint.pt", kill_at=kill_at)
    resumed, steps = train(bag_of_words, training, make_items(20), tmp_path / "checkpoint.pt")
    assert steps == [8, 9, 10]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_partly_written_checkpoint_is_ignored(tmp_path):
    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    whole, _ = train(bag_of_words, training, make_items(20), tmp_path / "whole.pt")
    checkpoint = tmp_path / "checkpoint.pt"
    train(bag_of_words, training, make_items(20), checkpoint, kill_at=4)
    (tmp_path / "checkpoint.partial").write_bytes(checkpoint.read_bytes()[:100])
    resumed, _ = train(bag_of_words, training, make_items(20), checkpoint)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_no_checkpoint_is_written_before_the_interval_has_passed(tmp_path):
    train(
        bag_of_words,
        Training(epochs=2, batch_size=4, checkpoint_minutes=60),
        make_items(20),
        tmp_path / "checkpoint.pt",
    )
    assert list(tmp_path.iterdir()) == []


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """Trained with plain gradient descent, since Adam would hide a gradient of the wrong size."""
    items, results = make_items(8, lengths=(6, 6)), []
    torch.manual_seed(0)
    start = BagOfWords().state_dict()
    for size, accumulate in ((8, 1), (4, 2)):
        model, losses = BagOfWords(), []
        model.load_state_dict(start)
        training = Training(epochs=4, batch_size=size, accumulate=accumulate, head_learning_rate=0.5)

        def on_step(what, *_, losses=losses):
            losses.append(float(what.split()[-1]))

        trainer = make_trainer(model, model.loss, training, tmp_path / f"{size}.pt", on_step=on_step)
        trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups)
        trainer.run(items)
        results.append((model.state_dict(), losses))
    (large, large_losses), (small, small_losses) = results
    assert len(large_losses) == 4 and large_losses == pytest.approx(small_losses, abs=2e-3)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-6)
        assert (large[name] - start[name]).abs().max() > 1e-3


def test_fewer_batches_than_accumulate_still_make_a_step(tmp_path):
    """Otherwise a small data set would be "trained" without a single update, silently."""
    _, steps = train(bag_of_words, Training(epochs=1, batch_size=4, accumulate=8), make_items(8), tmp_path / "a.pt")
    assert steps == [1]
    _, steps = train(bag_of_words, Training(epochs=0, batch_size=4), make_items(8), tmp_path / "a.pt")
    assert steps == []


def test_epochs_may_be_fractional(tmp_path):
    _, steps = train(
        bag_of_words, Training(epochs=1.5, batch_size=4), make_items(18), tmp_path / "a.pt"
    )  # 5 batches an epoch
    assert len(steps) == 7


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, value):
    model, calls = BagOfWords(), []

    def loss(batch):
        calls.append(1)
        return model.loss(batch) * (float(value) if len(calls) == 4 else 1.0)

    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    with pytest.raises(UserError, match=f"loss is {value} at step 4 of 10.*learning rate"):
        make_trainer(model, loss, training, tmp_path / "checkpoint.pt").run(make_items(20))
    state = torch.load(tmp_path / "checkpoint.pt")
    assert state["step"] == 3 and all(torch.isfinite(tensor).all() for tensor in state["parameters"].values())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_gradient_that_is_not_finite_is_never_applied(tmp_path):
    """The loss is still finite here, but a step would spoil all weights and the next checkpoint."""
    model = BagOfWords()

    def loss(batch):
        bias = model.out.bias.sum()
        root = (bias - bias.detach()).abs().sqrt() if batch.number == 3 else 0.0  # the root is 0, its derivative is NaN
        return model.loss(batch) + root

    training = Training(epochs=2, batch_size=4, checkpoint_minutes=1e-9)
    with pytest.raises(UserError, match="gradient is nan at step 4 of 10"):
        make_trainer(model, loss, training, tmp_path / "checkpoint.pt").run(make_items(20))
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 3
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_training_on_no_items_is_refused(tmp_path):
    model, loss = bag_of_words()
    with pytest.raises(UserError, match="data.train: no example is left"):
        make_trainer(model, loss, Training(), tmp_path / "checkpoint.pt").run([])


def test_the_schedule_rises_during_the_warm_up_and_falls_to_0():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], np.arange(90, 0, -1) / 90)
    assert schedule(100, 100, 0.1) == 0.0
    assert schedule(0, 1, 0.0) == schedule(0, 1, 0.9) == 1.0  # a single step gets the full rate
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
    rates = []

    def loss(batch):
        return model(batch.ids, batch.mask).logits[-1].sum()

    def on_step(*_):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    trainer = Trainer(
        "training", model, groups, loss, training,
        precision="fp32", seed=0, checkpoint=tmp_path / "a.pt", on_step=on_step,
    )  # fmt: skip
    trainer.run(make_items(20))
    factors = np.array([1 / 2, 1, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(np.array(rates), factors[:, None] * [1e-3, 1e-3, 1e-2, 1e-2])


def test_biases_and_norms_are_not_decayed_and_frozen_parameters_are_left_out():
    model = ExitModel("classification", CONFIG, 2, "linear", [2])
    model.encoder.embeddings.word.weight.requires_grad_(False)
    groups = parameter_groups(
        list(model.encoder.parameters()), list(model.heads.parameters()), Training(weight_decay=0.1)
    )
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.1}
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(p) for name, p in model.named_parameters() if name != "encoder.embeddings.word.weight"}


def test_the_recipes_precision_decides_the_dtype():
    assert compute_dtype("fp32") == torch.float32 and compute_dtype("bf16") == torch.bfloat16
    assert compute_dtype("auto") in (torch.float32, torch.bfloat16)


def test_auto_computes_in_float32_where_torch_is_held_to_older_instructions(monkeypatch):
    monkeypatch.setattr(trainer, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for capability, expected in (("AVX2", torch.float32), ("AVX512", torch.bfloat16)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert compute_dtype("auto") is expected


def make_recipe(**sections) -> Recipe:
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
def predict_labels(model: ExitModel, items: list[Item]) -> np.ndarray:
    logits = [model(torch.from_numpy(item.ids)[None], torch.ones(1, len(item.ids))).logits[-1] for item in items]
    return np.array([int(row.argmax()) for row in logits])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> ExitModel:
    torch.manual_seed(0)
    model = ExitModel("classification", CONFIG, 2, "pooled", [2])
    return finetune(model, make_items(320), make_recipe(), tmp_path_factory.mktemp("teacher") / "checkpoint.pt")


def test_a_teacher_learns_an_easy_task(teacher):
    test = make_items(100, seed=9)
    assert not teacher.training
    assert (predict_labels(teacher, test) == [item.target[0] for item in test]).mean() >= 0.95


def test_a_frozen_embedding_does_not_change(tmp_path):
    torch.manual_seed(0)
    model = ExitModel("classification", CONFIG, 2, "pooled", [2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = make_recipe(teacher={"training": {"epochs": 1, "batch_size": 8, "freeze_embeddings": True}})
    finetune(model, make_items(16), recipe, tmp_path / "checkpoint.pt")
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"encoder.embeddings.word.weight"}


def test_a_student_learns_from_its_teacher_without_labels(teacher, tmp_path):
    """The student has a new head and one of two layers; the teacher's answers are its only source for the labels."""
    torch.manual_seed(1)
    student = initialise_student(teacher, [0], None, "linear")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    training = make_recipe().distill.training.model_dump()
    unlabelled = [Item(item.ids, item.type_ids, None) for item in make_items(320, seed=4)]
    recipe = make_recipe(distill={"hard_weight": 0, "hidden_weight": 0.5, "training": training})
    student = distill(student, teacher, unlabelled, recipe, tmp_path / "checkpoint.pt")
    test = make_items(100, seed=9)
    assert (predict_labels(student, test) == predict_labels(teacher, test)).mean() >= 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_exit_weight_trains_the_early_exits_too(teacher, tmp_path):
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        student = initialise_student(teacher, None, None, "pooled")
        before = student.heads[0].out.bias.clone()
        recipe = make_recipe(distill={"training": {"epochs": 1, "batch_size": 8, "exit_weight": weight}})
        distill(student, teacher, make_items(16), recipe, tmp_path / f"{weight}.pt")
        assert torch.equal(student.heads[0].out.bias, before) == (weight == 0)


def test_exit_shares_divide_the_exit_weight_among_the_exits(teacher, tmp_path):
    deeper = ExitModel("classification", CONFIG.with_(layers=3), 2, "pooled", [1, 2, 3])
    before = [head.out.bias.clone() for head in deeper.heads]
    training = {"epochs": 1, "batch_size": 8, "exit_weight": 0.5, "exit_shares": [0, 3]}
    distill(deeper, teacher, make_items(16), make_recipe(distill={"training": training}), tmp_path / "checkpoint.pt")
    assert [torch.equal(head.out.bias, bias) for head, bias in zip(deeper.heads, before)] == [True, False, False]
    with pytest.raises(UserError, match=r"^distill\.training\.exit_shares: has 2 numbers for the 1 exits"):
        distill(
            initialise_student(teacher, None, None, "pooled"),
            teacher,
            make_items(8),
            make_recipe(distill={"training": training}),
            tmp_path / "none.pt",
        )


def test_comparing_hidden_states_of_different_widths_is_refused(teacher, tmp_path):
    narrow = ExitModel("classification", CONFIG.with_(hidden_size=16), 2, "pooled", [2])
    with pytest.raises(UserError, match=r"^distill\.hidden_weight: .*as wide"):
        distill(narrow, teacher, make_items(8), make_recipe(distill={"hidden_weight": 1.0}), tmp_path / "checkpoint.pt")


def test_a_new_last_head_without_training_is_refused(teacher, tmp_path):
    recipe = make_recipe(distill={"training": {"epochs": 0}})
    new = ExitModel("classification", CONFIG, 2, "linear", [2])
    message = (
        r"^distill\.training\.epochs: .*linear where the teacher's is pooled.*; "
        r"set it above 0, or exits\.head to pooled"
    )
    with pytest.raises(UserError, match=message):
        distill(new, teacher, make_items(8), recipe, tmp_path / "checkpoint.pt")
    inherited = distill(
        initialise_student(teacher, None, None, "pooled"), teacher, make_items(8), recipe, tmp_path / "checkpoint.pt"
    )
    assert torch.equal(inherited.heads[-1].out.bias, teacher.heads[-1].out.bias)
