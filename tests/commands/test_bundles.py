"""Every command that takes a bundle takes a run and the name of a run for it."""

from __future__ import annotations

import shutil
import sys

import pytest

from pipeline import cli


@pytest.mark.parametrize(
    "arguments", ["size BUNDLE", "evaluate BUNDLE texts.tsv", "study BUNDLE texts.tsv", "verify BUNDLE"]
)
def test_a_run_and_its_name_stand_for_the_bundle(arguments, tiny_classifier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_classifier.path, "runs/mine/bundle")
    lines = [f"{example.text}\t{example.label}" for example in tiny_classifier.examples]
    (tmp_path / "texts.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    for name in ("mine", "runs/mine"):
        monkeypatch.setattr(sys, "argv", ["pocketbert", *arguments.replace("BUNDLE", name).split(), "--json"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code and capsys.readouterr().out.startswith("{")
    monkeypatch.setattr(sys, "argv", ["pocketbert", *arguments.replace("BUNDLE", "yours").split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and "runs/mine" in capsys.readouterr().err
