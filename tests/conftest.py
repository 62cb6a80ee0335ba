"""Tiny bundles of every task for all tests, exported once per session."""

from __future__ import annotations

import os

# Set before torch is imported. On tiny models a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random  # noqa: E402
import shutil  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from pipeline.bundle.manifest import Manifest, Speed
from pipeline.data.examples import Answer, ClassificationExample, Example, QAExample
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.tasks import get_task

SYLLABLES = [a + b for a in "bdfglmnprstv" for b in ("a", "e", "i", "o", "u", "an", "el")]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *".,?!",
    *SYLLABLES,
    *(f"##{syllable}" for syllable in SYLLABLES),
]


@dataclass(frozen=True)
class TinyBundle:
    """A bundle, the PyTorch programs that it was exported from, and randomly labelled examples of its task."""

    path: Path
    manifest: Manifest
    programs: Programs
    examples: list[Example]


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory, tiny_vocab) -> TinyBundle:
    """An int8 bundle with 2 layers and exits, 3 labels whose names differ from their values, and short texts."""
    words = Words(1)
    examples = [
        ClassificationExample(
            words.text(1, 30), words.text(1, 8) if index % 3 == 0 else None, words.pick("0", "1", "2")
        )
        for index in range(24)
    ]
    recipe = Recipe.model_validate(
        {
            "name": "tiny-classifier",
            "task": "classification",
            "data": {"max_length": 64, "label_names": ["low", "middle", "high"]},
            "export": {"max_length": 64, "coreml": False},
        }
    )
    return build(tmp_path_factory.mktemp("classifier") / "bundle", recipe, 3, ("0", "1", "2"), examples, tiny_vocab)


@pytest.fixture(scope="session")
def tiny_regressor(tmp_path_factory, tiny_vocab) -> TinyBundle:
    """An int8 bundle with 4 layers and exits, labels from -2 to 6, and short texts."""
    words = Words(4)
    labels = [-2.0, 6.0, *(round(words.random.uniform(-2, 6), 2) for _ in range(22))]
    examples = [
        ClassificationExample(words.text(1, 30), words.text(1, 8) if index % 3 == 0 else None, label)
        for index, label in enumerate(labels)
    ]
    recipe = Recipe.model_validate(
        {
            "name": "tiny-regressor",
            "task": "regression",
            "data": {"max_length": 64},
            "exits": {"uncertainty": "change"},
            "export": {"max_length": 64, "coreml": False},
        }
    )
    return build(
        tmp_path_factory.mktemp("regressor") / "bundle",
        recipe,
        1,
        (),
        examples,
        tiny_vocab,
        LabelRange(minimum=-2, maximum=6),
    )


@pytest.fixture(scope="session")
def tiny_qa(tmp_path_factory, tiny_vocab) -> TinyBundle:
    """An int8 bundle with 2 layers and exits, and passages of one to about six windows. Some have no answer."""
    words = Words(2)
    examples = []
    for index in range(10):
        passage = words.text(5, 100)
        start = passage.index(" ") + 1
        answer = passage[start:].split(" ")[0]
        answers = (Answer(answer, start),) if index % 4 else ()
        examples.append(QAExample(str(index), words.text(2, 5), passage, answers))
    recipe = Recipe.model_validate(
        {
            "name": "tiny-qa",
            "task": "qa",
            "qa": {"window": 48, "stride": 12, "max_question": 16, "max_answer": 8, "allow_no_answer": True},
            "export": {"max_length": 48, "coreml": False},
        }
    )
    return build(tmp_path_factory.mktemp("qa") / "bundle", recipe, 2, (), examples, tiny_vocab)


@pytest.fixture(scope="session")
def patient_classifier(tmp_path_factory, tiny_classifier) -> TinyBundle:
    """`tiny_classifier` by patience, its two segments run twice. "once" leaves when an answer is first repeated."""
    folder = tmp_path_factory.mktemp("patient-classifier") / "bundle"
    return with_answer_measure(tiny_classifier, folder, tiny_classifier.examples)


@pytest.fixture(scope="session")
def patient_qa(tmp_path_factory, tiny_qa) -> TinyBundle:
    """`tiny_qa` by patience, run twice in the same way. Most passages are so short that random exits agree at times."""
    words = Words(3)
    short = [QAExample(str(index), words.text(2, 5), words.text(1, 1 + index % 2), ()) for index in range(24)]
    folder = tmp_path_factory.mktemp("patient-qa") / "bundle"
    return with_answer_measure(tiny_qa, folder, [*short, *tiny_qa.examples[:2]])


@pytest.fixture(scope="session")
def agreeing_classifier(tmp_path_factory, tiny_classifier) -> TinyBundle:
    """`patient_classifier` by agreement."""
    folder = tmp_path_factory.mktemp("agreeing-classifier") / "bundle"
    return with_answer_measure(tiny_classifier, folder, tiny_classifier.examples, "agreement")


@pytest.fixture(scope="session")
def agreeing_qa(tmp_path_factory, tiny_qa, patient_qa) -> TinyBundle:
    """`patient_qa` by agreement."""
    folder = tmp_path_factory.mktemp("agreeing-qa") / "bundle"
    return with_answer_measure(tiny_qa, folder, patient_qa.examples, "agreement")


def with_answer_measure(
    tiny: TinyBundle, folder: Path, examples: list[Example], measure: str = "patience"
) -> TinyBundle:
    """Copies a bundle of two segments into one that runs them twice, and that compares the answers of its exits."""
    from pipeline.bundle.conformance import CONFORMANCE_FILE, Conformance
    from pipeline.bundle.manifest import MANIFEST_FILE, ExitOptions, describe_files
    from pipeline.export.vectors import make_vectors

    shutil.copytree(tiny.path, folder)
    programs = Programs(
        tiny.programs.task, tiny.programs.embed, [*tiny.programs.segments, *tiny.programs.segments], measure
    ).eval()
    deeper_programs = [
        program.model_copy(update={"name": f"segment_{2 + int(program.name[-1])}"})
        for program in tiny.manifest.programs[1:]
    ]
    speeds = {
        name: tiny.manifest.speeds["exact"].model_copy(update={"thresholds": [1 / (patience + 0.5)] * 4})
        for name, patience in (("once", 1), ("twice", 2))
    }
    tokenizer = WordPieceTokenizer.from_vocab(folder / "vocab.txt", True)
    thresholds = {name: speed.thresholds for name, speed in speeds.items()}
    vectors = make_vectors(
        programs, programs, examples, tokenizer,
        context=tiny.manifest.answer_context, thresholds=thresholds,
    )  # fmt: skip
    # The copy is twice as deep as the bundle that the tolerances were measured on, so int8 differs by more.
    shallow = Conformance.model_validate_json((tiny.path / CONFORMANCE_FILE).read_bytes())
    tolerances = {"tolerance": 2 * shallow.tolerance, "uncertainty_tolerance": 2 * shallow.uncertainty_tolerance}
    (folder / CONFORMANCE_FILE).write_text(
        vectors.model_copy(update=tolerances).model_dump_json(exclude_none=True), encoding="utf-8"
    )
    manifest = tiny.manifest.model_copy(
        update={
            "model": tiny.manifest.model.model_copy(update={"exit_layers": [1, 2, 3, 4], "layers": 4}),
            "programs": [*tiny.manifest.programs, *deeper_programs],
            "exits": ExitOptions(uncertainty=measure),
            "speeds": speeds,
            "files": describe_files(folder),
        }
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return TinyBundle(folder, manifest, programs, examples)


class Words:
    """Makes nonsense words from a seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def text(self, min_words: int, max_words: int) -> str:
        words = [
            "".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 2)))
            for _ in range(self.random.randint(min_words, max_words))
        ]
        return " ".join(words) + "."

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)


def build(
    folder: Path,
    recipe: Recipe,
    labels: int,
    label_values,
    examples: list[Example],
    vocab: Path,
    label_range: LabelRange | None = None,
) -> TinyBundle:
    from pipeline.export.bundle import BundleSource, Labels, write_bundle
    from quantize.schemes import apply_scheme

    torch.manual_seed(0)
    layers = 4 if recipe.task == "regression" else 2  # change compares two exits, so a choice needs a third
    config = EncoderConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        layers=layers,
        heads=4,
        intermediate_size=128,
        max_positions=recipe.export.max_length,
    )
    model = ExitModel(recipe.task, config, labels, recipe.head, range(1, layers + 1))
    with torch.no_grad():
        # BERT's initial weights give every text nearly the same logits. Larger ones tell texts apart.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
        if label_range is not None:  # keeps the predictions near the range
            for head in model.heads:
                head.out.weight.mul_(0.1)
                head.out.bias.fill_(0.5)
    quantized = apply_scheme(Programs.of(model.eval()), recipe.quantize.scheme, recipe.quantize.embeddings)
    speed = {"metric": get_task(recipe.task).speed_metric, "value": 0.5, "value_full_depth": 0.5, "examples": 10}
    manifest = write_bundle(
        folder,
        recipe,
        BundleSource(model, quantized),
        WordPieceTokenizer.from_vocab(vocab),
        Labels(label_values, label_range),
        speeds={
            "exact": Speed(
                thresholds=[THRESHOLD[recipe.task]] * (layers - 1) + [0.0],
                mean_depth=1.5,
                max_loss=0.01,
                delta=0.1,
                **speed,
            ),
            "fast": Speed(thresholds=[1.1] * (layers - 1) + [0.0], mean_depth=1.0, **speed),
        },
        conformance_examples=examples[:8],
        provenance={"weights": "random", "data": "random"},
        on_step=lambda what, done, total: None,
    )
    return TinyBundle(folder, manifest, quantized, examples)


# At the speed "exact" about half of the examples leave at the first exit; a regression's leave at the second.
THRESHOLD = {"classification": 0.93, "regression": 0.1, "qa": 0.9}
