import errno

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from pipeline.bench import reference
from pipeline.bench.reference import reference_program
from pipeline.runtime.programs import MethodFile
from pipeline.support.errors import UserError

LENGTH = 16


def hugging_face(shape):
    """The same model, by transformers' own names."""
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


def test_the_program_computes_what_hugging_face_computes_and_is_kept(small_bert):
    before = torch.random.get_rng_state()
    path = reference_program(LENGTH, shape=small_bert)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers moved"
    ids = torch.randint(5, 1200, (1, LENGTH))
    mask = (torch.arange(LENGTH) < 11).long()[None]
    with torch.no_grad():
        expected = hugging_face(small_bert)(input_ids=ids, attention_mask=mask).logits
    program = MethodFile(path, 1)
    program.load("forward")
    (logits,) = program.run("forward", [ids, mask])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, hugging_face(small_bert)(input_ids=ids).logits, atol=1e-5), (
        "the mask has no effect"
    )

    told, changed = [], path.stat().st_mtime_ns
    assert reference_program(LENGTH, lambda *step: told.append(step), small_bert) == path
    assert path.stat().st_mtime_ns == changed and not told, "it was exported again"
    assert list(path.parent.glob(f"{path.name}*")) == [path], "something was left beside it"


def test_another_length_or_shape_is_another_file(small_bert):
    names = {
        reference.file_name(16, small_bert),
        reference.file_name(32, small_bert),
        reference.file_name(16, small_bert.with_(layers=3)),
    }
    assert len(names) == 3


def test_a_full_disk_leaves_nothing_and_says_the_way_out(small_bert, tmp_path, monkeypatch):
    class Full:
        def write_to_file(self, stream):
            stream.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("POCKETBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reference, "lower", lambda *_: Full())
    with pytest.raises(UserError, match="disk is full.*POCKETBERT_CACHE"):
        reference_program(LENGTH, shape=small_bert)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_is_no_folder_is_named(small_bert, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POCKETBERT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="file/cache.*POCKETBERT_CACHE"):
        reference_program(LENGTH, shape=small_bert)


def test_a_length_without_positions_is_refused(small_bert):
    with pytest.raises(UserError, match="from 2 to 32"):
        reference_program(33, shape=small_bert)
