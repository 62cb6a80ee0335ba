"""A recipe on two processes, started as a user starts it.

It gives the result of one process, prints everything once, and reports a failure in one line.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.recipe import load_recipe
from pipeline.run.engine import Run

ROOT = Path(__file__).resolve().parents[2]
# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(1800)
WORDS = "good bad film story plot actor very not but dull bright slow fast the a it was".split()


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    from pipeline.support.quiet import import_quietly

    transformers = import_quietly("transformers")
    folder = tmp_path_factory.mktemp("recipe")
    digits = [str(digit) for digit in range(10)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *digits, *(f"##{digit}" for digit in digits), *WORDS]
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    config = transformers.BertConfig(vocab_size=len(vocabulary), **shape)
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    rng = random.Random(0)
    rows = []
    for row in range(161):
        label = row % 2
        words = rng.choices(WORDS[2:], k=rng.randint(4, 20))
        rows.append(f"{('bad', 'good')[label]} {' '.join(words)} {row}\t{label}")
    (folder / "data.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f"""
name = "tiny"
task = "classification"
precision = "fp32"
data = {{ train = "{folder}/data.tsv", dev = "{folder}/data.tsv", dev_limit = 40, calibration = 60, max_length = 32 }}
teacher = {{ weights = "{folder}/bert", training = {{ epochs = 1, batch_size = 8 }} }}
distill = {{ keep_targets = true, training = {{ epochs = 1, batch_size = 8 }} }}
exits = {{ exact = 0.2, balanced = 0.3, fast = 0.4 }}
export = {{ max_length = 32, coreml_buckets = [32] }}
"""
    )
    return recipe


def environment(**more: object) -> dict[str, str]:
    return (
        os.environ
        | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        | {name: str(value) for name, value in more.items()}
    )


def test_accelerate_launch_gives_the_student_of_a_single_process(recipe_file, tmp_path):
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options.split()]
    launch += ["--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "-m", "pipeline.cli", "distill", str(recipe_file), "--out", str(tmp_path / "two")],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stage in ("prepare", "finetune", "distill"):
        assert done.stderr.count(f"{stage:<9} ...") == 1
    run = Run(load_recipe(recipe_file), tmp_path / "one")
    run.run_up_to("distill")
    assert not list((tmp_path / "two" / ".work").iterdir())
    for stage in ("teacher", "student"):
        one, two = (
            json.loads((tmp_path / out / stage / "losses.json").read_text())["losses"] for out in ("one", "two")
        )
        assert len(one) == 13  # 101 examples: the last batch holds 5
        assert two == pytest.approx(one, abs=1e-4)
        one, two = (load_file(tmp_path / out / stage / "model.safetensors") for out in ("one", "two"))
        # A softmax ignores what is added to all of its scores, as the key's bias and the pooling score's bias are. So
        # their gradients are rounding errors, and Adam takes steps of the whole learning rate along them.
        assert all(
            (one[name] - two[name]).abs().mean() < 1e-5 for name in one if not name.endswith(("qkv.bias", "score.bias"))
        )
    # The result of two processes counts as done for one process: nothing is trained again.
    again = Run(load_recipe(recipe_file), tmp_path / "two")
    assert all(
        again.workspace.is_done(folder, again.stage_key(name))
        for name, folder in (("finetune", "teacher"), ("distill", "student"))
    )


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.train=none.tsv", "none.tsv"),  # fails on the main process only, which reads the data
        ("teacher.training.head_learning_rate=1e38", "the last good checkpoint|no checkpoint"),  # fails on both
    ],
)
def test_a_failure_is_one_line_from_one_process(recipe_file, tmp_path, setting, expected):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.cli", "finetune", str(recipe_file), "--out", str(tmp_path / "out")]
    started = [
        subprocess.Popen(
            [*command, "--set", setting], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        messages = [process.communicate()[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2]
    errors = [text for text in "".join(messages).splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and any(part in errors[0] for part in expected.split("|")), messages
    assert "Traceback" not in "".join(messages)
    assert not messages[1]


def test_a_prediction_does_not_import_accelerate(tiny_classifier):
    """Only training needs accelerate, and its import takes seconds."""
    code = """
import sys
from pipeline import cli
sys.argv = sys.argv[1:]
try:
    cli.main()
except SystemExit as stopped:
    assert not stopped.code
print("accelerate" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "pocketbert", "predict", str(tiny_classifier.path), "--text", "bada dela."],
        cwd=ROOT, env=environment(PYTHONPATH=ROOT), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
