"""Tests the BERT-base program against transformers' own model, with a small shape."""

import errno

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from pipeline.bench.runtimes import bert_base
from pipeline.bench.runtimes.bert_base import bert_base_program, file_name
from pipeline.runtime.programs import MethodFile
from pipeline.support.errors import UserError

LENGTH = 16


def hugging_face_model(shape):
    """Returns the same model, built by transformers directly."""
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def test_the_program_computes_what_hugging_face_computes_and_is_cached(small_bert):
    random_state = torch.random.get_rng_state()
    path = bert_base_program(LENGTH, small_bert)
    assert torch.equal(torch.random.get_rng_state(), random_state), "the caller's random numbers moved"
    ids = torch.randint(5, 1200, (1, LENGTH))
    mask = (torch.arange(LENGTH) < 11).long()[None]
    model = hugging_face_model(small_bert)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    program = MethodFile(path, 1)
    program.load("forward")
    (logits,) = program.run("forward", [ids, mask])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, model(input_ids=ids).logits, atol=1e-5), "the mask has no effect"

    steps, modified = [], path.stat().st_mtime_ns
    assert bert_base_program(LENGTH, small_bert, lambda *step: steps.append(step)) == path
    assert path.stat().st_mtime_ns == modified and not steps, "it was exported again"
    assert list(path.parent.glob(f"{path.name}*")) == [path], "another file was left beside it"


def test_another_length_or_shape_has_another_file(small_bert):
    names = {file_name(16, small_bert), file_name(32, small_bert), file_name(16, small_bert.with_(layers=3))}
    assert len(names) == 3


def test_a_full_disk_leaves_nothing_and_the_error_names_the_way_out(small_bert, tmp_path, monkeypatch):
    class ProgramOnFullDisk:
        def write_to_file(self, stream):
            stream.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("POCKETBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bert_base, "lower_fixed_length", lambda *_: ProgramOnFullDisk())
    with pytest.raises(UserError, match="disk is full.*POCKETBERT_CACHE"):
        bert_base_program(LENGTH, small_bert)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_folder_that_cannot_be_made_is_named(small_bert, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POCKETBERT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="file/cache.*POCKETBERT_CACHE"):
        bert_base_program(LENGTH, small_bert)


def test_a_length_beyond_the_positions_is_refused(small_bert):
    with pytest.raises(UserError, match="from 2 to 32"):
        bert_base_program(33, small_bert)
