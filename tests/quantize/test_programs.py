"""Every scheme runs in ExecuTorch, computes what the quantized model in PyTorch does, and takes the bytes accounted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.export import executorch
from pipeline.export.executorch import export_executorch
from pipeline.model.encoder import Embeddings, EncoderConfig
from pipeline.model.heads import build_head
from pipeline.model.segments import EmbedProgram, Programs, SegmentProgram
from pipeline.schemes import SCHEMES, linear_layers
from pipeline.support.quiet import import_quietly, quiet_stderr
from quantize.schemes import LINEAR_ARITHMETIC, WORD_TABLE_ARITHMETIC, apply_scheme
from quantize.size import executorch_parts

CONFIG = EncoderConfig(vocab_size=400, hidden_size=64, layers=2, heads=2, intermediate_size=512, max_positions=24)


class FeedForward(nn.Module):
    """Half of a layer. It has matrices for the schemes, and lowers in a fifth of a layer's time."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn_in = nn.Linear(CONFIG.hidden_size, CONFIG.intermediate_size)
        self.ffn_out = nn.Linear(CONFIG.intermediate_size, CONFIG.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        return hidden + self.ffn_out(torch.relu(self.ffn_in(hidden)))


@pytest.fixture(scope="module")
def programs() -> Programs:
    torch.manual_seed(0)
    head = build_head("regression", "linear", CONFIG, 1)
    segments = [SegmentProgram("regression", [FeedForward()], head) for _ in range(2)]
    return Programs("regression", EmbedProgram(Embeddings(CONFIG)), segments).eval()


def max_error(scheme: str) -> float:
    """Returns the largest relative error of a scheme's programs.

    An int8 input may round to the next step. One of 16 bits may round to the next finer step, which moves the head's
    one number by 4e-5. float16 products are summed in another order and rounded.
    """
    if bits := linear_layers(scheme).activation_bits:
        return 2e-3 if bits == 8 else 1e-4
    return 1e-3 if SCHEMES[scheme].weight_bits == 16 else 1e-5


def relative(error: Tensor, reference: Tensor) -> float:
    return float(error.norm() / reference.norm())


# The word table's scheme beside each scheme of linear layers; fp32 for all others. A lowering takes seconds, so each
# has one.
WORD_TABLES = {"fp32": "int4", "fp16": "fp16", "int8": "int8", "int8-a16": "int8", "int4": "int4"}
PAIRS = [(scheme, WORD_TABLES.get(scheme, "fp32")) for scheme in LINEAR_ARITHMETIC]


def test_the_pairs_cover_all_schemes_of_the_word_table():
    assert {embeddings for _, embeddings in PAIRS} == set(WORD_TABLE_ARITHMETIC)


@pytest.mark.parametrize(("scheme", "embeddings"), PAIRS)
@torch.no_grad()
def test_a_scheme_runs_in_executorch_as_in_torch(programs, scheme, embeddings, tmp_path, monkeypatch):
    quantized = apply_scheme(programs, scheme, embeddings)
    lowered = []
    lower = executorch.lower
    monkeypatch.setattr(executorch, "lower", lambda exported: lowered.append(exported) or lower(exported))
    export_executorch(quantized, tmp_path / "model.pte", CONFIG.max_positions, scheme)
    assert len(lowered) == 2  # `embed` and one of the two segments, which are alike
    with quiet_stderr():
        program = import_quietly("executorch.runtime").Runtime.get().load_program(tmp_path / "model.pte")
        methods = {name: program.load_method(name) for name in program.method_names}
    for length in (2, 9, CONFIG.max_positions):
        ids = torch.randint(0, CONFIG.vocab_size, (1, length), generator=torch.Generator().manual_seed(length))
        hidden, bias = quantized.embed(ids), torch.zeros(1, 1, length)
        assert relative(methods["embed"].execute([ids])[0] - hidden, hidden) < 1e-6
        for index, segment in enumerate(quantized.segments):
            expected = segment(hidden, bias)
            outputs = methods[f"segment_{index}"].execute([hidden, bias])
            for output, reference in zip(outputs, expected, strict=True):
                assert relative(output - reference, reference) < max_error(scheme)
            hidden = expected[0]
    # The graphs take 13.6 to 20.7 KB (measured). The word table alone is at least 14 KB, each of the four matrices 18
    # KB.
    overhead = (tmp_path / "model.pte").stat().st_size - executorch_parts(programs, scheme, embeddings).total
    assert 12_000 < overhead < 23_000
