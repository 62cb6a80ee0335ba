"""Whole runs of a tiny checkpoint: a killed run continues to the same bundle, a second run has nothing to do."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bundle.manifest import read_manifest
from pipeline.data.labels import LabelRange
from pipeline.recipe import Recipe
from pipeline.run.engine import Run
from pipeline.run.table import STAGES, stages_up_to
from pipeline.support.errors import UserError
from pipeline.support.workspace import digest_tree

# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).resolve().parents[2]
WORDS = "good bad film story plot actor very not but dull bright slow fast the a it was".split()


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A BERT of 2 layers with random weights, as Hugging Face saves one."""
    from pipeline.support.quiet import import_quietly

    transformers = import_quietly("transformers")
    folder = tmp_path_factory.mktemp("checkpoint")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "?",
        ".",
        *letters,
        *("##" + x for x in letters),
        *WORDS[:-1],
        "was",
    ]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, tiny_checkpoint) -> Path:
    """A small recipe with every stage: several checkpoints per training, programs of both kinds, no reference model."""
    folder = tmp_path_factory.mktemp("recipe")
    chance = random.Random(0)
    rows = []
    for number in range(400):
        label = number % 2
        words = chance.choices(WORDS, k=chance.randint(4, 20))
        words[chance.randrange(len(words))] = ("bad", "good")[label]
        rows.append(f"{' '.join(words)} {number}\t{label}")
    (folder / "data.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    training = "training = { epochs = 4, batch_size = 4, learning_rate = 1e-3, checkpoint_minutes = 0.001 }"
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f"""
name = "tiny"
task = "classification"
precision = "fp32"
[data]
train = "{folder}/data.tsv"
dev = "{folder}/data.tsv"
dev_limit = 40
calibration = 60
max_length = 32
[teacher]
weights = "{tiny_checkpoint}"
{training}
[distill]
{training}
[exits]
uncertainty = "margin"
exact = 0.1
balanced = 0.15
fast = 0.2
{training}
[export]
max_length = 32
coreml_buckets = [32]
[bench]
reference = "none"
lengths = [8]
repeats = 3
speeds = ["0", "exact"]
"""
    )
    return recipe


def order(recipe_file: Path) -> list[str]:
    from pipeline.recipe import load_recipe

    return stages_up_to("report", load_recipe(recipe_file))


def start(recipe: Path, out: Path, *settings: str) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pipeline.cli",
            "run",
            str(recipe),
            "--out",
            str(out),
            *(f"--set={setting}" for setting in settings),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # With two threads each, processes that run at the same time would wait for each other.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(recipe: Path, out: Path, *settings: str) -> str:
    process = start(recipe, out, *settings)
    _, progress = process.communicate()
    assert process.returncode == 0, progress
    return progress


# Runs the command line and kills its own process at a fixed point of one stage, not after some time. An audit hook sees
# the stage's files: a training ends at its second checkpoint, when it can continue from the first. Another stage ends
# when it opens the first file of its result, which is then half written.
KILLED_RUN = """
import os, signal, sys
from pathlib import Path

work, trains = Path(sys.argv.pop(1)), sys.argv.pop(1) == "True"
checkpoint, result = str(work / "checkpoint.pt"), str(work / "out") + os.sep

def kill_in_stage(event, arguments):
    if event == "os.rename" and trains:
        reached = str(arguments[1]) == checkpoint and os.path.exists(checkpoint)
    else:
        reached = event == "open" and str(arguments[0]).startswith(result)
    if reached:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_in_stage)
from pipeline.cli import main
main()
"""


def kill_in(stage: str, recipe: Path, out: Path) -> None:
    """Starts a run that is killed while the stage is under way."""
    trains = stage in ("finetune", "distill", "exits")
    command = [sys.executable, "-c", KILLED_RUN, str(out / ".work" / STAGES[stage].folder), str(trains)]
    killed = subprocess.run(
        [*command, "run", str(recipe), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL, (stage, killed.stderr)
    assert not (out / ".stages" / f"{STAGES[stage].folder}.json").exists()


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory) -> Path:
    """A run that was not killed."""
    out = tmp_path_factory.mktemp("whole")
    finish(recipe_file, out)
    return out


def test_a_run_that_is_killed_in_every_stage_ends_in_the_same_bundle(recipe_file, whole, tmp_path):
    out = tmp_path / "killed"
    for stage in order(recipe_file):
        kill_in(stage, recipe_file, out)
    progress = finish(recipe_file, out)
    assert "finetune  unchanged" in progress
    assert digest_tree(out / "bundle") == digest_tree(whole / "bundle")
    assert json.loads((out / ".stages" / "bundle.json").read_text())["digest"] == digest_tree(whole / "bundle")


def test_a_second_run_repeats_nothing(recipe_file, whole):
    progress = finish(recipe_file, whole)
    assert all(f"{stage:<9} unchanged" in progress for stage in order(recipe_file)) and "pretrain" not in progress


def test_a_changed_key_of_the_recipe_repeats_the_stages_that_read_it(recipe_file, whole):
    from pipeline.recipe import load_recipe

    before = Run(load_recipe(recipe_file), whole)
    after = Run(load_recipe(recipe_file, ["exits.exact=0.12"]), whole)
    changed = {stage for stage in order(recipe_file) if before.stage_key(stage) != after.stage_key(stage)}
    assert changed == {"exits", "quantize", "export", "verify", "bench", "report"}


def test_a_speed_that_the_data_cannot_show_is_left_out_of_the_bundle(recipe_file, whole, tmp_path):
    """When only `exits` changes, the stage prepare, which warns of this too, does not run again."""
    from pipeline.bundle.manifest import read_manifest

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert "leaves out" not in finish(recipe_file, whole)
    progress = finish(recipe_file, out, "exits.exact=0.01", "exits.balanced=0.02")
    assert "prepare   unchanged" in progress and "bench.speeds: not in this bundle" in progress
    assert "warning: the bundle leaves out the speed exact: 60 calibration examples" in progress
    manifest = read_manifest(out / "bundle")
    assert list(manifest.speeds) == ["fast"] and "228 more can" in manifest.provenance["without_speed_exact"]
    evaluation = json.loads((out / "measurements" / "evaluation.json").read_text())
    assert [speed["speed"] for speed in evaluation["speeds"]] == ["0"]  # of "0" and "exact"
    assert "without_speed_balanced" in (out / "report" / "report.html").read_text()


def test_distillation_starts_from_the_pretrained_student(recipe_file, whole, tmp_path):
    """The checkpoint has no masked-LM head; teacher and data are shared with the run that has no corpus."""
    import torch

    from pipeline.model.checkpoint import load_encoder, load_model
    from pipeline.recipe import load_recipe

    settings = [
        f"pretrain.corpus={recipe_file.parent}/data.tsv",
        "pretrain.length=16",
        "student.layers=[1]",
        "distill.training.epochs=0",
        "exits.head=bert",
    ]
    run = Run(load_recipe(recipe_file, settings), tmp_path / "out", Run(load_recipe(recipe_file), whole))
    run.run_up_to("distill")
    assert {path.name for path in run.workspace.root.iterdir() if not path.name.startswith(".")} == {
        "pretrained",
        "student",
    }
    pretrained, student = load_encoder(run.path("pretrain")), load_model(run.path("distill")).encoder
    assert all(torch.equal(tensor, pretrained.state_dict()[name]) for name, tensor in student.state_dict().items())
    teacher = load_model(run.path("finetune")).encoder
    assert not torch.equal(student.layers[0].qkv.weight, teacher.layers[1].qkv.weight)


def test_the_student_learns_from_texts_without_labels(recipe_file, whole, tmp_path):
    """It learns the teacher's answers to them. The teacher, which learns from labels, is shared."""
    from pipeline.recipe import load_recipe

    more = tmp_path / "more.tsv"
    more.write_text(
        "sentence\tlabel\n" + "\n".join(f"the actor was {word}\tno class of the data" for word in WORDS) + "\n"
    )
    base = Run(load_recipe(recipe_file), whole)
    settings = [f"distill.unlabelled={more}", "distill.training.epochs=1", "distill.training.batch_size=1"]
    run = Run(load_recipe(recipe_file, settings), tmp_path / "out", base)
    assert run.stage_key("finetune") == base.stage_key("finetune")
    run.run_up_to("distill")
    losses = json.loads((run.path("distill") / "losses.json").read_text())["losses"]
    assert len(losses) == len(base.results.examples("train")) + len(WORDS)
    key = run.stage_key("distill")
    more.write_text("sentence\nthe plot\n")
    assert run.stage_key("distill") != key
    with pytest.raises(UserError, match=f"{tmp_path}/none.tsv"):
        Run(load_recipe(recipe_file, [f"distill.unlabelled={tmp_path}/none.tsv"]), tmp_path / "bad").run_up_to(
            "prepare"
        )


def test_verifying_a_recipe_checks_all_that_its_own_stage_checks(recipe_file, whole, monkeypatch, capsys):
    """It compares with the PyTorch model and with its answers on dev, not with the bundle's own vectors alone."""
    from pipeline import cli

    monkeypatch.setattr("sys.argv", ["pocketbert", "verify", str(recipe_file), "--out", str(whole), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    checks = json.loads(capsys.readouterr().out)
    assert stopped.value.code in (0, None)
    assert checks == json.loads((whole / "verification" / "checks.json").read_text())
    metrics = {check["metric"] for check in checks["checks"]}
    assert {"same_answer_as_quantized_torch", "same_label_as_float32", "snr_db_32_float32"} <= metrics


def test_a_run_leaves_its_report_and_both_kinds_of_program(whole):
    page = (whole / "report" / "report.html").read_text()
    assert "tiny" in page and 'src="http' not in page
    manifest = json.loads((whole / "bundle" / "manifest.json").read_text())
    assert (
        manifest["exits"]["uncertainty"] == "margin" != Recipe(name="default", task="classification").exits.uncertainty
    )
    assert {program["backend"] for program in manifest["programs"]} == {"executorch", "coreml"}
    assert not list((whole / ".work").iterdir())


def test_a_regression_runs_from_data_to_report(recipe_file, tmp_path):
    """The score of a text is the share of its good words, from -10 to 30."""
    chance, rows = random.Random(1), ["sentence\tscore"]
    for number in range(400):
        good, bad = chance.randint(0, 6), chance.randint(0, 6)
        words = ["good"] * good + ["bad"] * bad + chance.choices(WORDS[2:], k=4)
        rows.append(f"{' '.join(chance.sample(words, len(words)))} {number}\t{-10 + 40 * good / (good + bad or 1):.2f}")
    data = tmp_path / "data.tsv"
    data.write_text("\n".join(rows) + "\n")
    settings = [
        f"data.train={data}",
        f"data.dev={data}",
        "task=regression",
        "exits.uncertainty=change",
        "export.coreml=false",
    ]
    finish(recipe_file, tmp_path / "out", *settings)
    manifest = read_manifest(tmp_path / "out" / "bundle")
    assert (manifest.task, manifest.label_range, manifest.uncertainty) == (
        "regression",
        LabelRange(minimum=-10, maximum=30),
        "change",
    )
    assert {speed.metric for speed in manifest.speeds.values()} == {"one_minus_nmae"}
    assert all(speed.value_full_depth - speed.value <= speed.max_loss for speed in manifest.speeds.values())
    results = json.loads((tmp_path / "out" / "report" / "results.json").read_text())
    assert results["metrics"]["teacher"]["pearson"] > 0.8 and results["metrics"]["quantized"]["pearson"] > 0.8
    assert results["evaluation"]["speeds"][0]["mean_absolute_error"] < 8  # the labels have a standard deviation of 13
    assert "Pearson" in (tmp_path / "out" / "report" / "report.html").read_text()


def test_a_stage_runs_after_all_stages_that_it_needs():
    plain = Recipe(name="plain", task="qa")
    assert stages_up_to("exits", plain) == ["prepare", "finetune", "distill", "exits"]
    assert stages_up_to("report", plain) == [stage for stage in STAGES if stage != "pretrain"]
    with_corpus = Recipe(name="corpus", task="qa", pretrain={"corpus": "books"})
    assert stages_up_to("exits", with_corpus) == ["prepare", "finetune", "pretrain", "distill", "exits"]
    assert stages_up_to("pretrain", with_corpus) == ["pretrain"]
    assert stages_up_to("report", with_corpus) == list(STAGES)
    with pytest.raises(UserError, match="^pretrain.corpus: "):
        stages_up_to("pretrain", plain)


def test_results_of_older_versions_still_count(tmp_path):
    """The keys are those that version 0.1.0 wrote for this recipe. What it trained and quantized is not made again."""
    from pipeline.recipe import load_recipe

    recipe = "demo-classification"
    # The recipe has been shortened since.
    before = {"teacher": (3, 32), "distill": (2, 32), "exits": (2, 64)}
    settings = [f"{section}.training.epochs={epochs}" for section, (epochs, _) in before.items()]
    settings += [f"{section}.training.batch_size={size}" for section, (_, size) in before.items()]
    run = Run(load_recipe(recipe, settings), tmp_path)
    assert run.stage_key("prepare") == "deb987ca641e31508b1cfc409287e7d250068f75b015bbb1419571d3293b21f9"
    assert run.stage_key("quantize") == "394b09798ec3b1bf2f402dd9460d81c74fd6ad5859dac54ba0708e930e05a8c3"
    with_int4 = Run(load_recipe(recipe, [*settings, "quantize.scheme=int4"]), tmp_path)  # rounding goes into the key
    assert with_int4.stage_key("quantize") == "ad48077c1e4a669ff04b261d9fc32b10dc375281009108d2f75e49c3894be365"


def test_the_sections_of_stages_are_parts_of_the_recipe():
    for stage in STAGES.values():
        assert set(stage.sections) <= set(Recipe.model_fields)
