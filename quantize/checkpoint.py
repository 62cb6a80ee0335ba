"""The result of quantizing a checkpoint, as `pocketbert quantize CHECKPOINT --json` prints it."""

from __future__ import annotations

from pydantic import Field

from pipeline.names import Metric, Task
from pipeline.support.document import Document


class SpeedOutcome(Document):
    """What the bundle's own programs did on the compared texts at one speed."""

    speed: str = Field(description='"full" for every segment, or the name of a calibrated speed')
    score: float | None = Field(description="in the metric, a fraction of 1; null without labels")
    mean_depth: float = Field(description="mean number of segments that ran")
    mean_ms: float = Field(description="milliseconds for a text, tokenization included, mean over the texts")
    p50_ms: float
    p95_ms: float


class QuantizedCheckpoint(Document):
    """A quantized checkpoint: where its bundle is, what it weighs, and how far its answers are from float32."""

    bundle: str
    weights: str
    task: Task
    scheme: str
    embeddings: str
    matrix_schemes: dict[str, str] = Field(description="of a mixed scheme, that of each matrix")
    file_bytes: int = Field(description="size of model.pte")
    fp32_bytes: int = Field(description="size of the same model's parameters in float32")
    parts: dict[str, int] = Field(description="bytes of the bundle by what they hold")
    texts: int = Field(description="number of texts that the two were compared on")
    rounding_texts: int = Field(
        description="number of other texts that int4 matrices were rounded by; 0: each weight to the nearest value"
    )
    relative_error: float = Field(
        description="root mean square of the difference of the logits from float32, over that of float32's logits; "
        "a mix was chosen on these very texts"
    )
    divergence: float = Field(description="divergence of the answers from float32's, mean over the texts, in nats")
    same_answer: float = Field(
        description="share of texts with float32's answer; for questions, share of windows with its best start and end"
    )
    metric: Metric
    loss: float | None = Field(description="score lost, a fraction of 1; null without labels")
    parity_db: float = Field(
        description="ExecuTorch's program against the quantized model in PyTorch: signal to noise of the logits"
    )
    bundle_bytes: int = Field(description="size of all files of the bundle")
    backends: list[str] = Field(description="what the bundle has programs for")
    score_before: float | None = Field(
        description="score of the checkpoint in float32 on the compared texts, a fraction of 1; null without labels"
    )
    score_after: float | None = Field(
        description="score of the bundle's own programs at full depth on the same texts; null without labels"
    )
    speeds: list[SpeedOutcome] = Field(description="full depth, then every calibrated speed")
    checks: int = Field(description="number of checks that the bundle passed")
    next_command: str = Field(description="a command that asks the bundle for an answer")
