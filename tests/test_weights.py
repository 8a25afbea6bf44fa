"""Reading weight files: what is refused, what is converted, and that nothing in them runs."""

import hashlib
import io
import json
import os
import pickle
import resource
import socket
import struct
import tarfile
import urllib.request
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from graft import weights
from graft.errors import WeightsError

STATE = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.tensor([1.0, 2.0])}
TERABYTE = 2**40


class _Canary:
    """Unpickled without care, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


# --- what can be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3},
        {"model_state_dict": STATE, "optimizer": {"lr": 0.1}},
        {"model": {f"module.{key}": tensor for key, tensor in STATE.items()}},
        {f"module._orig_mod.{key}": tensor for key, tensor in STATE.items()},
        {"state_dict": {f"model.{key}": tensor for key, tensor in STATE.items()}, "epoch": 3},
        {key: nn.Parameter(tensor) for key, tensor in STATE.items()},
    ],
    ids=[
        "plain",
        "ordered",
        "state_dict",
        "model_state_dict",
        "model and module.",
        "compiled",
        "Lightning",
        "parameters",
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_come_out_of_whatever_a_training_script_saved(
    tmp_path: Path, content: Any, zipped: bool
) -> None:
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = weights.read(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "net.safetensors")
    found = weights.read(tmp_path / "net.safetensors")
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_types_become_float32(tmp_path: Path, kind: torch.dtype) -> None:
    """W6."""
    torch.save({"a": torch.tensor([0.5, -2.0]).to(kind), "n": torch.tensor(7)}, tmp_path / "a.pth")
    found = weights.as_float32(weights.read(tmp_path / "a.pth"), tmp_path / "a.pth")
    assert found["a"].dtype == torch.float32 and found["a"].tolist() == [0.5, -2.0]
    assert found["n"].dtype == torch.int64


# --- W1: damaged files ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 60, 150, -1])
def test_a_truncated_file_is_refused_with_both_sizes(
    tmp_path: Path, suffix: str, kept: int
) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(STATE, whole) if suffix == ".safetensors" else torch.save(STATE, whole)
    path.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(WeightsError) as error:
        weights.read(path, expected="about 1 MiB")
    text = str(error.value)
    assert str(path) in text and f"{path.stat().st_size:,} bytes" in text and "1 MiB" in text


@pytest.mark.parametrize("name", ["page.pth", "page.pt", "page.safetensors"])
def test_a_text_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404 Not Found</html>\n" * 20)
    with pytest.raises(WeightsError, match="540 bytes"):
        weights.read(tmp_path / name)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    for name, words in {"no.pth": "exist", "folder.pth": "not a file", "pipe.pth": "not a"}.items():
        with pytest.raises(WeightsError, match=words):
            weights.read(tmp_path / name)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"epoch": 3}, {}, torch.ones(2), {"a": {"b": torch.ones(1)}}]
)
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        weights.read(tmp_path / "a.pth")


# --- W2: changed files ------------------------------------------------------------------------


def _save_under_own_digest(folder: Path) -> Path:
    torch.save(STATE, folder / "net.pth")
    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
    return (folder / "net.pth").rename(folder / f"net-{digest[:8]}.pth")


def test_a_file_is_verified_by_the_digest_in_its_name(tmp_path: Path) -> None:
    assert weights.verify(_save_under_own_digest(tmp_path))


def test_one_flipped_byte_is_noticed_where_the_digest_is_known(tmp_path: Path) -> None:
    path = _save_under_own_digest(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 11.0))] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="its name promises"):
        weights.verify(path)


@pytest.mark.parametrize("name", ["net.pth", "net-20240131.pth", "net-abc.pth"])
def test_a_name_that_promises_nothing_is_not_verified(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name)
    assert not weights.verify(tmp_path / name)


def test_the_digest_of_a_file_changes_with_any_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weighty")
    digests = {weights.digest(tmp_path / name) for name in "ab"}
    assert len(digests) == 2 and all(len(digest) == 16 for digest in digests)


# --- W3: files that are programs --------------------------------------------------------------


def _plain_pickle(canary: _Canary) -> bytes:
    return pickle.dumps({"a": canary})


def _zipped(canary: _Canary) -> bytes:
    return _saved({"a": canary})


def _nested(canary: _Canary) -> bytes:
    return _saved({"state_dict": OrderedDict(a=torch.ones(2), b=[(canary,)])})


def _legacy(canary: _Canary) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": canary}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _tar(canary: _Canary) -> bytes:
    stream, content = io.BytesIO(), pickle.dumps(canary)
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _seven_zip(canary: _Canary) -> bytes:
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + pickle.dumps(canary)


def _compressed(canary: _Canary) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps(canary, 2))
        archive.writestr("x/version", "3")
    return stream.getvalue()


def _torchscript(canary: _Canary) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/constants.pkl", pickle.dumps(canary, 2))
        archive.writestr("x/data.pkl", pickle.dumps(canary, 2))
        archive.writestr("x/version", "3")
    return stream.getvalue()


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("forced", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize(
    "make",
    [_plain_pickle, _zipped, _nested, _legacy, _tar, _seven_zip, _compressed, _torchscript],
)
def test_nothing_in_a_file_is_executed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[_Canary], bytes],
    forced: bool,
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    for suffix in (".pth", ".pt", ".safetensors"):
        path = tmp_path / f"evil{suffix}"
        path.write_bytes(make(_Canary(canary)))
        with pytest.raises(WeightsError, match="evil"):
            weights.read(path)
    assert not canary.exists()


def test_the_canary_sings_where_a_file_is_unpickled_without_care(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    pickle.loads(_plain_pickle(_Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_a_refusal_names_what_the_file_would_run(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(_zipped(_Canary(tmp_path / "canary")))
    with pytest.raises(WeightsError, match=r"would run \w+\.mkdir"):
        weights.read(tmp_path / "evil.pth")


# --- W7: sizes that are not there -------------------------------------------------------------


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """An address space too small for any of the sizes claimed below."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _pickle_of_a_tensor(storage: int, size: int, stride: int) -> bytes:
    """What torch.save writes for {"a": tensor}, with any numbers in it."""

    def number(value: int) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    return (
        b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(storage)
        + b"tQ" + number(0) + number(size) + b"\x85" + number(stride) + b"\x85"
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize(
    ("storage", "size", "stride"),
    [(TERABYTE // 4, TERABYTE // 4, 1), (4, TERABYTE // 4, 1), (4, TERABYTE // 4, 0)],
    ids=["storage", "beyond its storage", "repeated"],
)
def test_a_tensor_that_claims_a_terabyte_is_refused(
    tmp_path: Path, storage: int, size: int, stride: int
) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("x/data.pkl", _pickle_of_a_tensor(storage, size, stride))
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/version", "3\n")
    with pytest.raises(WeightsError, match=r"a\.pth"):
        weights.read(tmp_path / "a.pth")


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("header", [2**40, 2**62])
def test_a_huge_header_of_safetensors_is_refused(tmp_path: Path, header: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", header) + b"{}")
    with pytest.raises(WeightsError, match="10 bytes"):
        weights.read(tmp_path / "a.safetensors")


@pytest.mark.usefixtures("_little_memory")
def test_safetensors_that_claim_a_terabyte_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [TERABYTE // 4], "data_offsets": [0, TERABYTE]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        weights.read(tmp_path / "a.safetensors")


@pytest.mark.usefixtures("_little_memory")
def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", _pickle_of_a_tensor(2**24, 2**24, 1))
        archive.writestr("x/data/0", bytes(2**26))
    assert (tmp_path / "a.pth").stat().st_size < 2**17
    with pytest.raises(WeightsError, match=r"torch\.save did not write"):
        weights.read(tmp_path / "a.pth")


# --- W5, W6: against a network ----------------------------------------------------------------


def test_a_difference_shows_the_first_five_of_each_kind_and_the_counts() -> None:
    network = {f"layer.{i}": torch.ones(2) for i in range(8)} | {"fc": torch.ones(2, 3)}
    found = weights.match(network, {"fc": torch.ones(5, 3), "other": torch.ones(1)})
    text = str(found)
    assert text.startswith("8 missing, 1 unexpected, 1 of another shape")
    assert "- layer.4" in text and "- layer.5" not in text and "- ... and 3 more" in text
    assert "+ other" in text and "~ fc: 5x3 in the file, 2x3 in the network" in text


def test_a_missing_count_of_batches_is_no_difference() -> None:
    network = nn.BatchNorm2d(3).state_dict()
    old = {key: t for key, t in network.items() if "num_batches" not in key}
    assert weights.match(network, old).missing == ()


def test_integers_in_place_of_numbers_are_a_difference() -> None:
    found = weights.match({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.int8)})
    assert found.misshapen == ("a: 2 int8 in the file, 2 in the network",)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(WeightsError, match=r"x\.pth: b holds NaN or infinite"):
        weights.as_float32({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, Path("x.pth"))


# --- W8: downloads ----------------------------------------------------------------------------

URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


@pytest.fixture
def _fresh_proxies() -> Iterator[None]:
    """urllib reads the proxies once; this makes it read them again."""
    urllib.request.install_opener(None)  # type: ignore[arg-type]
    yield
    urllib.request.install_opener(None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_fresh_proxies")
def test_without_a_network_the_message_says_from_where_and_where_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    path = tmp_path / "hub" / "resnet18-f37072fd.pth"
    with pytest.raises(WeightsError) as error:
        weights.fetch(URL, path, expected="45 MiB")
    text = str(error.value)
    assert all(part in text for part in (URL, path.name, str(path.parent), "model.weights=/path"))
    assert list(path.parent.iterdir()) == []


@pytest.mark.usefixtures("_fresh_proxies")
def test_a_silent_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WeightsError, match="timed out"):
            weights.fetch(URL, tmp_path / "resnet18-f37072fd.pth", expected="45 MiB")
    assert socket.getdefaulttimeout() is None


def test_a_download_is_put_in_place_only_if_its_digest_is_right(tmp_path: Path) -> None:
    source = _save_under_own_digest(tmp_path)
    weights.fetch(source.as_uri(), tmp_path / "hub" / source.name, expected="1 KiB")
    assert (tmp_path / "hub" / source.name).read_bytes() == source.read_bytes()
    with pytest.raises(WeightsError, match="invalid hash"):
        weights.fetch(source.as_uri(), tmp_path / "hub" / "net-01234567.pth", expected="1 KiB")
    assert [p.name for p in (tmp_path / "hub").iterdir()] == [source.name]
