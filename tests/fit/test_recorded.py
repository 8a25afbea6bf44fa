"""Recording a step, where a stub stands for the GPU: tests/test_gpu.py has the real one."""

import pytest
import torch

from graft.errors import RunError
from graft.fit import recorded


class _Graph:
    """Begins like PyTorch's, and ends with an error."""

    said = ""

    def capture_begin(self, **options: object) -> None:
        pass

    def capture_end(self) -> None:
        raise RuntimeError(self.said)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> recorded.Recorder:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    one = recorded.Recorder(torch.device("cpu"), is_on=True)
    one._is_on = True
    return one


def test_a_recording_that_finds_no_memory_is_asked_for_as_before(
    recorder: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Graph, "said", "CUDA error: out of memory")
    made: list[float] = []
    for number in range(6):
        recorder.run(lambda x: made.append(float(x)), torch.tensor(float(number)))
    # The fourth was to be recorded, on the same batch: a recording runs nothing, a stub does.
    assert made == [0, 1, 2, 3, 3, 4, 5]


def test_what_goes_wrong_otherwise_ends_the_run(
    recorder: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Graph, "said", "operation not permitted when stream is capturing")
    with pytest.raises(RunError, match="cuda_graphs=false"):
        for number in range(6):
            recorder.run(lambda x: None, torch.tensor(float(number)))
