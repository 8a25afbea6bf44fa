"""What the documents say is so: links lead somewhere, commands compose, the image can be built."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.singleton import Singleton

from graft import record
from graft.app import typed

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _fresh_hydra() -> Iterator[None]:
    """Hydra keeps global state; without this, one test's would change the next test."""
    state = Singleton.get_state()
    yield
    GlobalHydra.instance().clear()
    Singleton.set_state(state)


# --- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in inside if not (page.parent / link).exists()] == []


# --- commands -------------------------------------------------------------------------------


def _commands() -> list[str]:
    """What follows `graft` in code blocks and YAML comments, continued lines joined.

    `train` is graft in docker/compose.yaml.
    """
    found: list[str] = []
    for source in [*PAGES, *ROOT.glob("conf/**/*.yaml")]:
        text = re.sub(r"\\\n\s*", "", source.read_text(encoding="utf-8"))
        code = _code(source, text)
        found += re.findall(r"(?:^|[ /])(?:graft|train) ((?:-|[\w.]+=).*)$", code, re.MULTILINE)
    return sorted(set(found))


def _code(source: Path, text: str) -> str:
    if source.suffix != ".md":
        return text
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def _jobs(overrides: list[str]) -> Iterator[list[str]]:
    """Every combination of what is swept, as a launcher would be given it."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    axes = [
        [f"{one.get_key_element()}={value}" for value in _values(one)]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in parsed
    ]
    return (list(job) for job in product(*axes))


def _values(sweep: Override) -> list[str]:
    """Of an interval, its ends."""
    interval = sweep.value()
    if isinstance(interval, IntervalSweep):
        return [str(interval.start), str(interval.end)]
    return [str(value) for value in sweep.sweep_string_iterator()]


@pytest.mark.parametrize("command", _commands())
def test_every_graft_command_composes_to_a_typed_configuration(command: str) -> None:
    overrides = [word for word in shlex.split(command, comments=True) if "=" in word]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in _jobs(overrides):
            typed(compose("config", overrides=job))


@pytest.mark.parametrize("program", ["graft", "graft-report", "graft-predict"])
def test_the_readme_shows_every_command(program: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^{program} ", text, re.MULTILINE)


def test_the_readme_credits_the_drawings() -> None:
    for page in ("README.md", "NOTICE"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "OpenMoji" in text and "CC BY-SA 4.0" in text


def test_make_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [*PAGES, ROOT / ".ci/run"]:
        code = _code(page, page.read_text(encoding="utf-8"))
        assert set(re.findall(r"^(?:#?\s*)make ([a-z-]+)", code, re.MULTILINE)) <= targets, page


def test_the_page_of_architecture_names_every_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = " | ".join(contracts["contracts"][0]["layers"]).split(" | ")
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")]
    rows = [set(re.findall(r"`(\w+)`", cell)) for cell in named]
    assert {layer.removeprefix("graft.") for layer in layers} <= set().union(*rows)


def test_the_page_of_the_record_names_every_file_and_status() -> None:
    page = (ROOT / "docs/record.md").read_text(encoding="utf-8")
    files = [record.RUN, record.CONFIG, record.EPOCHS, record.PREDICTIONS, record.EXAMPLES]
    files += [record.CHECKPOINT, record.ENVIRONMENT, record.LOG]
    files += [record.SWEEP, record.RESULTS, record.REPORT]
    tree = page.split("```")[0]
    assert [name for name in files if f"─ {name}" not in tree] == []
    assert [status for status in record.STATUSES if f"| `{status}` |" not in page] == []


# --- containers -----------------------------------------------------------------------------


def test_the_dockerfile_copies_only_what_is_there_and_not_ignored() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    sources = [
        path for line in re.findall(r"^COPY (.*)$", dockerfile, re.M) for path in line.split()[:-1]
    ]
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sources and sorted(sources) == sorted(kept)
    assert [path for path in sources if not (ROOT / path).exists()] == []


def test_the_image_installs_what_pyproject_asks_for() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    for requirement in re.findall(r'"(torch(?:vision)?>=[\d.]+)"', pyproject):
        assert requirement in dockerfile


def test_the_compose_file_serves_this_machine_only_and_names_its_host() -> None:
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    assert set(services) == {"db", "mlflow", "train"}
    published = {name: service.get("ports", []) for name, service in services.items()}
    assert published == {"db": [], "mlflow": ["127.0.0.1:5000:5000"], "train": []}
    (hosts,) = [
        word for word in services["mlflow"]["command"] if word.startswith("--allowed-hosts")
    ]
    assert "mlflow:5000" in hosts
    assert services["train"]["environment"] == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    for name in ("db", "mlflow"):
        assert "healthcheck" in services[name]
