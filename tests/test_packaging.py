"""What is published: it holds everything, and works in an empty folder without the checkout."""

import configparser
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def _run(*command: str | Path, cwd: Path) -> str:
    """What a command prints. It sees no variables that could lead it to the checkout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _files(folder: Path) -> set[str]:
    """Files below a folder, relative to it."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix() for path in paths if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which only the wheel was installed.

    Its dependencies are those of the environment that runs the tests: a path file adds the
    folders of packages, but not the path files in them, which lead to the checkout.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    # Before the path file: pip would otherwise find the package of the checkout there.
    _run(*pip, next(built.glob("*.whl")), cwd=home)
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    site = next(home.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(packages))
    return python.parent


# --- what is inside --------------------------------------------------------------------------


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    expected = {f"graft/{name}" for name in _files(ROOT / "src" / "graft")}
    assert "graft/py.typed" in expected
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_holds_the_configuration(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.startswith("graft/conf/")}
    assert inside == {f"graft/conf/{name}" for name in _files(ROOT / "conf")}


def test_the_wheel_holds_the_plugins_and_leaves_their_namespace_open(
    wheel: zipfile.ZipFile,
) -> None:
    inside = {name for name in wheel.namelist() if name.startswith("hydra_plugins/")}
    assert inside == {f"hydra_plugins/{name}" for name in _files(ROOT / "sweeper/hydra_plugins")}
    # With this file, the plugins of every other package would be hidden.
    assert "hydra_plugins/__init__.py" not in inside


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"graft", "hydra_plugins"}


def test_every_command_leads_to_a_module_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entries.read_string(wheel.read(name).decode())
    commands = dict(entries["console_scripts"])
    assert {"graft", "graft-report", "graft-predict"} <= set(commands)
    modules = [target.split(":")[0].replace(".", "/") for target in commands.values()]
    assert [m for m in modules if f"{m}.py" not in wheel.namelist()] == []


def test_the_wheel_holds_the_license(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_the_sdist_holds_the_sources_and_nothing_that_was_made(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "conf/config.yaml"} <= inside
    assert "sweeper/hydra_plugins/gpu_launcher/launcher.py" in inside
    made = (".venv/", ".git/", "outputs/", "dist/", "mlruns/")
    assert [n for n in inside if n.startswith(made) and n != "outputs/.gitkeep"] == []


# --- what it does in an empty folder ---------------------------------------------------------


def test_the_package_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import graft, hydra_plugins.gpu_launcher as p; print(graft.__file__, *p.__path__)"
    found = _run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert [Path(path).is_relative_to(installed.parent) for path in found] == [True, True]


def test_help_names_the_options_and_leaves_the_folder_empty(
    installed: Path, tmp_path: Path
) -> None:
    said = _run(installed / "graft", "--help", cwd=tmp_path)
    assert "head_only" in said
    assert list(tmp_path.iterdir()) == []


def test_it_composes_what_the_checkout_composes(installed: Path, tmp_path: Path) -> None:
    printed = _run(installed / "graft", "--cfg", "job", cwd=tmp_path)
    here = _run(Path(sys.executable).parent / "graft", "--cfg", "job", cwd=tmp_path)
    assert yaml.safe_load(printed)["strategy"]
    assert printed == here


def test_the_launcher_is_found(installed: Path, tmp_path: Path) -> None:
    code = "from hydra.core.plugins import Plugins; print(Plugins.instance().discover())"
    assert "SlotsInlineLauncher" in _run(installed / "python", "-c", code, cwd=tmp_path)
    chosen = _run(installed / "graft", "--cfg", "hydra", "-p", "hydra.launcher", cwd=tmp_path)
    assert "hydra_plugins.gpu_launcher.launcher.SlotsLauncher" in chosen
