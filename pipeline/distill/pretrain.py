"""Pre-training distillation: before any task, the student learns hidden words from the teacher (DistilBERT, sections 2 and 3)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.corpus import Blocks
from pipeline.data.items import Batch, collate
from pipeline.data.masking import mask_tokens
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill.losses import cosine_loss, mlm_loss, soft_target_loss
from pipeline.distill.student import student_encoder
from pipeline.distill.trainer import TensorBatch, Trainer, device, parameter_groups
from pipeline.model.encoder import Encoder
from pipeline.model.mlm import MaskedLM, MlmHead
from pipeline.model.pretrained import Pretrained
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent


@dataclass(frozen=True)
class MaskedBatch:
    """What a masked language model sees: ids, mask [batch, length]; `chosen` [batch, length] bool; `words` [chosen], what stood there.

    A mean over the chosen words times `word_weight` is the process' part in the mean over the words of the whole batch; 1 in a run of one.
    """

    ids: Tensor
    mask: Tensor
    chosen: Tensor
    words: Tensor
    word_weight: float = 1.0


@dataclass(frozen=True)
class Measures:
    """A masked language model on text that it did not learn from.

    `mlm_loss` is in nats, a mean over hidden words, and `perplexity` its exponential. Against the teacher: `soft_loss` at the recipe's
    temperature, and `cosine`, 1 - cosine of the last hidden states, each batch weighted by its hidden words.
    """

    mlm_loss: float
    perplexity: float
    soft_loss: float
    cosine: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def teacher_of(pretrained: Pretrained) -> MaskedLM:
    """A checkpoint as a masked language model; its head is newly initialised where the checkpoint has none."""
    encoder, head = Encoder(pretrained.config), MlmHead(pretrained.config)
    encoder.load_state_dict(pretrained.encoder)
    if pretrained.mlm_head is not None:
        head.load_state_dict(pretrained.mlm_head)
    return MaskedLM(encoder, head).eval()


def student_of(teacher: MaskedLM, recipe: Recipe) -> MaskedLM:
    """A student by `recipe.student`: of the teacher's layers and head, or of random weights. UserError for layers it lacks."""
    config, state = student_encoder(teacher.encoder.config, teacher.encoder.state_dict(), recipe.student.layers)
    student = MaskedLM(Encoder(config), MlmHead(config))
    if recipe.student.initialise == "teacher":
        student.encoder.load_state_dict(state)
        student.head.load_state_dict(teacher.head.state_dict())
    return student


def hide(
    batch: Batch, indices: np.ndarray, number: int, tokenizer: WordPieceTokenizer, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`mask_tokens` of a training's batch: other words every time, the same ones when an interrupted training is at that batch again."""
    maskable = (batch.ids != tokenizer.cls_id) & (batch.ids != tokenizer.sep_id) & (batch.mask > 0)
    seeds = [(seed, number, int(index)) for index in indices]
    return mask_tokens(batch.ids, maskable, seeds, tokenizer.mask_id, tokenizer.vocab_size)


def mask_batch(batch: TensorBatch, blocks: Blocks, seed: int) -> MaskedBatch:
    """A batch of `blocks` with words hidden, by the batch's number and each block's index."""
    mine = collate(
        [blocks[at] for at in batch.indices]
    )  # on the processor, where random numbers are the same on every machine
    hidden, chosen = hide(mine, batch.indices, batch.number, blocks.tokenizer, seed)
    weight = 1.0
    if len(batch.whole) > len(batch.indices):
        everyone = hide(collate([blocks[at] for at in batch.whole]), batch.whole, batch.number, blocks.tokenizer, seed)[
            1
        ]
        weight = chosen.sum() / everyone.sum() * len(batch.whole) / len(batch.indices)
    at = batch.ids.device
    arrays = (torch.from_numpy(array).to(at) for array in (chosen, mine.ids[chosen]))
    return MaskedBatch(torch.from_numpy(hidden).to(at), batch.mask, *arrays, word_weight=float(weight))


def check_vocabulary(blocks: Blocks, model: MaskedLM) -> None:
    """UserError unless a corpus was tokenized for this model, with a vocabulary that can mask."""
    if blocks.vocab_size != model.encoder.config.vocab_size:
        raise UserError(
            f"the corpus is in tokens of a vocabulary of {blocks.vocab_size}, the model knows {model.encoder.config.vocab_size}; "
            "tokenize it with the model's own vocab.txt",
            field="pretrain.corpus",
        )
    if blocks.length > model.encoder.config.max_positions:
        raise UserError(
            f"{blocks.length} is more than the {model.encoder.config.max_positions} positions of the teacher",
            field="pretrain.length",
        )
    if blocks.tokenizer.mask_id is None:
        raise UserError(
            "the teacher's vocabulary has no [MASK], so it was no masked language model; name one",
            field="pretrain.teacher",
        )


def fit_head(teacher: MaskedLM, blocks: Blocks, recipe: Recipe, checkpoint: Path, on_step: OnStep = silent) -> None:
    """Trains a masked-LM head on the frozen encoder of a teacher whose checkpoint came without one, tied to its word embeddings.

    Raises:
        UserError: if the recipe leaves it no training, or the corpus is in other tokens than the teacher's.
    """
    check_vocabulary(blocks, teacher)
    training = recipe.pretrain.head_training
    if not training.epochs:
        raise UserError(
            "the teacher's checkpoint has no masked-LM head; set it above 0 to fit one",
            field="pretrain.head_training.epochs",
        )
    teacher.to(device())
    teacher.encoder.requires_grad_(False)
    teacher.head.requires_grad_(True).train()

    def loss(batch: TensorBatch) -> Tensor:
        masked = mask_batch(batch, blocks, recipe.seed)
        with torch.no_grad():
            hidden = teacher.encoder(masked.ids, masked.mask)[-1]
        return masked.word_weight * mlm_loss(teacher.logits(hidden, masked.chosen), masked.words)

    Trainer(
        "fitting the teacher's masked-LM head",
        teacher.head,
        parameter_groups([], list(teacher.head.parameters()), training),
        loss,
        training,
        precision=recipe.precision,
        seed=recipe.seed + 3,
        checkpoint=checkpoint,
        on_step=on_step,
    ).run(blocks)
    teacher.cpu().eval()


def pretrain(
    student: MaskedLM,
    teacher: MaskedLM,
    blocks: Blocks,
    recipe: Recipe,
    checkpoint: Path,
    on_step: OnStep = silent,
    curve: Path | None = None,
) -> MaskedLM:
    """Trains the student on soft targets, masked words and hidden states, each by its weight in the recipe. Returns it in evaluation mode.

    A term of weight 0 is not computed. `curve` is where the losses go, see `Trainer.write_losses`.

    Raises:
        UserError: if the corpus is in other tokens than the models'.
    """
    options, training = recipe.pretrain, recipe.pretrain.training
    check_vocabulary(blocks, teacher)
    check_vocabulary(blocks, student)
    student.to(device()).train()
    teacher.to(device()).requires_grad_(False).eval()
    student.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)

    def loss(batch: TensorBatch) -> Tensor:
        masked = mask_batch(batch, blocks, recipe.seed)
        with torch.no_grad():
            seen = (
                teacher.encoder(masked.ids, masked.mask)[-1] if options.soft_weight or options.hidden_weight else None
            )
            goal = teacher.logits(seen, masked.chosen) if options.soft_weight else None
        hidden = student.encoder(masked.ids, masked.mask)[-1]
        total = torch.zeros((), device=hidden.device)
        if options.soft_weight or options.mlm_weight:
            logits = student.logits(hidden, masked.chosen)
            if options.soft_weight:
                total = total + options.soft_weight * masked.word_weight * soft_target_loss(
                    logits, goal, options.temperature
                )
            if options.mlm_weight:
                total = total + options.mlm_weight * masked.word_weight * mlm_loss(logits, masked.words)
        if options.hidden_weight:
            total = total + options.hidden_weight * batch.token_weight * cosine_loss(hidden, seen, masked.mask)
        return total

    # The head starts from the teacher's, trained already: it learns at the encoder's rate, not at that of a new one.
    uses_head = options.soft_weight or options.mlm_weight
    trained = student if uses_head else student.encoder
    trainer = Trainer(
        "pre-training the student",
        trained,
        parameter_groups(list(trained.parameters()), [], training),
        loss,
        training,
        precision=recipe.precision,
        seed=recipe.seed + 4,
        checkpoint=checkpoint,
        on_step=on_step,
    )
    trainer.run(blocks)
    if curve:
        trainer.write_losses(curve)
    teacher.cpu()
    return student.cpu().requires_grad_(True).eval()


@torch.no_grad()
def measure(student: MaskedLM, teacher: MaskedLM, blocks: Blocks, recipe: Recipe, on_step: OnStep = silent) -> Measures:
    """A model's losses on blocks that it was not trained on, the same words hidden every time; the teacher itself may be the student."""
    size = recipe.pretrain.training.batch_size
    student.to(device())
    teacher.to(device())
    sums, weight = np.zeros(3), 0
    for start in range(0, len(blocks), size):
        rows = np.arange(start, min(start + size, len(blocks)))
        batch = TensorBatch.of(collate([blocks[at] for at in rows]), device(), indices=rows, whole=rows)
        masked = mask_batch(batch, blocks, recipe.seed)
        hidden, seen = student.encoder(masked.ids, masked.mask)[-1], teacher.encoder(masked.ids, masked.mask)[-1]
        logits, goal = student.logits(hidden, masked.chosen), teacher.logits(seen, masked.chosen)
        losses = (
            mlm_loss(logits, masked.words),
            soft_target_loss(logits, goal, recipe.pretrain.temperature),
            cosine_loss(hidden, seen, masked.mask),
        )
        sums += len(masked.words) * np.array([float(part) for part in losses])
        weight += len(masked.words)
        on_step("measuring", min(start + size, len(blocks)), len(blocks))
    student.cpu()
    teacher.cpu()
    mlm, soft, cosine = (float(value) for value in sums / weight)
    return Measures(mlm, math.exp(min(mlm, 700.0)), soft, cosine)
