"""What an app grows by is the slice that it ships and the libraries that somebody has measured."""

from __future__ import annotations

import json
import re
import zlib

from pipeline import cli
from pipeline.bundle.slicing import BACKENDS, slice_bundle
from pipeline.report.growth import growth_lines, growth_table
from quantize.growth import growth_of
from quantize.runtime_sizes import LIBRARIES


def test_an_app_grows_by_its_slice_and_its_libraries(tiny_classifier, tmp_path):
    android, ios = growth_of(tiny_classifier.path)
    assert (android.target, android.runtime, ios.target, ios.runtime) == ("android", "executorch", "ios", "executorch")
    part = slice_bundle(tiny_classifier.path, "android", out=tmp_path / "part")
    files = [path.read_bytes() for path in part.rglob("*") if path.is_file()]
    assert android.model_bytes == sum(map(len, files))
    assert android.model_download_bytes == sum(len(zlib.compress(content)) for content in files)
    libraries = LIBRARIES["android", "executorch"]
    assert android.installed_bytes == android.model_bytes + sum(library.installed_bytes for library in libraries)
    assert android.download_bytes - android.model_download_bytes == sum(part.download_bytes for part in libraries)


def test_an_unknown_size_makes_the_sum_unknown(tiny_classifier):
    ios = growth_of(tiny_classifier.path)[-1]
    assert ios.installed_bytes is None and ios.download_bytes is None and ios.model_bytes > 0
    (line,) = growth_lines([ios])
    assert "size unknown here" in line
    table = growth_table([ios])
    assert [list(column.cells)[0] for column in table.columns][3:] == ["?", "?", "?"]


def test_every_known_size_has_a_source_and_a_date():
    assert set(LIBRARIES) == set(BACKENDS)
    for library in (library for libraries in LIBRARIES.values() for library in libraries):
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", library.date)
        known = library.installed_bytes is not None
        assert known == (library.download_bytes is not None) == (library.source != "none found")
        if known:
            assert 0 < library.download_bytes < library.installed_bytes
    assert LIBRARIES["ios", "coreml"] == ()  # a part of the system


def test_size_keeps_its_fields_and_adds_growth(tiny_classifier, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pocketbert", "size", str(tiny_classifier.path), "--json"])
    try:
        cli.main()
    except SystemExit as stopped:
        assert not stopped.code
    report = json.loads(capsys.readouterr().out)
    assert {"files", "total_bytes", "parts", "target_bytes", "growth"} <= set(report)
    assert report["growth"][0]["libraries"][0]["source"].startswith("https://")
