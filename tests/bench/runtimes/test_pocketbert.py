"""Tests how the worker runs a bundle's programs."""

from pipeline.bench.runtimes.pocketbert import BundlePrograms


def test_a_run_passes_through_the_programs_up_to_its_depth(tiny_qa):
    programs = BundlePrograms(tiny_qa.path, 1, tiny_qa.manifest)
    programs.load()
    calls, run_method = [], programs.file.run

    def record(name, inputs):
        calls.append((name, [tuple(tensor.shape) for tensor in inputs]))
        return run_method(name, inputs)

    programs.file.run = record
    programs.prepare(length=7, depth=1)()
    assert calls == [("embed", [(1, 7)]), ("segment_0", [(1, 7, 64), (1, 1, 7), (1, 7)])]
    calls.clear()
    programs.prepare(length=9, depth=2)()
    assert [name for name, _ in calls] == ["embed", "segment_0", "segment_1"]
    assert calls[2][1][0] == (1, 9, 64)
