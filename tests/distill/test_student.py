"""A student starts from its teacher's layers."""

from __future__ import annotations

import pytest
import torch

from pipeline.distill.student import default_layers, initialise_student
from pipeline.model.encoder import Encoder, EncoderConfig, parameter_count
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import load_pretrained
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly

transformers = import_quietly("transformers")

CONFIG = EncoderConfig(
    vocab_size=100, hidden_size=32, layers=4, heads=2, intermediate_size=64, max_positions=40, token_types=2
)


def make_teacher(config: EncoderConfig = CONFIG, head: str = "bert", task: str = "classification") -> ExitModel:
    torch.manual_seed(0)
    teacher = ExitModel(task, config, 3 if task == "classification" else 2, head, [config.layers]).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher


def test_the_default_is_every_other_layer_of_a_deep_teacher():
    assert default_layers(12) == [0, 2, 4, 6, 8, 10]  # as DistilBERT does
    assert default_layers(6) == [0, 1, 2, 3, 4, 5]
    assert default_layers(2) == [0, 1]
    assert default_layers(24) == list(range(0, 24, 2))


def test_a_student_of_a_12_layer_teacher_gets_every_other_layer():
    teacher = make_teacher(CONFIG.with_(layers=12))
    student = initialise_student(teacher, None, None, "pooled")
    assert student.config.layers == 6 and student.exit_layers == (1, 2, 3, 4, 5, 6) and student.config.token_types == 0
    for ours, theirs in enumerate([0, 2, 4, 6, 8, 10]):
        for name, tensor in student.encoder.layers[ours].state_dict().items():
            assert torch.equal(tensor, teacher.encoder.layers[theirs].state_dict()[name])


def test_a_student_of_bert_base_is_as_large_as_distilbert():
    """The papers give 110 M and 66 M parameters (DistilBERT, table 3). Hugging Face's models have the same counts."""
    with torch.device("meta"):
        teacher = ExitModel("classification", EncoderConfig(layers=12, token_types=2), 2, "bert", [12])
        student = initialise_student(teacher, None, [6], "linear").encoder
        bert = transformers.BertModel(transformers.BertConfig())
        distilbert = transformers.DistilBertModel(transformers.DistilBertConfig())
    pooler = parameter_count(teacher.heads[-1].dense)
    assert parameter_count(teacher.encoder) + pooler == parameter_count(bert) == 109_482_240
    assert parameter_count(student) == parameter_count(distilbert) == 66_362_880


@torch.no_grad()
def test_a_student_of_all_layers_equals_hugging_faces_bert_on_one_text(tmp_path):
    """Token type 0 is folded into the positions, and the pooler is removed."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    theirs = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=40)).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *range(96)]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    pretrained = load_pretrained(str(tmp_path), "classification")
    teacher = ExitModel("classification", pretrained.config, 2, "bert", [4])
    teacher.encoder.load_state_dict(pretrained.encoder)
    student = initialise_student(teacher, [0, 1, 2, 3], [4], "pooled").eval()
    ids = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([20, 5, 13])[:, None]).float()
    expected = theirs(input_ids=ids, attention_mask=mask.long(), token_type_ids=torch.zeros_like(ids)).last_hidden_state
    hidden = student.encoder(ids, mask)[-1]
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
    assert student.encoder.embeddings.token_type is None


def test_other_layers_can_be_chosen():
    teacher = make_teacher(CONFIG.with_(layers=12))
    student = initialise_student(teacher, [0, 2, 4, 7, 9, 11], None, "pooled")
    for ours, theirs in enumerate([0, 2, 4, 7, 9, 11]):
        assert torch.equal(student.encoder.layers[ours].qkv.weight, teacher.encoder.layers[theirs].qkv.weight)


def test_a_random_student_has_the_same_shape_and_none_of_the_teachers_weights():
    teacher = make_teacher()
    copied = initialise_student(teacher, [0, 2], None, "bert").state_dict()
    random = initialise_student(teacher, [0, 2], None, "bert", initialise="random").state_dict()
    assert {name: tensor.shape for name, tensor in random.items()} == {
        name: tensor.shape for name, tensor in copied.items()
    }
    assert not any(torch.equal(tensor, copied[name]) for name, tensor in random.items() if tensor.ndim == 2)


@pytest.mark.parametrize("initialise", ["teacher", "random"])
def test_a_student_can_start_from_a_pretrained_encoder(initialise):
    teacher = make_teacher()
    torch.manual_seed(5)
    encoder = Encoder(CONFIG.with_(layers=3, token_types=0))
    student = initialise_student(teacher, [0, 2], None, "bert", encoder=encoder, initialise=initialise)
    assert student.exit_layers == (1, 2, 3)
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in student.encoder.state_dict().items())
    assert torch.equal(student.heads[-1].dense.weight, teacher.heads[-1].dense.weight) == (initialise == "teacher")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 90}, "vocabulary is 90, the teacher's 100"),
        ({"hidden_size": 48}, "width is 48, the teacher's 32"),
        ({"heads": 4}, "heads is 4, the teacher's 2"),
    ],
)
def test_a_pretrained_encoder_of_another_family_is_refused(changes, words):
    encoder = Encoder(CONFIG.with_(layers=2, token_types=0, **changes))
    with pytest.raises(UserError, match="^teacher.weights: the student's .*" + words):
        initialise_student(make_teacher(), None, None, "bert", encoder=encoder)


@pytest.mark.parametrize("task", ["classification", "qa"])
@torch.no_grad()
def test_a_student_of_all_layers_equals_the_teacher(task):
    head = "bert" if task == "classification" else "linear"
    teacher = make_teacher(head=head, task=task)
    student = initialise_student(teacher, list(range(4)), None, head).eval()
    ids = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([20, 5, 13])[:, None]).float()
    output, expected = student(ids, mask), teacher(ids, mask)
    for ours, theirs in zip(output.hidden, expected.hidden, strict=True):
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits[-1], expected.logits[-1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_student_shares_no_memory_with_the_teacher():
    teacher = make_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for parameter in initialise_student(teacher, None, None, "bert").parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1, 2], [0, 4]], ids=str)
def test_layers_that_the_teacher_does_not_have_are_refused(layers):
    with pytest.raises(UserError, match=r"^student\.layers: .* within 0 to 3"):
        initialise_student(make_teacher(), layers, None, "pooled")


@pytest.mark.parametrize("exits", [[], [1], [0, 2], [2, 1, 2], [1, 3]], ids=str)
def test_exits_must_end_with_the_students_last_layer(exits):
    with pytest.raises(UserError, match=r"^student\.exit_layers: .* end with 2"):
        initialise_student(make_teacher(), [0, 2], exits, "pooled")
