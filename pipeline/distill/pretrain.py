"""Pre-training distillation: the student learns masked words from the teacher (DistilBERT, sections 2 and 3)."""

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
from pipeline.distill.trainer import TensorBatch, Trainer, device, on_device, parameter_groups
from pipeline.model.encoder import Encoder
from pipeline.model.mlm import MaskedLM, MlmHead
from pipeline.model.pretrained import Pretrained
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with some words masked.

    Attributes:
        ids: [batch, length], with the masking applied.
        mask: [batch, length], 1 at real tokens.
        chosen: [batch, length] bool, the tokens to predict.
        words: [chosen tokens], their original ids.
        word_weight: turns a mean over this process's chosen tokens into its part of the mean over the whole batch's;
            1 in a run of one process.
    """

    ids: Tensor
    mask: Tensor
    chosen: Tensor
    words: Tensor
    word_weight: float = 1.0


@dataclass(frozen=True)
class HeldOutLosses:
    """A masked language model's losses on held-out text, as means over masked words.

    Attributes:
        mlm_loss: cross-entropy in nats.
        perplexity: exp(mlm_loss).
        soft_loss: soft-target loss against the teacher, at the recipe's temperature.
        cosine: 1 - cosine of the last hidden states and the teacher's. It is averaged within each batch, and batches
            are weighted by their masked words.
    """

    mlm_loss: float
    perplexity: float
    soft_loss: float
    cosine: float

    def to_json(self) -> dict[str, float]:
        """Returns the losses by name."""
        return asdict(self)


def teacher_of(pretrained: Pretrained) -> MaskedLM:
    """Builds a masked language model from a checkpoint. Its head is newly initialised if the checkpoint has none."""
    encoder, head = Encoder(pretrained.config), MlmHead(pretrained.config)
    encoder.load_state_dict(pretrained.encoder)
    if pretrained.mlm_head is not None:
        head.load_state_dict(pretrained.mlm_head)
    return MaskedLM(encoder, head).eval()


def student_of(teacher: MaskedLM, recipe: Recipe) -> MaskedLM:
    """Builds the student that `recipe.student` describes: from the teacher's layers and head, or with random weights.

    Raises:
        UserError: the recipe names layers that the teacher does not have.
    """
    config, state = student_encoder(teacher.encoder.config, teacher.encoder.state_dict(), recipe.student.layers)
    student = MaskedLM(Encoder(config), MlmHead(config))
    if recipe.student.initialise == "teacher":
        student.encoder.load_state_dict(state)
        student.head.load_state_dict(teacher.head.state_dict())
    return student


def mask_words(
    batch: Batch, indices: np.ndarray, number: int, tokenizer: WordPieceTokenizer, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Masks words of a batch with `mask_tokens`, seeded by the batch's number and the blocks' indices.

    So a block gets other words masked in every epoch, and a resumed training masks the same words again.

    Args:
        indices: the blocks' indices in the corpus.
        number: the batch's, counted over the training.

    Returns:
        the ids with the masking applied, and which tokens were chosen: [batch, length] each.
    """
    assert tokenizer.mask_id is not None  # see `check_vocabulary`
    maskable = (batch.ids != tokenizer.cls_id) & (batch.ids != tokenizer.sep_id) & (batch.mask > 0)
    seeds = [(seed, number, int(index)) for index in indices]
    return mask_tokens(batch.ids, maskable, seeds, tokenizer.mask_id, tokenizer.vocab_size)


def mask_batch(batch: TensorBatch, blocks: Blocks, seed: int) -> MaskedBatch:
    """Returns a batch of `blocks` with words masked, see `mask_words`."""
    # Masked on the CPU, where random numbers are the same on every machine.
    own = collate([blocks[index] for index in batch.indices.tolist()])
    masked_ids, chosen = mask_words(own, batch.indices, batch.number, blocks.tokenizer, seed)
    weight = 1.0
    if len(batch.whole) > len(batch.indices):
        whole = collate([blocks[index] for index in batch.whole.tolist()])
        _, all_chosen = mask_words(whole, batch.whole, batch.number, blocks.tokenizer, seed)
        weight = chosen.sum() / all_chosen.sum() * len(batch.whole) / len(batch.indices)
    ids, is_chosen, words = (
        torch.from_numpy(array).to(batch.ids.device) for array in (masked_ids, chosen, own.ids[chosen])
    )
    return MaskedBatch(ids, batch.mask, is_chosen, words, word_weight=float(weight))


def check_vocabulary(blocks: Blocks, model: MaskedLM) -> None:
    """Checks that a corpus was tokenized for this model, in blocks that fit, with a vocabulary that has [MASK].

    Raises:
        UserError: it was not.
    """
    config = model.encoder.config
    if blocks.vocab_size != config.vocab_size:
        raise UserError(
            f"the corpus is in tokens of a vocabulary of {blocks.vocab_size}, the model knows {config.vocab_size}; "
            "tokenize it with the model's own vocab.txt",
            field="pretrain.corpus",
        )
    if blocks.length > config.max_positions:
        raise UserError(
            f"{blocks.length} is more than the {config.max_positions} positions of the teacher",
            field="pretrain.length",
        )
    if blocks.tokenizer.mask_id is None:
        raise UserError(
            "the teacher's vocabulary has no [MASK], so it is not a masked language model; name one that is",
            field="pretrain.teacher",
        )


def fit_head(teacher: MaskedLM, blocks: Blocks, recipe: Recipe, checkpoint: Path, on_step: OnStep = silent) -> None:
    """Trains a masked-LM head on a teacher's frozen encoder, for a checkpoint without one.

    Args:
        checkpoint: see `Trainer`.

    Raises:
        UserError: the recipe gives the head no training, or the corpus was not tokenized for the teacher.
    """
    check_vocabulary(blocks, teacher)
    training = recipe.pretrain.head_training
    if not training.epochs:
        raise UserError(
            "the teacher's checkpoint has no masked-LM head; set it above 0 to fit one",
            field="pretrain.head_training.epochs",
        )
    teacher.encoder.requires_grad_(False)
    teacher.head.requires_grad_(True).train()

    def loss(batch: TensorBatch) -> Tensor:
        masked = mask_batch(batch, blocks, recipe.seed)
        with torch.no_grad():
            hidden = teacher.encoder(masked.ids, masked.mask)[-1]
        return masked.word_weight * mlm_loss(teacher.logits(hidden, masked.chosen), masked.words)

    with on_device(teacher):
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


def pretrain(
    student: MaskedLM,
    teacher: MaskedLM,
    blocks: Blocks,
    recipe: Recipe,
    checkpoint: Path,
    on_step: OnStep = silent,
    curve: Path | None = None,
) -> MaskedLM:
    """Trains the student on soft targets, masked words and hidden states, each weighted as the recipe says.

    A term of weight 0 is not computed.

    Args:
        checkpoint, curve: see `Trainer`.

    Returns:
        the student, in evaluation mode.

    Raises:
        UserError: the corpus was not tokenized for the models.
    """
    options, training = recipe.pretrain, recipe.pretrain.training
    check_vocabulary(blocks, teacher)
    check_vocabulary(blocks, student)
    student.train()
    teacher.requires_grad_(False).eval()
    student.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)

    def loss(batch: TensorBatch) -> Tensor:
        masked = mask_batch(batch, blocks, recipe.seed)
        with torch.no_grad():
            if options.soft_weight or options.hidden_weight:
                teacher_hidden = teacher.encoder(masked.ids, masked.mask)[-1]
            if options.soft_weight:
                teacher_logits = teacher.logits(teacher_hidden, masked.chosen)
        hidden = student.encoder(masked.ids, masked.mask)[-1]
        total = torch.zeros((), device=hidden.device)
        if options.soft_weight or options.mlm_weight:
            logits = student.logits(hidden, masked.chosen)
            if options.soft_weight:
                total = total + options.soft_weight * masked.word_weight * soft_target_loss(
                    logits, teacher_logits, options.temperature
                )
            if options.mlm_weight:
                total = total + options.mlm_weight * masked.word_weight * mlm_loss(logits, masked.words)
        if options.hidden_weight:
            total = total + options.hidden_weight * batch.token_weight * cosine_loss(
                hidden, teacher_hidden, masked.mask
            )
        return total

    # The head starts as the teacher's trained one, so it learns at the encoder's rate, not at that of a new head.
    uses_head = options.soft_weight or options.mlm_weight
    trained = student if uses_head else student.encoder
    with on_device(student, teacher):
        Trainer(
            "pre-training the student",
            trained,
            parameter_groups(list(trained.parameters()), [], training),
            loss,
            training,
            precision=recipe.precision,
            seed=recipe.seed + 4,
            checkpoint=checkpoint,
            curve=curve,
            on_step=on_step,
        ).run(blocks)
    return student.requires_grad_(True)


@torch.no_grad()
def measure(
    student: MaskedLM, teacher: MaskedLM, blocks: Blocks, recipe: Recipe, on_step: OnStep = silent
) -> HeldOutLosses:
    """HeldOutLosses a model on held-out blocks, masking the same words every time.

    `student` and `teacher` may be the same model.
    """
    size = recipe.pretrain.training.batch_size
    sums, weight = np.zeros(3), 0
    with on_device(student, teacher):
        for start in range(0, len(blocks), size):
            rows = np.arange(start, min(start + size, len(blocks)))
            batch = TensorBatch.of(collate([blocks[row] for row in rows.tolist()]), device(), rows)
            masked = mask_batch(batch, blocks, recipe.seed)
            hidden = student.encoder(masked.ids, masked.mask)[-1]
            teacher_hidden = teacher.encoder(masked.ids, masked.mask)[-1]
            logits = student.logits(hidden, masked.chosen)
            teacher_logits = teacher.logits(teacher_hidden, masked.chosen)
            losses = (
                mlm_loss(logits, masked.words),
                soft_target_loss(logits, teacher_logits, recipe.pretrain.temperature),
                cosine_loss(hidden, teacher_hidden, masked.mask),
            )
            sums += len(masked.words) * np.array([float(loss) for loss in losses])
            weight += len(masked.words)
            on_step("measuring", min(start + size, len(blocks)), len(blocks))
    mlm, soft, cosine = (float(value) for value in sums / weight)
    return HeldOutLosses(mlm, math.exp(min(mlm, 700.0)), soft, cosine)
