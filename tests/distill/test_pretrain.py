"""Pre-training distillation: each loss term, learning, resuming after a kill, and the stage of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.corpus import Blocks, open_corpus, write_corpus
from pipeline.data.items import collate
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill import pretrain as module
from pipeline.distill.pretrain import fit_head, mask_batch, measure, pretrain, student_of
from pipeline.distill.trainer import TensorBatch
from pipeline.model.checkpoint import load_encoder
from pipeline.model.encoder import Encoder, EncoderConfig
from pipeline.model.mlm import MaskedLM, MlmHead
from pipeline.recipe import Recipe
from pipeline.run.engine import Run
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly

PHRASES = ["ba be bi bo bu da", "fa fe fi fo fu ga", "la le li lo lu ma", "na ne ni no nu pa"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four phrases repeated at random, so a masked word follows from its neighbours."""
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = [". ".join(PHRASES[index] for index in random.integers(0, 4, 8)) + "." for _ in range(60)]
    file.write_text("\n".join(lines))
    return file


def make_recipe(corpus, **pretrain) -> Recipe:
    training = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "head_learning_rate": 2e-3,
        "checkpoint_minutes": 1e-9,
    }
    options = {"corpus": str(corpus), "length": 24, "head_training": training, "training": training} | pretrain
    return Recipe.model_validate(
        {"name": "t", "task": "classification", "precision": "fp32", "student": {"layers": [0, 2]}, "pretrain": options}
    )


@pytest.fixture(scope="module")
def blocks(corpus, tiny_vocab, tmp_path_factory) -> Blocks:
    tokenizer = WordPieceTokenizer.from_vocab(tiny_vocab)
    file = tmp_path_factory.mktemp("ids") / "corpus.ids"
    options = make_recipe(corpus).pretrain
    write_corpus(str(corpus), tokenizer, file, options)
    return open_corpus(file, tokenizer, options)


def make_model(blocks: Blocks, seed: int = 0, **changes) -> MaskedLM:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": blocks.vocab_size,
        "hidden_size": 64,
        "layers": 3,
        "heads": 4,
        "intermediate_size": 96,
        "max_positions": 32,
    }
    config = EncoderConfig(**shape | changes)
    return MaskedLM(Encoder(config), MlmHead(config)).eval()


@pytest.fixture(scope="module")
def teacher(blocks) -> MaskedLM:
    """A model with larger weights than BERT's initialisation, so that its answers are far from uniform."""
    teacher = make_model(blocks)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return teacher


def copy_model(model: MaskedLM) -> MaskedLM:
    copy = MaskedLM(Encoder(model.encoder.config), MlmHead(model.encoder.config))
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def make_batch(blocks: Blocks, rows, number: int = 0, whole=None) -> TensorBatch:
    rows = np.asarray(rows)
    items = collate([blocks[row] for row in rows])
    return TensorBatch.of(items, torch.device("cpu"), rows, None if whole is None else np.asarray(whole), number)


def test_masks_depend_on_the_batchs_number(blocks):
    first, repeated, later = (mask_batch(make_batch(blocks, range(8), number), blocks, 1) for number in (3, 3, 4))
    assert torch.equal(first.ids, repeated.ids) and torch.equal(first.chosen, repeated.chosen)
    assert not torch.equal(first.chosen, later.chosen)
    original = make_batch(blocks, range(8)).ids
    assert torch.equal(first.words, original[first.chosen])
    for special in (blocks.tokenizer.cls_id, blocks.tokenizer.sep_id):
        assert not first.chosen[original == special].any()


def test_two_processes_mask_the_words_of_one_and_their_means_add_up(blocks):
    whole = list(range(6))
    alone = mask_batch(make_batch(blocks, whole, 2), blocks, 1)
    parts = [mask_batch(make_batch(blocks, whole[rank::2], 2, whole), blocks, 1) for rank in range(2)]
    values = torch.arange(alone.chosen.numel()).view(alone.chosen.shape).float()
    for rank, part in enumerate(parts):
        assert torch.equal(part.chosen, alone.chosen[rank::2]) and torch.equal(part.ids, alone.ids[rank::2])
    shares = [0.5 * part.word_weight * values[rank::2][part.chosen].mean() for rank, part in enumerate(parts)]
    assert float(sum(shares)) == pytest.approx(float(values[alone.chosen].mean()), rel=1e-5)
    assert alone.word_weight == 1.0


def first_loss(monkeypatch, student, teacher, blocks, recipe, tmp_path):
    """Returns the loss on one batch, after its backward pass, with a fake trainer in place of the real one."""
    losses = []

    class FakeTrainer:
        def __init__(self, name, modules, groups, loss, training, **options):
            self.loss = loss

        def run(self, items):
            losses.append(self.loss(make_batch(items, range(6))))
            losses[0].backward()

    monkeypatch.setattr(module, "Trainer", FakeTrainer)
    pretrain(student, teacher, blocks, recipe, tmp_path / "none.pt")
    return losses[0].item()


@torch.no_grad()
def expected_terms(student, teacher, blocks, temperature=2.0):
    """Computes the three terms with torch's losses: soft targets, masked words, cosine of the hidden states."""
    functional = torch.nn.functional
    batch = mask_batch(make_batch(blocks, range(6)), blocks, 0)
    ours, theirs = student.encoder(batch.ids, batch.mask)[-1], teacher.encoder(batch.ids, batch.mask)[-1]
    student_logits, teacher_logits = (
        model.head(hidden.flatten(0, 1), model.encoder.embeddings.word.weight)[batch.chosen.flatten()]
        for model, hidden in ((student, ours), (teacher, theirs))
    )
    log_probabilities = functional.log_softmax(student_logits / temperature, -1)
    targets = functional.softmax(teacher_logits / temperature, -1)
    soft = functional.kl_div(log_probabilities, targets, reduction="batchmean") * temperature**2
    cosine = functional.cosine_embedding_loss(
        ours[batch.mask > 0], theirs[batch.mask > 0], torch.ones(int(batch.mask.sum()))
    )
    return float(soft), float(functional.cross_entropy(student_logits, batch.words)), float(cosine)


@pytest.mark.parametrize("weights", [(5, 2, 1), (5, 0, 0), (0, 2, 0), (0, 0, 1), (1, 0, 3)], ids=str)
def test_the_loss_is_the_weighted_sum_of_torchs_losses(monkeypatch, teacher, blocks, corpus, tmp_path, weights):
    soft, mlm, hidden = weights
    recipe = make_recipe(corpus, soft_weight=soft, mlm_weight=mlm, hidden_weight=hidden)
    student = make_model(blocks, seed=1, layers=2)
    terms = expected_terms(student, teacher, blocks)
    loss = first_loss(monkeypatch, student, teacher, blocks, recipe, tmp_path)
    assert loss == pytest.approx(sum(weight * term for weight, term in zip(weights, terms)), rel=1e-4)
    assert (student.head.bias.grad is not None) == bool(soft or mlm)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("weights", "calls"),
    [
        ((5, 2, 1), (1, 1, 1)),
        ((0, 2, 0), (0, 0, 1)),
        ((0, 2, 1), (1, 0, 1)),
        ((0, 0, 1), (1, 0, 0)),
        ((5, 0, 0), (1, 1, 1)),
    ],
    ids=str,
)
def test_a_term_of_weight_0_is_not_computed(monkeypatch, teacher, blocks, corpus, tmp_path, weights, calls):
    """Counts the forward passes of the teacher's encoder, the teacher's head and the student's head."""
    student, counts = make_model(blocks, seed=1, layers=2), [0, 0, 0]
    for index, part in enumerate((teacher.encoder, teacher.head, student.head)):
        part.register_forward_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    recipe = make_recipe(corpus, **dict(zip(("soft_weight", "mlm_weight", "hidden_weight"), weights)))
    first_loss(monkeypatch, student, teacher, blocks, recipe, tmp_path)
    for part in (teacher.encoder, teacher.head, student.head):
        part._forward_hooks.clear()
    assert tuple(counts) == calls


def test_a_student_comes_closer_to_its_teacher(teacher, blocks, corpus, tmp_path):
    recipe = make_recipe(corpus, mlm_weight=0.0)  # this teacher was not trained on the corpus
    rest, held_out = blocks.split(8, 0)
    student = make_model(blocks, seed=1, layers=2)
    before = measure(student, teacher, held_out, recipe)
    pretrain(student, teacher, rest, recipe, tmp_path / "checkpoint.pt")
    after = measure(student, teacher, held_out, recipe)
    assert after.soft_loss < 0.6 * before.soft_loss and after.cosine < 0.6 * before.cosine
    assert after.perplexity == pytest.approx(np.exp(after.mlm_loss))
    itself = measure(teacher, teacher, held_out, recipe)
    assert itself.soft_loss == pytest.approx(0, abs=1e-5) and itself.cosine == pytest.approx(0, abs=1e-5)


def test_a_model_learns_the_words_of_the_corpus(blocks, corpus, tmp_path):
    recipe = make_recipe(corpus, soft_weight=0.0, hidden_weight=0.0)
    rest, held_out = blocks.split(8, 0)
    student = make_model(blocks, seed=1)
    assert measure(student, student, held_out, recipe).mlm_loss == pytest.approx(np.log(blocks.vocab_size), rel=0.05)
    pretrain(student, copy_model(student), rest, recipe, tmp_path / "checkpoint.pt")
    assert measure(student, student, held_out, recipe).mlm_loss < np.log(30)  # the corpus has 25 of 177 words


class Killed(Exception):
    pass


def test_a_killed_and_resumed_training_gives_the_same_bits(teacher, blocks, corpus, tmp_path):
    """The masks are the same too, since the batch's number seeds them."""
    recipe = make_recipe(corpus, training={"epochs": 2, "batch_size": 8, "accumulate": 2, "checkpoint_minutes": 1e-9})

    def kill(what, done, total):
        if done == 3:
            raise Killed

    whole = pretrain(student_of(teacher, recipe), teacher, blocks, recipe, tmp_path / "whole.pt")
    with pytest.raises(Killed):
        pretrain(student_of(teacher, recipe), teacher, blocks, recipe, tmp_path / "killed.pt", kill)
    assert (tmp_path / "killed.pt").is_file()
    resumed = pretrain(student_of(teacher, recipe), teacher, blocks, recipe, tmp_path / "killed.pt")
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_fitting_a_head_leaves_the_encoder_frozen(teacher, blocks, corpus, tmp_path):
    headless = copy_model(teacher)
    torch.manual_seed(9)
    headless.head = MlmHead(teacher.encoder.config)
    recipe = make_recipe(corpus)
    before = measure(headless, teacher, blocks, recipe).mlm_loss
    frozen = {name: tensor.clone() for name, tensor in headless.encoder.state_dict().items()}
    fit_head(headless, blocks, recipe, tmp_path / "head.pt")
    assert measure(headless, teacher, blocks, recipe).mlm_loss < 0.85 * before
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in headless.encoder.state_dict().items())
    with pytest.raises(UserError, match="^pretrain.head_training.epochs: "):
        fit_head(headless, blocks, make_recipe(corpus, head_training={"epochs": 0}), tmp_path / "head.pt")


def test_a_random_student_has_none_of_the_teachers_weights(teacher, corpus):
    recipe = make_recipe(corpus)
    random = student_of(
        teacher, recipe.model_copy(update={"student": recipe.student.model_copy(update={"initialise": "random"})})
    )
    copied = student_of(teacher, recipe)
    assert torch.equal(copied.head.dense.weight, teacher.head.dense.weight)
    assert random.encoder.config == copied.encoder.config
    state = copied.state_dict()
    assert not any(torch.equal(tensor, state[name]) for name, tensor in random.state_dict().items() if tensor.ndim == 2)


def test_a_corpus_in_another_vocabulary_is_refused(teacher, blocks, corpus, tmp_path):
    other = make_model(blocks, vocab_size=blocks.vocab_size + 1)
    with pytest.raises(
        UserError, match=r"^pretrain\.corpus: the corpus is in tokens of a vocabulary of \d+, the model knows \d+; "
    ):
        pretrain(other, copy_model(other), blocks, make_recipe(corpus), tmp_path / "checkpoint.pt")


def test_a_vocabulary_without_mask_is_refused(teacher, blocks, corpus, tmp_path):
    tokens = ["[MISC]" if token == "[MASK]" else token for token in blocks.tokenizer.tokens]
    maskless = Blocks(blocks.tokens, blocks.length, WordPieceTokenizer(tokens))
    with pytest.raises(UserError, match=r"^pretrain\.teacher: the teacher's vocabulary has no \[MASK\]"):
        pretrain(
            student_of(teacher, make_recipe(corpus)), teacher, maskless, make_recipe(corpus), tmp_path / "checkpoint.pt"
        )


def test_blocks_longer_than_the_models_positions_are_refused(blocks, corpus, tmp_path):
    short = make_model(blocks, max_positions=16)
    with pytest.raises(UserError, match=r"^pretrain\.length: 24 is more than the 16 positions"):
        fit_head(short, blocks, make_recipe(corpus), tmp_path / "head.pt")


# The stage of a run.


@pytest.fixture(scope="module")
def checkpoints(tiny_vocab, tmp_path_factory):
    """Checkpoint folders in Hugging Face's format: a masked language model, one without its head, a wider one."""
    transformers = import_quietly("transformers")
    words = tiny_vocab.read_text()
    folders = {}
    for name, kind, width in (
        ("mlm", "BertForMaskedLM", 64),
        ("headless", "BertModel", 64),
        ("wide", "BertForMaskedLM", 96),
    ):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        transformers.set_seed(0)
        sizes = {
            "hidden_size": width,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 64,
        }
        getattr(transformers, kind)(
            transformers.BertConfig(vocab_size=len(words.split("\n")) - 1, **sizes)
        ).save_pretrained(folder)
        (folder / "vocab.txt").write_text(words)
    return folders


def run_of(corpus, out, weights, **pretrain) -> Run:
    recipe = make_recipe(corpus, **{"training": {"epochs": 1, "batch_size": 8, "learning_rate": 2e-3}} | pretrain)
    return Run(recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"weights": str(weights)})}), out)


def test_the_stage_writes_an_encoder_and_its_metrics(corpus, checkpoints, tmp_path, capsys):
    run = run_of(corpus, tmp_path, checkpoints["mlm"])
    run.run_up_to("pretrain")
    files = {path.name for path in (tmp_path / "pretrained").iterdir()}
    assert files == {"model.safetensors", "encoder.json", "vocab.txt", "metrics.json", "losses.json"}
    encoder = load_encoder(tmp_path / "pretrained")
    assert encoder.config.layers == 2 and encoder.config.token_types == 0
    metrics = json.loads((tmp_path / "pretrained" / "metrics.json").read_text())
    assert metrics["after"]["mlm_loss"] < metrics["before"]["mlm_loss"] and metrics["teacher"]["cosine"] < 1e-5
    assert set(metrics["after"]) == {"mlm_loss", "perplexity", "soft_loss", "cosine"}
    assert not any("head" in name for name in load_file(tmp_path / "pretrained" / "model.safetensors"))
    capsys.readouterr()
    run.run_up_to("pretrain")
    output = capsys.readouterr().err
    assert "pretrain  unchanged" in output and "masked-LM head" not in output


def test_a_checkpoint_without_a_head_gets_one_and_a_message(corpus, checkpoints, tmp_path, capsys):
    run_of(corpus, tmp_path, checkpoints["headless"]).run_up_to("pretrain")
    output = capsys.readouterr().err
    assert output.count("comes without a masked-LM head") == 1


def test_what_changes_the_pretrained_student(corpus, checkpoints, tmp_path):
    run = run_of(corpus, tmp_path, checkpoints["mlm"])
    recipe = run.recipe

    def marks(recipe):
        other = Run(recipe, tmp_path)
        return other.stage_key("pretrain"), other.stage_key("distill")

    def changed(section, **values):
        return marks(recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)}))

    before = marks(recipe)
    assert changed("student", exit_layers=[2])[0] == before[0] != changed("student", layers=[0, 1])[0]
    assert changed("distill", hard_weight=0.1)[0] == before[0]
    assert changed("teacher", token_types=False)[0] == before[0]
    assert all(now != then for now, then in zip(changed("pretrain", mlm_weight=1.0), before))
    content = corpus.read_text()
    corpus.write_text(content + " ba")
    try:
        assert all(now != then for now, then in zip(marks(recipe), before))
    finally:
        corpus.write_text(content)


def test_a_recipe_without_a_corpus_does_not_know_the_stage(checkpoints, tmp_path):
    """Its other keys change nothing either."""
    plain = Recipe.model_validate(
        {"name": "t", "task": "classification", "teacher": {"weights": str(checkpoints["mlm"])}}
    )
    weighted = plain.model_copy(update={"pretrain": plain.pretrain.model_copy(update={"mlm_weight": 9.0})})
    assert Run(plain, tmp_path).stage_key("distill") == Run(weighted, tmp_path).stage_key("distill")
    with pytest.raises(UserError, match="^pretrain.corpus: "):
        Run(plain, tmp_path).run_up_to("pretrain")


def test_a_wider_teacher_than_the_tasks_is_refused_at_once(corpus, checkpoints, tmp_path):
    with pytest.raises(UserError, match="^pretrain.teacher: the student's width is 96, the teacher's 64; "):
        run_of(corpus, tmp_path, checkpoints["mlm"], teacher=str(checkpoints["wide"])).run_up_to("pretrain")


def test_a_teacher_of_another_vocabulary_than_the_tasks_is_refused_at_once(corpus, checkpoints, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in checkpoints["mlm"].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "vocab.txt").write_text((other / "vocab.txt").read_text().replace("\nba\n", "\nab\n"))
    with pytest.raises(
        UserError, match="^pretrain.teacher: its vocabulary is not that of .*; take a teacher with the same"
    ):
        run_of(corpus, tmp_path / "out", checkpoints["mlm"], teacher=str(other)).run_up_to("pretrain")
