"""The driver's own answer, from a driver that is made up here: where there is a real one, see
test_gpu.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graft import _cuda

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")

DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return number >= COUNT; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? device - 33 : which == 76 ? 5 * (41 - device) : -1;
    return ANSWER;
}
"""
SOUND = {"INIT": 0, "VERSION": 13010, "COUNT": 2, "ANSWER": 0}


def asked(tmp_path: Path, lines: str = "print(_cuda.devices())", **differs: int) -> str:
    """What a process without PyTorch finds with such a driver."""
    library, source = tmp_path / "libcuda.so.1", tmp_path / "driver.c"
    source.write_text(DRIVER)
    options = [f"-D{name}={value}" for name, value in (SOUND | differs).items()]
    subprocess.run(["gcc", "-shared", "-fPIC", *options, source, "-o", library], check=True)
    program = f"""
import sys
from graft import _cuda, machine
_cuda.LIBRARY = {str(library)!r}
_cuda._cuda_of_torch = lambda: 13
machine._may_have_gpu = lambda: True
{lines}
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_compiler
def test_a_driver_is_asked_without_pytorch(tmp_path: Path) -> None:
    assert asked(tmp_path) == "((7, 5), (8, 0))"
    lines = 'print(*map(machine.device, ("auto", "cuda", "cuda:1")))'
    assert asked(tmp_path, lines) == "cuda cuda cuda:1"
    lines = 'print(*map(machine.has_tf32, ("cpu", "cuda", "cuda:0", "cuda:1")))'
    assert asked(tmp_path, lines) == "False False False True"


@needs_compiler
def test_names_that_pytorch_refuses_are_refused(tmp_path: Path) -> None:
    names = ("cuda:2", "cuda:01", "cuda:", "cuda:-1", "cuda:\u0661")
    lines = f"""
from graft.errors import ConfigError
for name in {names}:
    try:
        print(machine.device(name))
    except ConfigError as error:
        print(error)
sys.modules.pop("torch")
"""
    said = asked(tmp_path, lines).splitlines()
    for name, line in zip(names, said, strict=True):
        assert line.startswith(f"device={name}")


@needs_compiler
def test_a_driver_without_gpus_leaves_the_cpu(tmp_path: Path) -> None:
    for differs in ({"COUNT": 0}, {"INIT": 100}):
        assert asked(tmp_path, **differs) == "()"
        assert asked(tmp_path, 'print(machine.device("auto"))', **differs) == "cpu"


@needs_compiler
@pytest.mark.parametrize("differs", [{"VERSION": 12080}, {"INIT": 999}, {"ANSWER": 1}], ids=str)
def test_where_it_is_not_certain_pytorch_is_asked(tmp_path: Path, differs: dict[str, int]) -> None:
    assert asked(tmp_path, **differs) == "None"


def test_no_driver_or_another_library_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import sys
from graft import _cuda
_cuda.LIBRARY = sys.argv[1]
_cuda._cuda_of_torch = lambda: 13
print(_cuda.devices())
"""
    for library in (str(tmp_path / "none.so"), "libm.so.6"):
        done = subprocess.run(
            [sys.executable, "-c", program, library], capture_output=True, text=True, check=True
        )
        assert done.stdout == "None\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cuda: Optional[str] = '13.0'", 13),
        ('cuda = "12.8"', 12),
        ("cuda: Optional[str] = None", None),
        ("hip: Optional[str] = '6.4.1'", None),
        ("__version__ = '2.14.1+cpu'", None),
    ],
)
def test_what_pytorch_is_built_for_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: int | None
) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "version.py").write_text(f"debug = False\n{line}\ngit_version = 'abc'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert _cuda._cuda_of_torch() == expected


def test_this_pytorch_is_read_as_it_says_itself() -> None:
    import torch

    version = torch.version.cuda
    assert _cuda._cuda_of_torch() == (int(version.split(".")[0]) if version else None)
