"""Tiny bundles of every task, exported once a session for every folder's tests."""

from __future__ import annotations

import os

# Before torch is imported: on tiny models a second thread only waits for the first, and for whatever else the machine does.
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
    """A bundle, with the eager programs that it was exported from and examples of its task, labelled by chance."""

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
    """int8, 2 layers and exits, 3 labels whose names differ from their values, inputs of 4 to 60 tokens."""
    words = Words(1)
    examples = [
        ClassificationExample(words.text(1, 30), words.text(1, 8) if at % 3 == 0 else None, words.pick("0", "1", "2"))
        for at in range(24)
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
    """int8, 4 layers and exits, labels from -2 to 6, inputs of 4 to 60 tokens."""
    words = Words(4)
    labels = [-2.0, 6.0, *(round(words.random.uniform(-2, 6), 2) for _ in range(22))]
    examples = [
        ClassificationExample(words.text(1, 30), words.text(1, 8) if at % 3 == 0 else None, label)
        for at, label in enumerate(labels)
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
    """int8, 2 layers and exits, windows of 48 tokens that share 12; passages of one to about six windows; no answer is an answer."""
    words = Words(2)
    examples = []
    for at in range(10):
        passage = words.text(5, 100)
        start = passage.index(" ") + 1
        answer = passage[start:].split(" ")[0]
        examples.append(QAExample(str(at), words.text(2, 5), passage, (Answer(answer, start),) if at % 4 else ()))
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
    """`tiny_classifier` with its two segments run twice, four exits, by patience: "once" leaves at the first answer that is repeated."""
    return patient(tiny_classifier, tmp_path_factory.mktemp("patient-classifier") / "bundle", tiny_classifier.examples)


@pytest.fixture(scope="session")
def patient_qa(tmp_path_factory, tiny_qa) -> TinyBundle:
    """The same of `tiny_qa`, with passages so short that exits with random weights agree at times, and two of several windows."""
    words = Words(3)
    short = [QAExample(str(at), words.text(2, 5), words.text(1, 1 + at % 2), ()) for at in range(24)]
    return patient(tiny_qa, tmp_path_factory.mktemp("patient-qa") / "bundle", [*short, *tiny_qa.examples[:2]])


@pytest.fixture(scope="session")
def agreeing_classifier(tmp_path_factory, tiny_classifier) -> TinyBundle:
    """`patient_classifier` by agreement."""
    return patient(
        tiny_classifier,
        tmp_path_factory.mktemp("agreeing-classifier") / "bundle",
        tiny_classifier.examples,
        "agreement",
    )


@pytest.fixture(scope="session")
def agreeing_qa(tmp_path_factory, tiny_qa, patient_qa) -> TinyBundle:
    """`patient_qa` by agreement."""
    return patient(tiny_qa, tmp_path_factory.mktemp("agreeing-qa") / "bundle", patient_qa.examples, "agreement")


def patient(tiny: TinyBundle, folder: Path, examples: list[Example], measure: str = "patience") -> TinyBundle:
    from pipeline.bundle.conformance import CONFORMANCE_FILE, Conformance
    from pipeline.bundle.exit_rule import patience_threshold
    from pipeline.bundle.manifest import MANIFEST_FILE, ExitOptions, describe_files
    from pipeline.export.vectors import make_vectors

    shutil.copytree(tiny.path, folder)
    programs = Programs(
        tiny.programs.task, tiny.programs.embed, [*tiny.programs.segments, *tiny.programs.segments], measure
    ).eval()
    again = [
        program.model_copy(update={"name": f"segment_{2 + int(program.name[-1])}"})
        for program in tiny.manifest.programs[1:]
    ]
    speeds = {
        name: tiny.manifest.speeds["exact"].model_copy(update={"thresholds": [patience_threshold(patience)] * 4})
        for name, patience in (("once", 1), ("twice", 2))
    }
    tokenizer = WordPieceTokenizer.from_vocab(folder / "vocab.txt", True)
    thresholds = {name: speed.thresholds for name, speed in speeds.items()}
    vectors = make_vectors(
        programs, programs, examples, tokenizer,
        context=tiny.manifest.answer_context, thresholds=thresholds,
    )  # fmt: skip
    # Twice as deep, so int8 differs by more than in the bundle that the tolerances are from.
    shallow = Conformance.model_validate_json((tiny.path / CONFORMANCE_FILE).read_bytes())
    tolerances = {"tolerance": 2 * shallow.tolerance, "uncertainty_tolerance": 2 * shallow.uncertainty_tolerance}
    (folder / CONFORMANCE_FILE).write_text(
        vectors.model_copy(update=tolerances).model_dump_json(exclude_none=True), encoding="utf-8"
    )
    manifest = tiny.manifest.model_copy(
        update={
            "model": tiny.manifest.model.model_copy(update={"exit_layers": [1, 2, 3, 4], "layers": 4}),
            "programs": [*tiny.manifest.programs, *again],
            "exits": ExitOptions(uncertainty=measure),
            "speeds": speeds,
            "files": describe_files(folder),
        }
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return TinyBundle(folder, manifest, programs, examples)


class Words:
    """Seeded nonsense."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def text(self, fewest: int, most: int) -> str:
        words = [
            "".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 2)))
            for _ in range(self.random.randint(fewest, most))
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
    from pipeline.export.bundle import write_bundle
    from quantize.schemes import apply_scheme

    torch.manual_seed(0)
    layers = 4 if recipe.task == "regression" else 2  # change takes two exits, and a choice a third
    config = EncoderConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        layers=layers,
        heads=4,
        intermediate_size=128,
        max_positions=recipe.export.max_length,
    )
    model = ExitModel(recipe.task, config, labels, recipe.head, range(1, layers + 1))
    with (
        torch.no_grad()
    ):  # BERT's initialisation is all but undecided; these weights have opinions, which differ from text to text
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
        if label_range is not None:  # predictions within the range, or nearly
            for head in model.heads:
                head.out.weight.mul_(0.1)
                head.out.bias.fill_(0.5)
    quantized = apply_scheme(Programs.of(model.eval()), recipe.quantize.scheme, recipe.quantize.embeddings)
    speed = {"metric": get_task(recipe.task).speed_metric, "value": 0.5, "value_full_depth": 0.5, "examples": 10}
    manifest = write_bundle(
        folder,
        model=model,
        quantized=quantized,
        recipe=recipe,
        tokenizer_vocab=vocab,
        lowercase=True,
        label_values=label_values,
        label_range=label_range,
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


# Of the speed "exact": about half of the examples leave at the first exit, of a regression's at the second.
THRESHOLD = {"classification": 0.93, "regression": 0.1, "qa": 0.9}
