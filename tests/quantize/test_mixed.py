"""A mix meets its budget, gives up what costs least, and a budget that no mix meets is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bundle.manifest import read_manifest
from pipeline.data.examples import ClassificationExample
from pipeline.data.jsonl import save_examples
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.bundle import BundleSource, Labels, write_bundle
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.run.preconditions import check_calibration_size
from pipeline.run.quantizing import coreml_student, quantized_student, rounded_student, student_schemes
from pipeline.run.results import Results
from pipeline.run.stages.quantize import quantize
from pipeline.support.errors import UserError
from pipeline.support.workspace import StageFolder
from pipeline.verify.verify import verify
from quantize.mixed import Choice, Mix, bisect_last, choose, greedy_path
from quantize.schemes import apply_schemes, named_linears
from quantize.size import executorch_parts, size_of


def recipe_of(**quantize) -> Recipe:
    options = {"scheme": "mixed", "embeddings": "mixed", **quantize}
    return Recipe.model_validate(
        {"name": "tiny", "task": "classification", "data": {"max_length": 64}, "quantize": options}
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab) -> WordPieceTokenizer:
    return WordPieceTokenizer.from_vocab(tiny_vocab, True)


@pytest.fixture(scope="module")
def inputs(tokenizer) -> dict[str, torch.Tensor]:
    """Returns the ids of some texts, by text."""
    random = np.random.default_rng(0)
    texts = [
        " ".join(random.choice(["ba", "de", "fi", "go", "lu", "man"], size=random.integers(3, 20))) for _ in range(60)
    ]
    return {text: torch.tensor([[tokenizer.cls_id, *tokenizer.encode(text).ids, tokenizer.sep_id]]) for text in texts}


def last_logits(programs: Programs, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[texts, labels]"""
    return torch.cat([programs(ids, torch.zeros(1, 1, ids.shape[1]))[-1][1] for ids in inputs.values()])


@pytest.fixture(scope="module")
def programs(tokenizer, inputs) -> Programs:
    """Two layers. The second's ffn_out matters most and cannot bear four bits: it has weights of 100 on inputs of 0.

    The last exit prefers no label, so that some texts are near a tie.
    """
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=64
    )
    model = ExitModel("classification", config, 3, "linear", (1, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
        layer = model.encoder.layers[1]
        layer.ffn_in.weight[::32], layer.ffn_in.bias[::32], layer.ffn_out.weight[:, ::32] = 0.0, 0.0, 100.0
        layer.ffn_out.weight[:, 1::32] *= 3.0
        model.heads[-1].out.bias -= last_logits(Programs.of(model), inputs).mean(dim=0)
    return Programs.of(model)


@pytest.fixture(scope="module")
def examples(programs, inputs) -> list[ClassificationExample]:
    """Examples with the float32 model's labels, so that it scores 1."""
    return [
        ClassificationExample(text, None, str(int(each.argmax())))
        for text, each in zip(inputs, last_logits(programs, inputs))
    ]


def chosen(programs, examples, tokenizer, **quantize):
    return choose(programs, examples, tokenizer, ("0", "1", "2"), recipe_of(**quantize))


def test_the_path_takes_the_least_loss_per_byte_first():
    """Each move of the path has the least loss per byte among those that are left."""
    choices = {
        "a": {"fp32": Choice(400, 0.0), "int8": Choice(100, 0.03), "int4": Choice(50, 0.5)},
        "b": {"fp32": Choice(800, 0.0), "int8": Choice(200, 0.006), "int4": Choice(100, 0.03)},
        "c": {"fp32": Choice(40, 0.0), "int8": Choice(10, 0.0)},
    }
    path = greedy_path(choices)
    assert path == [("c", "int8"), ("b", "int8"), ("a", "int8"), ("b", "int4"), ("a", "int4")]
    current, slopes = dict.fromkeys(choices, "fp32"), []
    for matrix, scheme in path:
        then, now = choices[matrix][scheme], choices[matrix][current[matrix]]
        slopes.append((then.divergence - now.divergence) / (now.bytes - then.bytes))
        current[matrix] = scheme
    assert slopes == sorted(slopes)


def test_bisection_finds_the_last_number_that_fits():
    for last, answer in itertools.combinations_with_replacement(range(12), 2):
        answer, last = sorted((last, answer))
        assert bisect_last(last, lambda number, answer=answer: number <= answer) == answer


def test_a_budget_of_bytes_is_met_and_spares_the_weakest_matrix(programs, examples, inputs, tokenizer):
    full, smallest = executorch_parts(programs, "fp32", "fp32").total, executorch_parts(programs, "int4", "int4").total
    budget = smallest + 5_000  # room for ffn_out, 8,192 values, in eight bits
    mix = chosen(programs, examples, tokenizer, budget_mb=budget / 1e6)
    assert smallest < mix.bytes <= budget < full
    assert mix.bytes == executorch_parts(programs, mix.schemes, mix.schemes["embeddings.word"]).total
    assert set(mix.schemes) == {*named_linears(programs), "embeddings.word"}
    assert mix.schemes["layers.1.ffn_out"] == "int8" and list(mix.schemes.values()).count("int4") >= 6
    together = apply_schemes(programs, mix.schemes)
    all_int4 = apply_schemes(programs, dict.fromkeys(mix.schemes, "int4"))
    expected, actual, worse = (last_logits(model, inputs) for model in (programs, together, all_int4))
    assert float((actual - expected).norm()) < 0.7 * float((worse - expected).norm())


def test_a_budget_of_points_is_kept_and_used(programs, examples, tokenizer):
    mix = chosen(programs, examples, tokenizer, budget_points=2.0)
    assert mix.sensitivity.score == 1.0 and mix.loss <= 0.02
    assert mix.bytes < executorch_parts(programs, "int8", "int8").total * 1.5


def test_fixed_embeddings_keep_their_scheme(programs, examples, tokenizer):
    mix = chosen(programs, examples, tokenizer, embeddings="fp16", budget_mb=10)
    assert mix.schemes["embeddings.word"] == "fp16" and mix.loss == 0.0
    assert {scheme for matrix, scheme in mix.schemes.items() if matrix != "embeddings.word"} == {
        "fp32"
    }  # 10 MB ask for nothing


def test_a_budget_that_no_mix_meets_is_refused_with_the_smallest_size(programs, examples, tokenizer):
    smallest = executorch_parts(programs, "int4", "int4").total / 1e6
    with pytest.raises(
        UserError, match=rf"quantize.budget_mb: 0.01 MB cannot be met: the smallest mix is {smallest:.2f} MB"
    ):
        chosen(programs, examples, tokenizer, budget_mb=0.01)


def test_a_budget_of_points_needs_labels(programs, examples, tokenizer):
    unlabelled = [ClassificationExample(each.text, None, None) for each in examples]
    with pytest.raises(UserError, match=r"quantize.budget_points: needs labelled texts"):
        chosen(programs, unlabelled, tokenizer, budget_points=1.0)
    assert chosen(programs, unlabelled, tokenizer, budget_mb=0.1).loss is None


def test_bytes_and_points_that_cannot_be_had_together(programs, examples, tokenizer):
    smallest = executorch_parts(programs, "int4", "int4").total / 1e6 + 1e-6
    with pytest.raises(
        UserError, match=r"quantize.budget_points: 0 points cannot be met in .* MB: the least loss reached is \d"
    ):
        chosen(programs, examples, tokenizer, budget_mb=smallest, budget_points=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "mixed"}, "quantize.scheme: mixed needs a budget"),
        ({"budget_mb": 20}, "quantize.budget_mb: is for the scheme mixed"),
        ({"budget_points": 1}, "quantize.budget_points: is for the scheme mixed"),
        ({"embeddings": "mixed"}, "quantize.embeddings: is for the scheme mixed"),
    ],
)
def test_budgets_and_mixes_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"name": "tiny", "task": "classification", "quantize": options})


@dataclass(frozen=True)
class ReadyResults(Results):
    """The results of a run whose stages before `quantize` are done: a model, its vocabulary and its data."""

    student: ExitModel
    vocab: Path
    data: list[ClassificationExample]

    def model(self, stage: str) -> ExitModel:
        return self.student

    def examples(self, part: str) -> list[ClassificationExample]:
        return self.data

    def labels(self) -> tuple[str, ...]:
        return ("0", "1", "2")

    def tokenizer(self) -> WordPieceTokenizer:
        return WordPieceTokenizer.from_vocab(self.vocab, True)


def test_the_stage_keeps_the_mix_and_the_bundle_names_it(tmp_path, tiny_vocab, tokenizer, examples):
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=64
    )
    model = ExitModel("classification", config, 3, "linear", (1,)).eval()
    # Untrained embeddings are so small that a layer norm's epsilon, which float16 holds to 6e-8 at best, costs 88 dB.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    recipe = recipe_of(budget_mb=0.052)
    export = {"coreml_precision": "mixed", "coreml_buckets": [64], "max_length": 64}
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update=export)})
    examples = examples * 2
    folder = tmp_path / "quantized"
    results = ReadyResults(recipe, ("quantize",), lambda stage: folder, lambda stage: None, model, tiny_vocab, examples)
    folder.mkdir()
    save_examples(examples, folder / "calibration.jsonl")
    quantize(results, StageFolder(folder, tmp_path), lambda *step: None)
    mix = Mix.model_validate_json((tmp_path / "quantized" / "mix.json").read_bytes())
    assert len(set(mix.schemes.values())) > 1 and mix.bytes <= 52_000
    steps, held = named_linears(Programs.of(rounded_student(results))), named_linears(quantized_student(results))
    in_four_bits = [name for name, scheme in mix.schemes.items() if scheme == "int4" and name in held]
    assert in_four_bits
    for name in in_four_bits:  # the bundle has the weights that were rounded on texts
        torch.testing.assert_close(held[name].weight.dequantize(), steps[name].weight.detach(), rtol=0.004, atol=1e-6)
        assert not torch.equal(steps[name].weight, named_linears(Programs.of(model))[name].weight)
    # The thresholds are tested on the other examples.
    assert mix.sensitivity.examples == len(results.draft_examples()) < len(examples)
    manifest = write_bundle(
        tmp_path / "bundle",
        recipe,
        BundleSource(model, quantized_student(results), coreml_student(results), student_schemes(results)),
        WordPieceTokenizer.from_vocab(tiny_vocab),
        Labels(("0", "1", "2")),
        speeds={},
        conformance_examples=examples[:4],
        provenance={},
    )
    assert read_manifest(tmp_path / "bundle") == manifest and manifest.matrix_schemes == mix.schemes
    assert (manifest.scheme, manifest.embeddings_scheme) == ("mixed", mix.schemes["embeddings.word"])
    assert [str(check) for check in verify(tmp_path / "bundle").checks if not check.passed] == []
    target = size_of(tmp_path / "bundle").targets[0]
    assert target.parts.embeddings + target.parts.layers + target.parts.heads == mix.bytes
    assert 20_000 < target.parts.overhead < 60_000
    coreml = size_of(tmp_path / "bundle").targets[1]
    assert coreml.scheme == "mixed" and 0 < coreml.parts.overhead < 150_000
    assert {each.precision for each in manifest.programs if each.backend == "coreml"} == {"mixed"}


def test_a_split_too_small_to_choose_on_is_refused_before_anything_is_trained():
    recipe = recipe_of(budget_mb=1)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"calibration": 79})})
    with pytest.raises(
        UserError,
        match=r"data.calibration: 79 examples leave 15 to compare matrices on, at least 16 .* set it to 80 or more",
    ):
        check_calibration_size(recipe)


def test_a_bundle_of_one_scheme_has_no_field_for_a_mix(tiny_classifier):
    assert "matrix_schemes" not in json.loads((tiny_classifier.path / "manifest.json").read_bytes())
