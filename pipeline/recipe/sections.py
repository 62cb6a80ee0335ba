"""The sections of a recipe: every key with its type, default, limits and description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from pipeline import schemes
from pipeline.names import Uncertainty
from pipeline.support.document import Document
from pipeline.tasks import TASKS


def one_of(names: Sequence[str]) -> AfterValidator:
    """Returns a validator that accepts these names. Its message for others is that of a pydantic literal."""

    def check(name: str) -> str:
        if name not in names:
            *others, last = (f"'{known}'" for known in names)
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return name

    return AfterValidator(check)


# Marks a key that older runs do not know. At its default it does not count in the key of a stage.
ADDED_LATER: dict[str, JsonValue] = {"added_later": True}


class Section(Document):
    """A table of a recipe."""

    def key_values(self) -> dict[str, Any]:
        """Returns what the section adds to the keys of stages: all values, but later keys only where they are set.

        A key that was added later is marked `json_schema_extra=ADDED_LATER`. So runs that finished before it existed
        stay finished.
        """
        values = self.model_dump()
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == ADDED_LATER and getattr(self, name) == field.default:
                del values[name]
        return values


class Data(Section):
    """The examples to learn from and to measure on."""

    train: str = Field(
        "demo", description='training examples: a file, the name of a hub data set, or "demo" for the built-in data'
    )
    dev: str = Field(
        "demo",
        description='examples to measure on, given like train, or "split" to hold a part of train out; '
        "they are never trained on",
    )
    dev_share: float = Field(
        0.15,
        ge=0.01,
        le=0.5,
        description='share of the training examples to measure on, if dev is "split"; equal texts, and questions '
        "about one passage, stay on one side",
        json_schema_extra=ADDED_LATER,
    )
    text: str | None = Field(None, description="column of the text; guessed from the column names if not set")
    text_pair: str | None = Field(
        None, description='column of the second text of a pair; guessed if not set, "" for none'
    )
    label: str | None = Field(
        None, description="column of the label, which is a class or, for regression, a number; guessed if not set"
    )
    label_names: list[str] = Field(
        [], description="names of the classes for display, in the order of their labels; empty: the labels themselves"
    )
    train_limit: int | None = Field(
        None, ge=1, description="maximum number of training examples, drawn at random; not set: all"
    )
    dev_limit: int | None = Field(
        None, ge=1, description="maximum number of dev examples, drawn at random; not set: all"
    )
    calibration: int = Field(
        2000, ge=50, description="examples to take out of train; they calibrate the thresholds of the exits"
    )
    max_length: int = Field(
        128, ge=8, le=512, description="tokens at which a classification or regression input is cut"
    )


class QA(Section):
    """Question answering: windows over the passage and answers, in tokens. Other tasks do not read it."""

    window: int = Field(
        384, ge=32, le=512, description="tokens of a window, which holds the question and a part of the passage"
    )
    stride: int = Field(128, ge=0, description="tokens of the passage that two neighbouring windows share")
    max_question: int = Field(64, ge=4, description="tokens at which a question is cut")
    max_answer: int = Field(30, ge=1, description="maximum number of tokens of an answer")
    allow_no_answer: bool = Field(
        False, description="whether a passage may lack the answer, as in SQuAD v2.0; the model may then give none"
    )


class Training(Section):
    """Optimisation with AdamW, linear warm-up and decay, and batches of similar lengths."""

    epochs: float = Field(1.0, ge=0, description="passes over the training data; 0 skips the training")
    batch_size: int = Field(32, ge=1, description="examples of a batch")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are summed for one optimizer step")
    learning_rate: float = Field(6e-5, gt=0, description="largest learning rate of the pretrained weights")
    head_learning_rate: float = Field(5e-4, gt=0, description="largest learning rate of newly initialised heads")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the optimizer steps in which the learning rate rises")
    freeze_embeddings: bool = Field(
        False, description="keep the pretrained word embeddings unchanged; saves a third of the training time"
    )
    exit_weight: float = Field(
        0.0, ge=0, description="weight of all exits before the last one in the loss; 0 trains only the last exit"
    )
    exit_shares: list[float] | None = Field(
        None,
        description="shares of exit_weight, one number for each exit before the last, scaled to sum to 1; "
        "not set: equal shares",
    )
    checkpoint_minutes: float = Field(
        2.0, gt=0, description="minutes between two checkpoints, from which an interrupted training continues"
    )


class Pretrain(Section):
    """Pre-training of the student on plain text before any task, by distillation (DistilBERT, sections 2 and 3).

    It is skipped without a corpus. An optimizer step reads training.batch_size * training.accumulate blocks of text.
    For the 4,000 blocks of the paper, set them to 20 and 200, for example.
    """

    corpus: str | None = Field(
        None,
        description="plain text to pre-train on: a file, a folder of files, or a hub data set, which is streamed; "
        "not set: no pre-training",
    )
    text: str = Field("text", description="column of the text if the corpus is a hub data set")
    limit: int | None = Field(None, ge=2, description="maximum number of blocks to read from the corpus; not set: all")
    length: int = Field(128, ge=8, le=512, description="tokens of a block, into which the text is cut")
    held_out: int = Field(256, ge=1, description="blocks to measure on, but at most a tenth of all blocks")
    teacher: str | None = Field(
        None,
        description="model to learn from, with the vocabulary and the width of teacher.weights; not set: that one",
    )
    temperature: float = Field(2.0, gt=0, description="temperature that softens the predictions of teacher and student")
    soft_weight: float = Field(
        5.0, ge=0, description="weight of the loss against the teacher's predictions of the masked tokens; 0 omits it"
    )
    mlm_weight: float = Field(
        2.0, ge=0, description="weight of the cross-entropy with the masked tokens themselves; 0 omits it"
    )
    hidden_weight: float = Field(
        1.0, ge=0, description="weight of the cosine loss between the last hidden states of both models; 0 omits it"
    )
    head_training: Training = Field(
        Training(epochs=1, head_learning_rate=1e-3),
        description="training of a masked-LM head for a teacher that has none; other teachers do not need it",
    )
    training: Training = Field(Training(learning_rate=1e-4), description="training of the student")


class Teacher(Section):
    """The model that the student learns from, after it is fine-tuned for the task."""

    weights: str = Field(
        "minilm", description='pretrained BERT: a folder, the name of a hub model, or "minilm" for the offline package'
    )
    token_types: bool = Field(
        True,
        description="keep separate embeddings for the first and the second text; "
        "false adds the first one to the positions, as DistilBERT has it",
    )
    training: Training = Field(Training(), description="fine-tuning of the teacher")


class Student(Section):
    """The model that the bundle holds: which layers it has, and after which of them an exit."""

    layers: list[int] | None = Field(
        None,
        description="layers of the teacher to start from, counted from 0; "
        "not set: every other layer (0, 2, 4, ...), or all layers if there are at most 6",
    )
    exit_layers: list[int] | None = Field(
        None, description="layers of the student with an exit after them, counted from 1; not set: all layers"
    )
    initialise: Literal["teacher", "random"] = Field(
        "teacher", description="initial weights: those of the teacher's layers, or random ones for as many layers"
    )


class Distill(Section):
    """Training of the student for the task. Each part of the loss has a weight; 0 omits the part."""

    temperature: float = Field(
        2.0,
        gt=0,
        description="temperature that softens the predictions of teacher and student; regression does not read it",
    )
    soft_weight: float = Field(1.0, ge=0, description="weight of the loss against the teacher's predictions")
    hard_weight: float = Field(0.5, ge=0, description="weight of the loss against the labels")
    hidden_weight: float = Field(
        0.0, ge=0, description="weight of the cosine loss between the last hidden states of teacher and student"
    )
    attention_weight: float = Field(
        0.0, ge=0, description="weight of the loss between the attention of the last layers (MiniLM, section 3.1)"
    )
    keep_targets: bool = Field(
        False,
        description="compute the teacher's predictions once and keep them on disk; saves time from the second epoch on",
    )
    unlabelled: str | None = Field(
        None,
        description="more texts like the training data, a file or a hub data set whose labels are ignored; "
        "the student learns the teacher's predictions for them (not for qa)",
    )
    quantize_aware: bool = Field(
        False,
        description="train with the weights and inputs of the encoder's linear layers rounded to int8, "
        "as the programs will have them",
    )
    training: Training = Field(Training(), description="training of the student")


class Exits(Section):
    """The exit heads: how they learn from the last exit while the encoder is frozen, and when an exit may answer."""

    head: str = Field(
        "default",
        description="kind of exit head; default is the first one of the task: "
        + "; ".join(f"{', '.join(task.heads)} for {name}" for name, task in TASKS.items()),
    )
    uncertainty: Uncertainty = Field(
        "entropy",
        description="what is compared with a threshold: entropy, max_probability, margin, patience (exits in a row "
        "that agree, PABEE) or agreement (entropy and patience combined); regression needs change",
    )
    training: Training = Field(
        Training(epochs=2, batch_size=64, learning_rate=1e-3, head_learning_rate=1e-3),
        description="training of the exit heads",
    )
    train_limit: int | None = Field(
        24000,
        ge=1,
        description="maximum number of training examples for the exit heads, which need fewer than the encoder",
    )
    temperature_scaling: bool = Field(
        False,
        description="fit a temperature for each exit on a part of the calibration examples (Guo et al. 2017)",
    )
    delta: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="probability with which a named speed may lose more than allowed (exact, balanced, fast)",
    )
    exact: float = Field(
        0.005, gt=0, lt=1, description="loss that the speed exact may have compared with all layers; 0.01 is one point"
    )
    balanced: float = Field(0.01, gt=0, lt=1, description="loss that the speed balanced may have")
    fast: float = Field(0.02, gt=0, lt=1, description="loss that the speed fast may have")


class Quantize(Section):
    """How the bundle stores and computes weights. `pipeline/schemes.py` says what each scheme means."""

    scheme: Annotated[str, one_of(schemes.LINEAR_SCHEMES)] = Field(
        schemes.DEFAULT_SCHEME,
        description="scheme of the linear layers of ExecuTorch programs; " + schemes.summaries(schemes.LINEAR_SCHEMES),
    )
    embeddings: Annotated[str, one_of(schemes.WORD_TABLE_SCHEMES)] = Field(
        schemes.DEFAULT_SCHEME,
        description=f"scheme of the table of word embeddings: {', '.join(schemes.WORD_TABLE_SCHEMES)}; "
        "mixed needs scheme=mixed, whose budget then decides about the table too",
    )
    budget_mb: float | None = Field(
        None, gt=0, description="mixed only: maximum size of the weights in the .pte file, in megabytes (1e6 bytes)"
    )
    budget_points: float | None = Field(
        None,
        ge=0,
        description="mixed only: loss that the last exit may have, in points (0.01 of accuracy, F1 or label range)",
    )
    sensitivity_examples: int = Field(
        256,
        ge=16,
        description="mixed only: maximum number of calibration examples to measure how sensitive each matrix is",
    )
    rounding_texts: int = Field(
        128,
        ge=0,
        description="training texts for which int4 weights are rounded so that errors cancel out; "
        "0 rounds every weight to the nearest step",
    )


class Export(Section):
    """Which programs the bundle has.

    ExecuTorch programs take inputs of any length up to `max_length`. Core ML programs have fixed lengths (buckets).
    """

    coreml: bool = Field(True, description="also write Core ML packages")
    executorch_coreml: bool = Field(
        False,
        description="also write .pte files in which ExecuTorch delegates to Core ML: float16, with the buckets, target "
        "and layout of the Core ML packages; for targets before iOS18 each bucket is a file with all weights",
    )
    max_length: int = Field(
        512, ge=16, le=512, description="maximum number of tokens of an input of ExecuTorch programs"
    )
    coreml_buckets: list[int] = Field(
        [32, 128], min_length=1, description="lengths of Core ML programs in tokens; inputs are padded to one of them"
    )
    coreml_target: schemes.AppleSystem = Field("iOS18", description="oldest system that runs the Core ML programs")
    coreml_precision: Annotated[str, one_of(schemes.COREML_SCHEMES)] = Field(
        schemes.DEFAULT_SCHEME,
        description="scheme of the weights of Core ML programs, where mixed follows what quantize.scheme=mixed found; "
        + schemes.summaries(schemes.COREML_SCHEMES),
    )
    coreml_calibration: int = Field(
        256,
        ge=16,
        description="int8-a8 only: maximum number of calibration examples to find the ranges of the layers' inputs",
    )
    coreml_layout: Literal["standard", "ane"] = Field(
        "standard",
        description="layout of tensors; ane puts channels first, as Apple's Neural Engine prefers; same results",
    )


class Bench(Section):
    """Measurements on this machine."""

    reference: Literal["bert-base", "none"] = Field(
        "bert-base", description="model to compare latencies with: a BERT-base in float32, or none"
    )
    reference_length: int = Field(
        128, ge=8, le=512, description="tokens that the reference pads every input to, as it has no other lengths"
    )
    lengths: list[int] = Field([16, 32, 64, 128], min_length=1, description="input lengths in tokens to measure at")
    repeats: int = Field(15, ge=3, description="timed runs of each measurement")
    threads: int = Field(2, ge=1, description="threads of every measured system")
    evaluate_limit: int | None = Field(
        None, ge=1, description="maximum number of dev examples to evaluate the bundle on; not set: all"
    )
    speeds: list[str] = Field(
        ["0", "exact", "balanced", "fast"],
        description="speeds to evaluate at: a name, or a threshold of the uncertainty; 0 runs all layers",
    )
