"""Operations are counted as torch and FastBERT's paper count them; every head stays cheap."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.encoder import Embeddings, EncoderConfig, ExportLayer
from pipeline.model.exit_model import ExitModel
from pipeline.model.flops import embedding_flops, head_flops, layer_flops, model_flops
from pipeline.model.heads import build_head
from pipeline.model.segments import Programs
from pipeline.tasks import TASKS

MINILM = EncoderConfig(hidden_size=384, intermediate_size=1536)
BERT = EncoderConfig()
KINDS = [(task, kind) for task in TASKS for kind in TASKS[task].heads]


def count_with_torch(function, *inputs) -> int:
    """Counts the floating-point operations of a call with torch's counter."""
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 17, 128])
@pytest.mark.parametrize("config", [MINILM, BERT], ids=["384", "768"])
def test_a_layer_and_the_embeddings_cost_what_torch_counts(config, length):
    with torch.device("meta"):
        hidden, bias = torch.zeros(1, length, config.hidden_size), torch.zeros(1, 1, length)
        assert layer_flops(config, length) == count_with_torch(ExportLayer(config), hidden, bias)
        assert embedding_flops(config, length) == count_with_torch(
            Embeddings(config), torch.zeros(1, length, dtype=torch.int64)
        )


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_a_head_costs_what_torch_counts(task, kind):
    for config, labels, length in ((MINILM, 2, 128), (BERT, 5, 40), (MINILM, 3, 1)):
        with torch.device("meta"):
            head = build_head(task, kind, config, labels)
            expected = count_with_torch(head, torch.zeros(1, length, config.hidden_size), torch.zeros(1, 1, length))
        assert head_flops(task, kind, config, labels, length) == expected > 0


@pytest.mark.parametrize("config", [MINILM, BERT], ids=["384", "768"])
@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_a_head_costs_at_most_3_per_cent_of_a_layer(task, kind, config):
    assert 0 < head_flops(task, kind, config, 4, 128) / layer_flops(config, 128) <= 0.03


def test_a_layer_costs_what_fastberts_table_says():
    """FastBERT, table 1, 128 tokens: 1809.9 M per transformer layer, without the two products of attention."""
    products = 2 * 2 * 128 * 128 * 768
    assert (layer_flops(BERT, 128) - products) / 1e6 == pytest.approx(1809.9, rel=0.002)


@pytest.mark.parametrize(("task", "kind"), [("classification", "pooled"), ("qa", "attention")])
def test_a_model_costs_the_sum_of_its_programs_up_to_the_depth(task, kind):
    config = EncoderConfig(vocab_size=50, hidden_size=64, layers=4, heads=4, intermediate_size=128, max_positions=32)
    exits, length = (1, 3, 4), 20
    programs = Programs.of(ExitModel(task, config, 3, kind, exits))
    ids, bias = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, 1, length)
    extra = [torch.zeros(1, length)] if task == "qa" else []
    for depth in range(4):

        def run(depth: int = depth) -> None:
            hidden = programs.embed(ids)
            for segment in programs.segments[:depth]:
                hidden = segment(hidden, bias, *extra)[0]

        assert model_flops(config, kind, task, 3, length, depth, exits) == count_with_torch(run)


def test_a_mean_depth_costs_the_mean_of_its_inputs():
    cost = [model_flops(MINILM, "pooled", "classification", 2, 64, depth) for depth in (1, 2, 6)]
    assert model_flops(MINILM, "pooled", "classification", 2, 64, 3.0) == pytest.approx(sum(cost) / 3)
    assert cost[2] == pytest.approx(6 * cost[0])
    assert model_flops(MINILM, "pooled", "classification", 2, 64, 1.25, (2, 6)) == pytest.approx(
        model_flops(MINILM, "pooled", "classification", 2, 64, 1, (2, 6))
        + (4 * layer_flops(MINILM, 64) + head_flops("classification", "pooled", MINILM, 2, 64)) / 4
    )


@pytest.mark.parametrize("depth", [-0.1, 6.1])
def test_a_depth_out_of_range_is_an_error(depth):
    with pytest.raises(ValueError, match="not from 0 to 6 segments"):
        model_flops(MINILM, "pooled", "classification", 2, 64, depth)
