"""The stages of a run: what goes into each, and what it leaves behind. Order and dependence stand in `STAGES`, nowhere else."""

from __future__ import annotations

import json
import platform
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.data.demo import load_demo
from pipeline.data.examples import Answer, ClassificationExample, Example, QAExample
from pipeline.data.files import read_examples
from pipeline.data.items import make_items
from pipeline.data.splits import label_values, split_off
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.errors import UserError
from pipeline.manifest import Speed, read_manifest, sha256_of
from pipeline.progress import OnStep, console, progress
from pipeline.recipe import Recipe
from pipeline.workspace import Place, Workspace, fingerprint, write_text


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: the command, and the key of its record.
        folder: where its result lies in the output folder.
        after: stages whose results it reads.
        sections: parts of the recipe that it reads; a change in any other leaves its result standing.
        build: does the work.
        version: raised when the code of a stage changes what it produces, so that older results are made anew.
    """

    name: str
    folder: str
    after: tuple[str, ...]
    sections: tuple[str, ...]
    build: Callable[[Run, Place, OnStep], None]
    version: int = 1


class Run:
    """A recipe on its way through the stages, in one output folder."""

    def __init__(self, recipe: Recipe, out: str | Path):
        self.recipe = recipe
        self.workspace = Workspace(out)

    def path(self, stage: str) -> Path:
        """The folder that a finished stage left."""
        return self.workspace.folder(STAGES[stage].folder)

    def mark(self, name: str) -> str:
        """The fingerprint of everything that goes into a stage, its predecessors' included."""
        stage = STAGES[name]
        sections = [getattr(self.recipe, section) for section in stage.sections]
        values = [section.model_dump() if hasattr(section, "model_dump") else section for section in sections]
        inputs = self.input_digests() if name == "prepare" else self.weights_digest() if name == "finetune" else None
        return fingerprint(name, stage.version, values, inputs, [self.mark(before) for before in stage.after])

    def input_digests(self) -> list[str]:
        """What identifies the data: a file's digest, or the name of a set."""
        sources = (self.recipe.data.train, self.recipe.data.dev)
        return [sha256_of(Path(source)) if Path(source).is_file() else source for source in sources]

    def weights_digest(self) -> list[str]:
        """What identifies the teacher's weights: the files' digests of a local folder, or the name."""
        folder = Path(self.recipe.teacher.weights)
        names = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")
        return [sha256_of(folder / name) for name in names if (folder / name).is_file()] or [str(folder)]

    def upto(self, last: str) -> None:
        """Runs a stage and everything it needs, skipping what is done; prints the time of each."""
        with self.workspace.locked():
            for name in order_upto(last):
                stage = STAGES[name]
                mark = self.mark(name)
                if self.workspace.is_done(stage.folder, mark):
                    console.print(f"{name:<9} unchanged")
                    continue
                console.print(f"{name:<9} ...")
                with progress() as on_step:
                    self.workspace.run(stage.folder, mark, partial(stage.build, self, on_step=on_step))
                console.print(f"{name:<9} {self.seconds(name):.0f} s")

    def seconds(self, name: str) -> float:
        record = self.workspace.record(STAGES[name].folder)
        return record["seconds"] if record else float("nan")

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of every finished stage, in order."""
        return {name: self.seconds(name) for name in STAGES if self.workspace.record(STAGES[name].folder)}

    # What stages left, read back.

    def examples(self, part: str) -> list[Example]:
        """ "train", "calibration" or "dev"."""
        return load_examples(self.path("prepare") / f"{part}.jsonl")

    def labels(self) -> tuple[str, ...]:
        """Label values in the order of the logits; ("start", "end") for question answering."""
        return tuple(json.loads((self.path("prepare") / "labels.json").read_text()))

    def tokenizer(self) -> WordPieceTokenizer:
        options = json.loads((self.path("finetune") / "tokenizer.json").read_text())
        return WordPieceTokenizer.from_vocab(self.path("finetune") / "vocab.txt", lowercase=options["lowercase"])

    def model(self, stage: str):
        from pipeline.model.checkpoint import load_model

        return load_model(self.path(stage))

    def metrics(self, stage: str) -> dict[str, float]:
        return json.loads((self.path(stage) / "metrics.json").read_text())


def save_examples(examples: Sequence[Example], path: Path) -> None:
    """One JSON object a line."""
    with open(path, "w", encoding="utf-8") as stream:
        for example in examples:
            stream.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")


def load_examples(path: Path) -> list[Example]:
    """What `save_examples` wrote."""
    examples: list[Example] = []
    # Not splitlines(): texts may hold line separators that JSON does not escape.
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            raw = json.loads(line)
            if "question" in raw:
                raw["answers"] = tuple(Answer(**answer) for answer in raw["answers"])
                examples.append(QAExample(**raw))
            else:
                examples.append(ClassificationExample(**raw))
    return examples


def read_source(recipe: Recipe, part: str) -> list[Example]:
    """The recipe's training or dev examples, from the embedded data, a file, or a hub set."""
    source, limit = getattr(recipe.data, part), getattr(recipe.data, f"{part}_limit")
    if source == "demo":
        return some_of(load_demo(recipe.task)[0 if part == "train" else 1], limit, recipe.seed)
    data = recipe.data
    examples = read_examples(source, recipe.task, text=data.text, text_pair=data.text_pair, label=data.label)
    return some_of(examples, limit, recipe.seed)


def prepare(run: Run, place: Place, on_step: OnStep) -> None:
    """Reads and checks the data, cuts the calibration split off, and keeps all in one form."""
    recipe = run.recipe
    on_step("reading the data", 0, 2)
    train = read_source(recipe, "train")
    on_step("reading the data", 1, 2)
    dev = read_source(recipe, "dev")
    on_step("reading the data", 2, 2)
    if recipe.task == "classification":
        labels = label_values(train)
        unknown = sorted({example.label for example in dev} - set(labels), key=str)
        if unknown:
            raise UserError(
                f"label {unknown[0]!r} does not occur in the training data ({', '.join(labels)})", file=recipe.data.dev, field="data.label"
            )
        if recipe.data.label_names and len(recipe.data.label_names) != len(labels):
            raise UserError(
                f"has {len(recipe.data.label_names)} names for {len(labels)} labels ({', '.join(labels)})", field="data.label_names"
            )
    else:
        labels = ("start", "end")
        unanswered = sum(1 for example in (*train, *dev) if not example.answers)
        if unanswered and not recipe.qa.allow_no_answer:
            raise UserError(
                f"{unanswered} questions have no answer in their passage; set it to true for SQuAD v2.0 data", field="qa.allow_no_answer"
            )
    if len(train) < 2 * recipe.data.calibration:
        raise UserError(
            f"{recipe.data.calibration} of {len(train)} training examples would go to calibration, more than half; "
            "give more data or set it lower",
            file=recipe.data.train,
            field="data.calibration",
        )
    train, calibration = split_off(train, recipe.data.calibration, recipe.seed)
    for name, part in (("train", train), ("calibration", calibration), ("dev", dev)):
        save_examples(part, place.out / f"{name}.jsonl")
    write_text(place.out / "labels.json", json.dumps(labels))


def finetune(run: Run, place: Place, on_step: OnStep) -> None:
    """The teacher, and its score on dev."""
    from pipeline.distill.finetune import build_teacher, finetune
    from pipeline.exits.predictions import predict, run_model
    from pipeline.model.checkpoint import load_pretrained, save_model

    recipe, labels = run.recipe, run.labels()
    pretrained = load_pretrained(recipe.teacher.weights, recipe.task)
    tokenizer = WordPieceTokenizer.from_vocab(pretrained.vocab, lowercase=pretrained.lowercase)
    shutil.copyfile(pretrained.vocab, place.out / "vocab.txt")
    write_text(place.out / "tokenizer.json", json.dumps({"lowercase": pretrained.lowercase}))
    teacher = build_teacher(pretrained, recipe, len(labels))
    check_window(recipe, teacher.config.max_positions)
    if recipe.teacher.training.epochs:
        items = make_items(run.examples("train"), tokenizer, labels, recipe)
        finetune(teacher, items, recipe, place.scratch / "checkpoint.pt", on_step)
    save_model(teacher, place.out)
    predictions = predict(run_model, teacher, run.examples("dev"), tokenizer, labels, recipe, on_step)
    write_text(place.out / "metrics.json", json.dumps(predictions.metrics()))


def check_window(recipe: Recipe, positions: int) -> None:
    """UserError if the recipe asks for longer inputs than the weights have positions."""
    for field, length in (("qa.window" if recipe.task == "qa" else "data.max_length", recipe.qa.window if recipe.task == "qa" else recipe.data.max_length), ("export.max_length", recipe.export.max_length)):
        if length > positions:
            raise UserError(f"{length} is more than the {positions} positions of {recipe.teacher.weights}", field=field)


def distill(run: Run, place: Place, on_step: OnStep) -> None:
    """The student's backbone and last head."""
    import torch

    from pipeline.distill.student import initialise_student
    from pipeline.distill.task import distill
    from pipeline.model.checkpoint import save_model

    recipe = run.recipe
    teacher = run.model("finetune")
    torch.manual_seed(recipe.seed + 1)
    student = initialise_student(teacher, recipe.student.layers, recipe.student.exit_layers, recipe.head)
    items = make_items(run.examples("train"), run.tokenizer(), run.labels(), recipe)
    distill(student, teacher, items, recipe, place.scratch / "checkpoint.pt", on_step)
    save_model(student, place.out)


def exits(run: Run, place: Place, on_step: OnStep) -> None:
    """The student with its exit heads trained, and every exit's score on dev."""
    from pipeline.exits.predictions import predict, run_model
    from pipeline.exits.self_distill import self_distill
    from pipeline.model.checkpoint import save_model

    recipe = run.recipe
    student, tokenizer, labels = run.model("distill"), run.tokenizer(), run.labels()
    if recipe.exits.training.epochs:
        items = make_items(some_of(run.examples("train"), recipe.exits.train_limit, recipe.seed), tokenizer, labels, recipe)
        student = self_distill(student, items, recipe, place.scratch / "checkpoint.pt", on_step)
    save_model(student, place.out)
    predictions = predict(run_model, student, run.examples("dev"), tokenizer, labels, recipe, on_step)
    metrics = predictions.metrics() | {"exits": [predictions.metrics(at) for at in range(predictions.exits)]}
    write_text(place.out / "metrics.json", json.dumps(metrics))


def some_of(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples from all over the file: files are often sorted, by label or by article."""
    if limit is None or len(examples) <= limit:
        return examples
    return random.Random(seed).sample(examples, limit)


def quantize(run: Run, place: Place, on_step: OnStep) -> None:
    """What the quantized model scores, and the thresholds of the named speeds, calibrated on what it says."""
    from pipeline.exits.calibrate import calibrate
    from pipeline.exits.predictions import predict, run_programs

    recipe = run.recipe
    programs = quantized_programs(run)
    tokenizer, labels = run.tokenizer(), run.labels()
    calibration = predict(run_programs, programs, run.examples("calibration"), tokenizer, labels, recipe, on_step)
    metric = "accuracy" if recipe.task == "classification" else "f1"
    speeds = {
        name: calibrate(calibration, getattr(recipe.exits, name), recipe.exits.delta, metric, recipe.seed).model_dump()
        for name in ("exact", "balanced", "fast")
    }
    write_text(place.out / "speeds.json", json.dumps(speeds, indent=2))
    dev = predict(run_programs, programs, run.examples("dev"), tokenizer, labels, recipe, on_step)
    write_text(place.out / "metrics.json", json.dumps(dev.metrics()))
    write_text(place.out / "answers.json", json.dumps([answers[-1] for answers in dev.answers]))


def quantized_programs(run: Run):
    """The quantized model in PyTorch: made from the student again, since quantizing takes a second and saving it more code."""
    from pipeline.model.segments import Programs
    from quantize.schemes import apply_scheme

    return apply_scheme(Programs.of(run.model("exits")), run.recipe.quantize.scheme, run.recipe.quantize.embeddings)


def export(run: Run, place: Place, on_step: OnStep) -> None:
    """The bundle."""
    from pipeline.export.bundle import write_bundle

    recipe = run.recipe
    speeds = json.loads((run.path("quantize") / "speeds.json").read_text())
    options = json.loads((run.path("finetune") / "tokenizer.json").read_text())
    write_bundle(
        place.out,
        model=run.model("exits"),
        quantized=quantized_programs(run),
        recipe=recipe,
        tokenizer_vocab=run.path("finetune") / "vocab.txt",
        lowercase=options["lowercase"],
        label_values=run.labels() if recipe.task == "classification" else (),
        speeds={name: Speed(**speed) for name, speed in speeds.items()},
        conformance_examples=conformance_examples(run),
        provenance={
            "recipe": recipe.name,
            "teacher": recipe.teacher.weights,
            "train": Path(recipe.data.train).name,
            "dev": Path(recipe.data.dev).name,
        },
        on_step=on_step,
    )


def conformance_examples(run: Run, count: int = 16) -> list[Example]:
    """Dev examples spread over all lengths, the shortest and the longest among them."""
    examples = run.examples("dev")

    def length(example: Example) -> int:
        return len(example.text) if isinstance(example, ClassificationExample) else len(example.passage)

    examples.sort(key=length)
    if len(examples) <= count:
        return examples
    return [examples[round(at * (len(examples) - 1) / (count - 1))] for at in range(count)]


def verify(run: Run, place: Place, on_step: OnStep) -> None:
    """Every program of the bundle against the model it came from; fails when one is out of tolerance."""
    from pipeline.runtime.bundle import Bundle
    from pipeline.verify.agreement import check_agreement
    from pipeline.verify.checks import to_json
    from pipeline.verify.stage import require, verify_bundle

    bundle = run.path("export")
    checks = verify_bundle(bundle, on_step)
    if run.recipe.export.coreml:
        from pipeline.verify.coreml_parity import check_against_model

        checks += check_against_model(run.model("exits"), bundle, read_manifest(bundle), on_step)
    answers = json.loads((run.path("quantize") / "answers.json").read_text())
    checks.append(check_agreement(Bundle.open(bundle), run.examples("dev"), answers, on_step))
    report = json.dumps(to_json(checks), indent=2)
    write_text(place.scratch / "failed.json", report)
    require(checks, place.scratch / "failed.json")
    write_text(place.out / "checks.json", report)


def bench(run: Run, place: Place, on_step: OnStep) -> None:
    """The bundle on this machine: accuracy and latency at every speed on dev, and latency against BERT-base."""
    from pipeline.bench.host import bench_host
    from pipeline.runtime.bundle import Bundle
    from pipeline.runtime.evaluate import evaluate

    recipe = run.recipe
    bundle = run.path("export")
    evaluation = evaluate(
        Bundle.open(bundle), run.examples("dev"), recipe.bench.speeds, limit=recipe.bench.evaluate_limit, on_progress=on_step
    )
    write_text(place.out / "evaluation.json", evaluation.model_dump_json(indent=2))
    report = bench_host(
        bundle,
        recipe.bench.lengths,
        recipe.bench.repeats,
        recipe.bench.threads,
        recipe.bench.reference,
        on_step,
        reference_length=recipe.bench.reference_length,
    )
    write_text(place.out / "bench.json", report.model_dump_json(indent=2))


def report(run: Run, place: Place, on_step: OnStep) -> None:
    """The page."""
    from pipeline.bench.report import write_report

    write_report(run_results(run), place.out)


def run_results(run: Run):
    """Everything that the stages before the report measured."""
    from pipeline.bench.measurements import BenchReport
    from pipeline.bench.results import RunResults
    from pipeline.runtime.evaluate import Evaluation
    from quantize.size import size_of

    bundle = run.path("export")
    seconds = run.stage_seconds()
    seconds.pop("report", None)
    return RunResults(
        name=run.recipe.name,
        task=run.recipe.task,
        metrics={
            "teacher": run.metrics("finetune"),
            "student": {key: value for key, value in run.metrics("exits").items() if key != "exits"},
            "quantized": run.metrics("quantize"),
        },
        evaluation=Evaluation.model_validate_json((run.path("bench") / "evaluation.json").read_text()),
        bench=BenchReport.model_validate_json((run.path("bench") / "bench.json").read_text()),
        size=size_of(bundle),
        checks=json.loads((run.path("verify") / "checks.json").read_text())["checks"],
        stage_seconds=seconds,
        provenance=read_manifest(bundle, check_files=False).provenance | {"machine": platform.platform()},
    )


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare", "data", (), ("task", "seed", "data", "qa"), prepare),
        Stage("finetune", "teacher", ("prepare",), ("teacher", "precision", "qa"), finetune),
        Stage("distill", "student", ("finetune",), ("student", "distill"), distill),
        Stage("exits", "exits", ("distill",), ("exits",), exits),
        Stage("quantize", "quantized", ("exits",), ("quantize",), quantize),
        Stage("export", "bundle", ("quantize",), ("name", "export"), export),
        Stage("verify", "verification", ("export",), (), verify, version=2),
        Stage("bench", "measurements", ("export",), ("bench",), bench),
        Stage("report", "report", ("verify", "bench"), (), report),
    )
}


def order_upto(last: str) -> list[str]:
    """A stage and all it needs, in the order to run them."""
    needed: set[str] = set()

    def visit(name: str) -> None:
        needed.add(name)
        for before in STAGES[name].after:
            visit(before)

    visit(last)
    return [name for name in STAGES if name in needed]
