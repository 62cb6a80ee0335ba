"""Every peer answers as eager PyTorch does on the same weights; where its library is missing, one line says so."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.bench.documents import BenchReport
from pipeline.bench.host import bench_host
from pipeline.bench.runtimes import peers, worker
from pipeline.bench.runtimes.peers import PEERS, Weights, left_out, peer_sources
from pipeline.bundle.manifest import Manifest, ModelShape, Tokenizer
from pipeline.model.checkpoint import save_model
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.report.plots import systems_plot
from pipeline.report.terminal import bench_table
from pipeline.support.errors import UserError
from quantize.schemes import quantize_programs

LENGTH = 12
# Of the largest logit. What int8 loses depends on the model; one that computes something else is off by 1.
TOLERANCE = {"fp32": 1e-4, "int8": 0.2}


@pytest.fixture(scope="module", params=["classification", "qa"])
def weights(request, tmp_path_factory) -> Weights:
    """One narrow layer in float32, and the part of a manifest that peers need."""
    folder = tmp_path_factory.mktemp("exits")
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=90, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=32)
    model = ExitModel(request.param, config, 2, "linear", [1]).eval()
    with torch.no_grad():  # logits that differ by more than rounding
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    save_model(model, folder)
    shape = ModelShape(
        layers=1, hidden_size=32, heads=2, intermediate_size=64, vocab_size=90, parameters=0, exit_layers=[1], head="linear"
    )  # fmt: skip
    manifest = Manifest(
        name="tiny", task=request.param, labels=["a", "b"], max_length=32, model=shape, scheme="fp32", embeddings_scheme="fp32",
        tokenizer=Tokenizer(vocab_size=90, lowercase=True, pad_id=0, unk_id=1, cls_id=2, sep_id=3), programs=[], speeds={}, files=[],
        provenance={},
    )  # fmt: skip
    return Weights(folder, manifest)


def answers(peer, weights: Weights) -> np.ndarray:
    """What the worker's class for a peer says to its random ids."""
    (source,) = peer_sources(weights, [LENGTH], "tiny", "fp32", peers=[peer])
    system = worker.SYSTEMS[source.system](source.path, 1, weights.manifest)
    asked = worker.Worker(system)
    threads = torch.get_num_threads()
    assert asked.load(LENGTH, 1)["load_ms"] > 0
    torch.set_num_threads(threads)
    return np.array(asked.answer(LENGTH, 1)["answer"])


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.system} {peer.variant}".strip())
def test_a_peer_answers_as_the_student_does(peer, weights, monkeypatch):
    if peer.system in left_out([peer]):
        pytest.skip(left_out([peer])[peer.system])
    monkeypatch.setattr(worker.CompiledModel, "BACKEND", "eager")  # the same graph; a C++ compiler takes minutes
    ids = worker.random_ids(90, LENGTH)
    with torch.no_grad():
        logits = weights.model()(ids, torch.ones_like(ids)).logits[-1]
    expected = logits[0].T.flatten().numpy() if weights.manifest.task == "qa" else logits[0].numpy()
    said = answers(peer, weights)
    assert said.shape == expected.shape
    assert np.abs(said - expected).max() < TOLERANCE[peer.precision or "fp32"] * np.abs(expected).max()


@pytest.mark.parametrize("weights", ["classification"], indirect=True)
def test_the_monolith_of_a_mix_has_the_scheme_of_each_matrix(weights):
    """Its feed-forward in int4 shows in the logits; another mix of the same weights is another program."""
    peer = next(peer for peer in PEERS if peer.system == "pocketbert-monolithic")
    mixes = [
        {"layers.0.qkv": "int8", "layers.0.ffn_in": ffn, "layers.0.ffn_out": ffn, "embeddings.word": "int8"}
        for ffn in ("fp32", "int4")
    ]
    said = []
    for mix in mixes:
        manifest = weights.manifest.model_copy(
            update={"scheme": "mixed", "embeddings_scheme": "int8", "matrix_schemes": mix}
        )
        quantized = quantize_programs(Programs.of(weights.model()), "mixed", "int8", mix)
        ids = worker.random_ids(90, LENGTH)
        with torch.no_grad():
            expected = quantized(ids, torch.zeros(1, 1, LENGTH))[-1][1][0].numpy()
        said.append(answers(peer, replace(weights, manifest=manifest)))
        assert np.abs(said[-1] - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(said[0] - said[1]).max() > 0.02 * np.abs(said[0]).max()


def test_a_missing_library_is_one_line_with_the_way_out(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("onnxruntime", "litert_torch") else find(name)
    )
    reasons = left_out()
    assert {"onnxruntime-fp32", "onnxruntime-int8", "litert-int8"} <= set(reasons)
    assert "onnxruntime" in reasons["onnxruntime-int8"] and ".[peers]" in reasons["onnxruntime-int8"]
    assert "litert_torch" in reasons["litert-int8"] and "litert.txt" in reasons["litert-int8"]
    assert not any("\n" in reason for reason in reasons.values())
    assert "torch-eager" not in reasons


def test_torch_compile_is_left_out_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX" in left_out()["torch-compile"]


def test_weights_of_another_model_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match="model.safetensors.*OUT/exits"):
        Weights(tmp_path, weights.manifest)
    other = weights.manifest.model_copy(update={"model": weights.manifest.model.model_copy(update={"hidden_size": 64})})
    with pytest.raises(UserError, match="hidden_size is 32, the bundle has 64"):
        Weights(weights.folder, other)


def test_the_faster_variant_of_a_contender_is_reported(tiny_classifier, tmp_path, monkeypatch):
    """Two ways to run PyTorch stand in for two variants, so that no library is needed."""
    model = ExitModel("classification", config_of(tiny_classifier), 3, "pooled", (1, 2)).eval()
    save_model(model, tmp_path)
    eager = next(peer for peer in PEERS if peer.system == "torch-eager")
    monkeypatch.setattr(peers, "left_out", lambda _: {"litert-int8": "litert_torch cannot be imported; install it"})
    monkeypatch.setattr("pipeline.bench.host.left_out", peers.left_out)
    contenders = [replace(eager, variant=name, contender=True) for name in ("one", "other")]
    report = bench_host(
        tiny_classifier.path, [8, 16], repeats=3, threads=1, reference="none", weights=tmp_path, peers=contenders
    )
    assert sorted(each.length for each in report.of("torch-eager")) == [8, 16]
    assert all(each.difference == 0 for each in report.of("torch-eager"))
    ours = {each.depth: each.difference for each in report.of("pocketbert")}
    assert ours[1] is None and ours[2] > 0.01, "other weights give other answers"
    assert BenchReport.model_validate_json(report.model_dump_json()) == report
    assert report.left_out == {"litert-int8": "litert_torch cannot be imported; install it"}
    assert bench_table(report).row_count == len(report.results) == 6
    drawn = systems_plot(report)
    assert drawn.startswith("<?xml") and drawn == systems_plot(report)


def config_of(bundle) -> EncoderConfig:
    shape = bundle.manifest.model
    return EncoderConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, layers=shape.layers, heads=shape.heads,
        intermediate_size=shape.intermediate_size, max_positions=64,
    )  # fmt: skip
