"""Tests that every peer answers as eager PyTorch does, and that a peer without its library is left out."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.bench.documents import BenchReport
from pipeline.bench.host import bench_host
from pipeline.bench.runtimes.peers import peer_obstacles, peer_sources
from pipeline.bench.runtimes.pytorch import CompiledProgram
from pipeline.bench.runtimes.system import System, Variant, random_ids
from pipeline.bench.runtimes.table import PEERS, SYSTEMS
from pipeline.bench.runtimes.weights import StudentWeights
from pipeline.bench.runtimes.worker import Worker
from pipeline.bundle.manifest import Manifest, ModelShape, Tokenizer
from pipeline.model.checkpoint import save_model
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.errors import UserError
from quantize.schemes import quantize_programs

LENGTH = 12
# As a share of the largest logit. What int8 loses depends on the model, but a wrong program would be off by 1.
TOLERANCE = {"fp32": 1e-4, "int8": 0.2}


@pytest.fixture(scope="module", params=["classification", "qa"])
def weights(request, tmp_path_factory) -> StudentWeights:
    """One narrow layer in float32, and the part of a manifest that peers need."""
    folder = tmp_path_factory.mktemp("exits")
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=90, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=32)
    model = ExitModel(request.param, config, 2, "linear", [1]).eval()
    with torch.no_grad():  # larger weights, so that logits differ by more than rounding
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    save_model(model, folder)
    shape = ModelShape(
        layers=1, hidden_size=32, heads=2, intermediate_size=64, vocab_size=90, parameters=0, exit_layers=[1],
        head="linear",
    )  # fmt: skip
    manifest = Manifest(
        name="tiny", task=request.param, labels=["a", "b"], max_length=32, model=shape, scheme="fp32",
        embeddings_scheme="fp32",
        tokenizer=Tokenizer(vocab_size=90, lowercase=True, pad_id=0, unk_id=1, cls_id=2, sep_id=3),
        programs=[], speeds={}, files=[], provenance={},
    )  # fmt: skip
    return StudentWeights(folder, manifest)


def worker_answer(peer: System, weights: StudentWeights) -> np.ndarray:
    """Returns a peer's logits for the worker's random ids. The peer has a single variant."""
    (source,) = peer_sources(weights, [LENGTH], "tiny", "fp32", peers=[peer])
    worker = Worker(peer.program(source.path, 1, weights.manifest))
    threads = torch.get_num_threads()
    assert worker.load(LENGTH, 1)["load_ms"] > 0
    torch.set_num_threads(threads)
    return np.array(worker.answer(LENGTH, 1)["answer"])


@pytest.mark.parametrize(
    "peer, variant",
    [pytest.param(peer, variant, id=f"{peer.name} {variant.name}") for peer in PEERS for variant in peer.variants],
)
def test_a_peer_answers_as_the_student_does(peer: System, variant: Variant, weights, monkeypatch):
    if reason := peer.obstacle():
        pytest.skip(reason)
    monkeypatch.setattr(CompiledProgram, "BACKEND", "eager")  # the same graph, without minutes of C++ compilation
    ids = random_ids(90, LENGTH)
    with torch.no_grad():
        logits = weights.model()(ids, torch.ones_like(ids)).logits[-1]
    expected = logits[0].T.flatten().numpy() if weights.manifest.task == "qa" else logits[0].numpy()
    answer = worker_answer(replace(peer, variants=(variant,)), weights)
    assert answer.shape == expected.shape
    assert np.abs(answer - expected).max() < TOLERANCE[peer.precision or "fp32"] * np.abs(expected).max()


@pytest.mark.parametrize("weights", ["classification"], indirect=True)
def test_the_monolith_of_a_mix_has_the_scheme_of_each_matrix(weights):
    """Int4 in the feed-forward layers shows in the logits, and two mixes of the same weights are two programs."""
    peer = next(peer for peer in PEERS if peer.name == "pocketbert-monolithic")
    ids, answers = random_ids(90, LENGTH), []
    for feed_forward in ("fp32", "int4"):
        mix = {
            "layers.0.qkv": "int8",
            "layers.0.ffn_in": feed_forward,
            "layers.0.ffn_out": feed_forward,
            "embeddings.word": "int8",
        }
        update = {"scheme": "mixed", "embeddings_scheme": "int8", "matrix_schemes": mix}
        quantized = quantize_programs(Programs.of(weights.model()), "mixed", "int8", mix)
        with torch.no_grad():
            expected = quantized(ids, torch.zeros(1, 1, LENGTH))[-1][1][0].numpy()
        answers.append(worker_answer(peer, replace(weights, manifest=weights.manifest.model_copy(update=update))))
        assert np.abs(answers[-1] - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(answers[0] - answers[1]).max() > 0.02 * np.abs(answers[0]).max()


def test_a_missing_library_is_one_line_with_the_way_out(monkeypatch):
    find_spec = importlib.util.find_spec
    missing = ("onnxruntime", "litert_torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    reasons = peer_obstacles()
    assert {"onnxruntime-fp32", "onnxruntime-int8", "litert-int8"} <= set(reasons)
    assert "onnxruntime" in reasons["onnxruntime-int8"] and ".[peers]" in reasons["onnxruntime-int8"]
    assert "litert_torch" in reasons["litert-int8"] and "litert.txt" in reasons["litert-int8"]
    assert not any("\n" in reason for reason in reasons.values())
    assert "torch-eager" not in reasons


def test_torch_compile_is_left_out_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX" in peer_obstacles()["torch-compile"]


def test_weights_of_another_model_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match="model.safetensors.*OUT/exits"):
        StudentWeights(tmp_path, weights.manifest)
    wider = weights.manifest.model_copy(update={"model": weights.manifest.model.model_copy(update={"hidden_size": 64})})
    with pytest.raises(UserError, match="hidden_size is 32, the bundle has 64"):
        StudentWeights(weights.folder, wider)


def test_only_the_fastest_variant_is_reported(tiny_classifier, tmp_path):
    """Two identical variants of PyTorch need no other library."""
    model = ExitModel("classification", encoder_config(tiny_classifier), 3, "pooled", (1, 2)).eval()
    save_model(model, tmp_path)
    eager = SYSTEMS["torch-eager"]
    variants = tuple(replace(eager.variants[0], name=name) for name in ("one", "other"))
    unavailable = replace(SYSTEMS["litert-int8"], modules=("no_such_module",))
    peers = [replace(eager, variants=variants, fastest_only=True), unavailable]
    report = bench_host(
        tiny_classifier.path, [8, 16], repeats=3, threads=1, reference="none", weights=tmp_path, peers=peers
    )
    assert sorted(result.length for result in report.measurements_of("torch-eager")) == [8, 16]
    assert all(result.difference == 0 for result in report.measurements_of("torch-eager"))
    differences = {result.depth: result.difference for result in report.measurements_of("pocketbert")}
    assert differences[1] is None and differences[2] > 0.01, "other weights give other answers"
    assert len(report.results) == 6
    assert BenchReport.model_validate_json(report.model_dump_json()) == report
    assert list(report.left_out) == ["litert-int8"] and "no_such_module" in report.left_out["litert-int8"]


def encoder_config(bundle) -> EncoderConfig:
    shape = bundle.manifest.model
    return EncoderConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, layers=shape.layers, heads=shape.heads,
        intermediate_size=shape.intermediate_size, max_positions=64,
    )  # fmt: skip
