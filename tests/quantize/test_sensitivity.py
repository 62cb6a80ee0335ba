"""Sensitivity agrees with torch's divergence, and finds the one matrix of a model that cannot bear fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from quantize.schemes import named_linears
from quantize.sensitivity import Sensitivity, divergence, measure_sensitivity


def recipe_of(task: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 64},
            "qa": {"window": 48, "stride": 12, "max_question": 16, "max_answer": 8, "allow_no_answer": True},
            "exits": {"uncertainty": "change" if task == "regression" else "entropy"},
            "export": {"max_length": 64},
        }
    )


def programs_of(task: str, vocabulary: int) -> Programs:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=vocabulary, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=64
    )
    labels, head = {"classification": (3, "linear"), "regression": (1, "linear"), "qa": (2, "linear")}[task]
    model = ExitModel(task, config, labels, head, (1, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return Programs.of(model)


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab) -> WordPieceTokenizer:
    return WordPieceTokenizer.from_vocab(tiny_vocab, True)


def examples_of(task: str, count: int = 20) -> list:
    random = np.random.default_rng(0)
    texts = [
        " ".join(random.choice(["ba", "de", "fi", "go", "lu", "man"], size=random.integers(3, 20)))
        for _ in range(count)
    ]
    if task == "qa":
        return [
            QAExample(str(number), "ba de", text, (Answer(text.split(" ")[0], 0),)) for number, text in enumerate(texts)
        ]
    labels = [("0", "1", "2")[row % 3] if task == "classification" else row / count for row in range(count)]
    return [ClassificationExample(text, None, label) for text, label in zip(texts, labels)]


LABELS = {"classification": ("0", "1", "2"), "regression": LabelRange(minimum=0, maximum=1), "qa": ("start", "end")}


def test_divergence_equals_torchs():
    reference, logits = (torch.randn(6, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    def expected(one, other):
        return float(F.kl_div(F.log_softmax(other, -1), F.softmax(one, -1), reduction="sum"))

    assert divergence("classification", reference[:, 0].numpy(), logits[:, 0].numpy()) == pytest.approx(
        expected(reference[:, 0], logits[:, 0]), rel=1e-5
    )
    mask = np.array([False, True, True, False, True, False])
    spans = [expected(reference[mask][:, end], logits[mask][:, end]) for end in (0, 1)]
    assert divergence("qa", reference.numpy(), logits.numpy(), mask) == pytest.approx(sum(spans) / 2, rel=1e-5)
    normal = [torch.distributions.Normal(value, 1.0) for value in (0.25, 0.75)]
    normal_divergence = float(torch.distributions.kl_divergence(*normal))
    assert divergence("regression", np.array([0.25]), np.array([0.75])) == pytest.approx(normal_divergence)


@pytest.mark.parametrize("task", ["classification", "regression", "qa"])
def test_every_matrix_and_the_table_are_measured_alone(task, tokenizer):
    programs = programs_of(task, tokenizer.vocab_size)
    before = {name: value.clone() for name, value in programs.state_dict().items()}
    result, judge = measure_sensitivity(programs, examples_of(task), tokenizer, LABELS[task], recipe_of(task))
    assert judge.judge(programs) == (0.0, 0.0)
    assert {entry.matrix for entry in result.entries} == {*named_linears(programs), "embeddings.word"}
    assert len(result.entries) == 2 * (8 + 1) and result.examples == 20
    for matrix in {entry.matrix for entry in result.entries}:
        entries = result.of(matrix)
        assert 0 < entries["int8"].divergence < entries["int4"].divergence, matrix
        assert entries["int8"].bytes > entries["int4"].bytes
        assert entries["int4"].loss is not None
    assert all(torch.equal(value, before[name]) for name, value in programs.state_dict().items())
    assert Sensitivity.model_validate_json(result.model_dump_json()) == result


def test_a_matrix_that_cannot_bear_four_bits_stands_out(tokenizer):
    """Large weights on inputs that are always 0 change no answer, and leave no steps to the rest of their groups."""
    programs = programs_of("classification", tokenizer.vocab_size)
    layer = programs.segments[1].layers[0]
    with torch.no_grad():
        layer.ffn_in.weight[::32] = 0.0
        layer.ffn_in.bias[::32] = 0.0
        layer.ffn_out.weight[:, ::32] = 100.0
    arguments = (tokenizer, LABELS["classification"], recipe_of("classification"), ["int4"])
    result, _ = measure_sensitivity(programs, examples_of("classification"), *arguments)
    layers = {entry.matrix: entry.divergence for entry in result.entries if entry.matrix.startswith("layers.1.")}
    assert max(layers, key=layers.get) == "layers.1.ffn_out"


def test_without_labels_only_the_divergence_is_measured(tokenizer):
    unlabelled = [ClassificationExample(example.text, None, None) for example in examples_of("classification")]
    recipe, programs = recipe_of("classification"), programs_of("classification", tokenizer.vocab_size)
    result, _ = measure_sensitivity(programs, unlabelled, tokenizer, LABELS["classification"], recipe, ["int8"])
    assert result.score is None and all(entry.loss is None and entry.divergence > 0 for entry in result.entries)


def test_a_heads_matrix_is_judged_by_its_own_exit(tokenizer):
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=256, layers=2, heads=4, intermediate_size=64, max_positions=64
    )
    programs = Programs.of(ExitModel("classification", config, 3, "pooled", (1, 2)).eval())
    result, _ = measure_sensitivity(
        programs,
        examples_of("classification"),
        tokenizer,
        LABELS["classification"],
        recipe_of("classification"),
        ["int4"],
    )
    assert all(result.of(f"exits.{exit}.value")["int4"].divergence > 0 for exit in (0, 1))


def test_too_few_texts_and_unknown_schemes_are_refused(tokenizer):
    arguments = (tokenizer, LABELS["classification"], recipe_of("classification"))
    programs = programs_of("classification", tokenizer.vocab_size)
    with pytest.raises(UserError, match="15 texts to compare on, at least 16 are needed"):
        measure_sensitivity(programs, examples_of("classification", 15), *arguments)
    with pytest.raises(UserError, match="--schemes: 'int5' is no scheme; take one of fp32"):
        measure_sensitivity(programs, examples_of("classification"), *arguments, ["int5"])
