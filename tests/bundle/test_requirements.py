"""A runtime that is older than a bundle's programs is refused before it loads one of them."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.bundle.manifest import read_manifest
from pipeline.bundle.opening import Bundle
from pipeline.bundle.requirements import Requirements, is_older, minor_of, release_of, requirements_of
from pipeline.runtime import runner
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError


@pytest.mark.parametrize(
    ("version", "required", "older"),
    [
        ("1.9", "1.10", True),
        ("1.10", "1.9", False),
        ("1.4.1", "1.4", False),
        ("1.4", "1.4.1", True),
        ("1.4", "1.4.0", False),
        ("2.0", "1.10", False),
        ("1.5.1+cpu", "1.5", False),
        ("1.4.9.dev20261127+cpu", "1.5", True),
        ("1.5.0a0", "1.5", False),
        ("16.0", "17", True),
    ],
)
def test_versions_are_compared_number_by_number(version, required, older):
    assert is_older(version, required) is older


def test_a_version_is_read_without_its_suffix():
    assert release_of("1.5.1+cpu") == (1, 5, 1)
    assert (minor_of("1.4.1"), minor_of("1.10.0a0"), minor_of("2")) == ("1.4", "1.10", "2.0")
    with pytest.raises(ValueError, match="'newest' is not a version"):
        release_of("newest")


def test_each_backend_needs_what_its_programs_run_on():
    backends = ("executorch", "coreml", "executorch-coreml")
    needed = requirements_of(backends, "1.4.1", "iOS18")
    assert needed["executorch"] == Requirements(executorch="1.4", ios="17.0", android_api=26)
    assert needed["coreml"] == Requirements(ios="18.0")
    assert needed["executorch-coreml"] == Requirements(executorch="1.4", ios="18.0")
    # Core ML runs a package for iOS 16 there; ExecuTorch's own package for iOS starts at 17.
    needed = requirements_of(backends, "1.10.0+cpu", "iOS16")
    assert (needed["coreml"].ios, needed["executorch-coreml"].ios) == ("16.0", "17.0")
    assert needed["executorch"].executorch == "1.10"
    assert set(requirements_of(["coreml"], "1.4.1", "iOS17")) == {"coreml"}


def test_a_new_bundle_names_its_oldest_runtime(tiny_classifier):
    raw = json.loads((tiny_classifier.path / "manifest.json").read_bytes())
    written = minor_of(raw["provenance"]["executorch"])
    assert raw["requires"] == {"executorch": {"executorch": written, "ios": "17.0", "android_api": 26}}
    assert read_manifest(tiny_classifier.path).required_executorch("executorch") == written


@pytest.mark.parametrize("field", ["requires", "provenance"])
def test_an_older_runtime_is_refused_and_both_versions_are_named(tiny_classifier, tmp_path, monkeypatch, field):
    """Bundles of minor version 0 have no `requires`, but name the version that wrote them."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, path)
    raw = json.loads((path / "manifest.json").read_bytes())
    if field == "requires":
        raw["requires"]["executorch"]["executorch"] = "1.10"
    else:
        del raw["requires"]
        raw["provenance"]["executorch"] = "1.10.2"
    (path / "manifest.json").write_text(json.dumps(raw))
    bundle = Bundle.open(path)
    monkeypatch.setattr(runner, "installed_executorch", lambda: "1.9.3+cpu")
    monkeypatch.setattr(runner, "MethodFile", lambda *arguments: pytest.fail("a program was loaded"))
    with pytest.raises(
        UserError, match=r"manifest.json: requires: .* 1\.10 or newer, and 1\.9\.3\+cpu is installed"
    ) as caught:
        Runner(bundle)
    assert "\n" not in str(caught.value) and "install a newer version" in str(caught.value)


def test_a_bundle_that_names_no_version_runs(tiny_classifier, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, path)
    raw = json.loads((path / "manifest.json").read_bytes())
    del raw["requires"], raw["provenance"]["executorch"]
    (path / "manifest.json").write_text(json.dumps(raw))
    bundle = Bundle.open(path)
    assert bundle.manifest.required_executorch("executorch") is None
    assert Runner(bundle).classify("bala").label
