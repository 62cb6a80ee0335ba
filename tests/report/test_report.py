"""Tests that the page of a run shows every number, and needs no other file."""

import base64
import re
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.bench.documents import BenchReport, Device, Measurement
from pipeline.bundle.manifest import Speed
from pipeline.exits.predictions import Predictions
from pipeline.exits.study import Costs, study
from pipeline.exits.study_document import Study
from pipeline.report.report import render, write_report
from pipeline.report.results import RunResults, Score, ShownAnswer
from pipeline.runtime.evaluate import Evaluation, Latency, SpeedResult
from pipeline.verify.checks import Check, EngineWarning, MacReport
from quantize.size import FileSize, Parts, SizeReport, TargetSize, bert_base_parts

SECTIONS = ("headline", "plots", "study", "method", "latency", "size", "parity", "stages", "provenance")


def studied(task) -> Study:
    """Returns the study of three exits that have 70 %, 90 % and all of the answers right."""
    count = 200
    uncertainty = np.stack([np.linspace(0, top, count) for top in (1.0, 0.5, 0.25)], axis=1)
    score = (uncertainty < (0.7, 0.45, 1.0)).astype(float)
    answers = [[{"classification": 0, "regression": 0.5, "qa": "a"}[task]] * 3] * count
    speeds = {
        name: Speed(
            thresholds=[threshold] * 3,
            metric="accuracy",
            value=0.9,
            value_full_depth=0.9,
            mean_depth=2.0,
            examples=9,
            max_loss=loss,
            delta=0.1,
        )
        for name, threshold, loss in (("exact", 0.4, 0.005), ("fast", 0.8, 0.02))
    }
    predictions = Predictions(
        score,
        score,
        uncertainty,
        answers,
        measures={"margin": uncertainty[::-1], "patience": np.full((count, 3), 0.5)},
        task=task,
    )
    costs = Costs(np.arange(count) + 5, np.outer(np.arange(count) + 5, [1e6, 2e6, 3e6]))
    return study(predictions, costs, (2, 4, 6), "entropy", speeds)


def results(task="classification", **changes) -> RunResults:
    """Returns a run with three segments and two speeds beside full depth. Every number occurs only once."""

    def scores(value):
        if task == "regression":
            return {"pearson": value, "spearman": value - 0.1, "mean_absolute_error": 12.25 - value}
        return {"accuracy": value} if task == "classification" else {"exact_match": value - 0.1, "f1": value}

    def speed(name, value, depth, exits, mean):
        latency = Latency(mean=mean, p50=mean * 0.9, p95=mean * 2)
        return SpeedResult(speed=name, mean_depth=depth, exits=exits, latency_ms=latency, **scores(value))

    def measured(system, length, depth, median, **more):
        return Measurement(
            system=system,
            model="tiny",
            precision="int8",
            length=length,
            depth=depth,
            median_ms=median,
            p95_ms=median * 1.2,
            load_ms=71.5,
            peak_memory_bytes=290_000_000,
            baseline_memory_bytes=240_000_000,
            file_bytes=66_800_000,
            runs=15,
            **more,
        )

    parts = Parts(
        embeddings=23_700_000, layers=42_700_000, heads=400_000, vocabulary=231_508, overhead=12_345, other=9_000
    )
    bench = [measured("pocketbert", length, depth, length * depth / 20) for length in (16, 128) for depth in (1, 2, 3)]
    reference = measured("bert-base", 128, 12, 263.0)
    fields = {
        "name": "my-recipe",
        "task": task,
        "metrics": {
            "teacher": Score(**scores(0.9137)),
            "student": Score(**scores(0.9071)),
            "quantized": Score(**scores(0.9049)),
        },
        "evaluation": Evaluation(
            task=task,
            examples=872,
            speeds=[
                speed("0", 0.9048, 3.0, [0, 0, 872], 9.81),
                speed("exact", 0.9037, 2.2, [200, 300, 372], 6.54),
                speed("fast", 0.8945, 1.4, [600, 195, 77], 3.21),
            ],
        ),
        "study": studied(task),
        "bench": BenchReport(
            device=Device(kind="host", system="Linux", processor="A processor", cores=2, threads=2, executorch="1.4.1"),
            results=[*bench, reference],
        ),
        "size": SizeReport(
            name="my-recipe", files=[FileSize(path="model.pte", bytes=66_812_345)],
            total_bytes=parts.total, parts=parts,
            targets=[
                TargetSize(
                    backend="executorch", scheme="int8", bytes=parts.total, program_bytes=66_812_345, parts=parts,
                    ratio=6.5,
                )
            ],
            parameters=66_000_000, fp32_bytes=265_000_000,
            fp32_parts=Parts(embeddings=95_000_000, layers=168_000_000, heads=2_000_000),
            bert_base_bytes=bert_base_parts().total, bert_base_parts=bert_base_parts(), ratio=6.5,
        ),
        "checks": [Check.at_least("segment_0", "executorch", "cosine", 0.99987, 0.999)],
        "stage_seconds": {"prepare": 2.0, "finetune": 1234.0, "export": 61.0},
        "provenance": {"teacher": "minilm", "train": "sst2.tsv"},
    }  # fmt: skip
    return RunResults(**{**fields, **changes})


class Page(HTMLParser):
    """Reads the ids, the images and the text of a page, the addresses that it loads, and its wrong tags."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, html):
        super().__init__()
        self.ids, self.images, self.loaded, self.open, self.wrong, self.text = [], [], [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.append(attributes.get("id"))
        if tag == "img":
            self.images.append(attributes)
        self.loaded += [attributes[name] for name in ("src", "href", "srcset", "action", "data") if name in attributes]
        if tag in ("script", "link", "iframe"):
            self.wrong.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data + " "


@pytest.mark.parametrize("task", ["classification", "regression", "qa"])
def test_the_page_has_every_section_and_loads_nothing(task, tmp_path):
    path = write_report(results(task), tmp_path / "report")
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "results.json"]
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.wrong and not page.open
    assert [section for section in page.ids if section] == list(SECTIONS)
    assert page.loaded and all(address.startswith("data:image/svg+xml;base64,") for address in page.loaded)
    assert not re.search(r"https?:|@import|url\(", html)
    assert RunResults.model_validate_json((path.parent / "results.json").read_text()) == results(task)


def test_every_plot_is_drawn_and_described_in_words():
    page = Page(render(results()))
    assert len(page.images) == 10
    for image in page.images:
        drawing = xml.etree.ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))
        assert drawing.tag.endswith("svg") and len(list(drawing.iter())) > 50
        assert len(image["alt"]) > 60
    words = " ".join(image["alt"] for image in page.images)
    for number in ("437.9 MB", "67.1 MB", "3.21 ms", "263 ms", "89.5 % at 1.40", "600, 195, 77"):
        assert number in words


def test_the_page_says_what_was_measured_and_how():
    text = " ".join(Page(render(results())).text.split())
    for number in ("91.4 %", "90.7 %", "90.5 %", "89.5 %", "66.8 MB", "1.40 of 3", "3.21 ms", "263 ms", "82×"):
        assert number in text, number
    for label in (
        "padded to 128 tokens",
        "random weights",
        "not a phone",
        "A processor",
        "21 min",
        "sst2.tsv",
        "All 1 checks passed",
    ):
        assert label in text, label


def test_question_answering_shows_both_of_its_metrics():
    text = " ".join(Page(render(results("qa"))).text.split())
    assert "EM F1" in text and "79.5 % 89.5 %" in text and "Accuracy" not in text


def test_correlations_and_errors_of_a_regression_are_not_percentages():
    page = Page(render(results("regression")))
    text = " ".join(page.text.split())
    assert "Text regression" in text and "Pearson Spearman MAE" in text and "0.8945 0.7945 11.36" in text
    assert "89.5 %" not in text and "1 − NMAE alone" in text
    assert "speed fast 0.8945 at 1.40" in " ".join(image["alt"] for image in page.images)


def test_the_compute_plan_is_shown_if_core_ml_ran():
    operators = [
        {"operator": kind, "name": "y", "device": device, "supported": [device], "cost": None}
        for kind, device in (("gather", "CPU"), ("linear", "Neural Engine"), ("matmul", "Neural Engine"))
    ]
    plan = {
        "program": "embed",
        "backend": "coreml",
        "length": 32,
        "operators": operators,
        "devices": {"Neural Engine": 2, "CPU": 1},
    }
    mac = {"ran": True, "reason": "", "machine": "macOS 15.1 on a chip", "plans": [plan]}
    text = " ".join(Page(render(results(mac=MacReport.model_validate(mac)))).text.split())
    assert (
        "macOS 15.1 on a chip" in text
        and "2 Neural Engine, 1 CPU" in text
        and "gather" in text
        and "matmul" not in text
    )
    for without in (None, MacReport(ran=False, reason="only macOS has Core ML", machine="", plans=[])):
        assert "plan" not in Page(render(results(mac=without))).ids


def test_package_warnings_are_grouped_by_reason():
    assert "Neural Engine" not in render(results())
    warning = {
        "function": "length_32",
        "operator": "gather",
        "reason": "gather",
        "text": "looks up rows",
        "source": "https://example.org/gather",
    }
    warnings = [
        EngineWarning(package="embed.mlpackage", name=f"rows_{at}", detail=f"a table of {at}00x64", **warning)
        for at in (3, 5)
    ]
    warnings.append(
        EngineWarning(
            **{**warnings[0].model_dump(), "reason": "float32", "text": "computes in float32", "detail": "1x8"}
        )
    )
    page = Page(render(results(warnings=warnings)))
    assert (
        "warnings" in page.ids and page.text.count("looks up rows") == 1 and page.text.count("computes in float32") == 1
    )
    assert "a table of 300x64; a table of 500x64" in page.text and "https://example.org/gather" in page.text


def test_wrong_answers_are_marked_beside_their_passage():
    assert "Some answers" not in Page(render(results())).text
    run = {"depth": 2, "segments": 3, "latency_ms": 4.5}
    answers = [
        ShownAnswer(
            text="Who eats?", before="Yes, ", answer="Daisy", after=" eats.", label="Daisy", wrong=False, **run
        ),
        ShownAnswer(text="Who <b>?", before="", answer="Rocky", after=" did.", label="Smoky", wrong=True, **run),
    ]
    html = render(results(showcase=answers))
    assert "Yes, <mark>Daisy</mark> eats." in html and "Who &lt;b&gt;?" in html and not Page(html).wrong
    assert html.count("WRONG") == 1 and "WRONG, the label says: Smoky" in html


def test_a_failed_check_is_shown():
    failed = Check(program="segment_1", backend="coreml", metric="cosine", value=0.5, floor=0.99, passed=False)
    text = " ".join(Page(render(results(checks=[*results().checks, failed]))).text.split())
    assert "1 of 2 checks failed" in text and "checks passed" not in text


def test_a_run_without_the_reference_claims_no_speed_up():
    bench = results().bench
    without_reference = bench.model_copy(update={"results": bench.measurements_of("pocketbert")})
    text = Page(render(results(bench=without_reference))).text
    before_study = text.replace("6.5× smaller", "").partition("What the exits are worth")[0]
    assert "was not run" in text and "×" not in before_study


def test_the_growth_with_length_is_shown_if_it_can_be_fitted():
    bench = results().bench
    assert "ms a token" not in Page(render(results())).text  # two lengths are too few
    third = bench.measurements_of("pocketbert")[-1].model_copy(update={"length": 64, "median_ms": 64 * 3 / 20})
    text = Page(render(results(bench=bench.model_copy(update={"results": [*bench.results, third]})))).text
    assert "From 16 to 128 tokens the time at full depth grows linearly: 0.00 ms plus 0.150 ms a token" in " ".join(
        text.split()
    )


def test_names_cannot_break_the_page():
    html = render(results(provenance={"train": "<script>alert(1)</script>"}))
    assert not Page(html).wrong and "&lt;script&gt;" in html


def test_the_same_results_give_the_same_page():
    assert render(results()) == render(results())
