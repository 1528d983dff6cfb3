"""docs/scheduling.md agrees with the code: names, knobs, errors, figures, and the scenario that it explains."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tensord.daemon.knob import Scope
from tensord.daemon.knobs import in_scope
from tensord.daemon.scheduling import ReleaseReason
from tensord.daemon.scheduling.balance import BALANCE_POLICIES
from tensord.daemon.scheduling.batching import BATCHINGS
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.daemon.simulation.scenario_file import SIMULATED, load_scenario
from tensord.ipc.errors import ERRORS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scheduling.md").read_text()
FIGURES = re.findall(r"\]\((figures/[\w/.-]+)\)", PAGE)
SCENARIOS = sorted((ROOT / "configs" / "simulations").glob("*.toml"))
SCHEDULING = "".join(path.read_text() for path in (ROOT / "daemon" / "scheduling").rglob("*.py"))
ENDINGS = [code for code, error in ERRORS.items() if re.search(rf"\b{error.__name__}\(", SCHEDULING)]
"""The errors that the scheduler makes."""


@pytest.mark.parametrize("name", [*ORDER_POLICIES, *BALANCE_POLICIES, *BATCHINGS, *ReleaseReason])
def test_the_page_has_every_policy(name: str) -> None:
    assert f"| `{name}` |" in PAGE


@pytest.mark.parametrize("knob", [*in_scope(Scope.MODEL), *SIMULATED, "pipeline_depth", "ageing_ms"])
def test_the_page_has_every_knob_of_the_scheduler(knob: str) -> None:
    assert re.search(rf"`(?:\w+\.)?{knob}\b", PAGE)


@pytest.mark.parametrize("code", ENDINGS)
def test_the_page_says_what_to_do_about_every_error_of_the_scheduler(code: int) -> None:
    assert f"| {code} | `{ERRORS[code].__name__}` |" in PAGE


def test_the_scheduler_makes_errors() -> None:
    assert {error.__name__ for code, error in ERRORS.items() if code in ENDINGS} >= {"QueueFull", "Superseded"}


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_is_drawn_from_a_scenario(figure: str) -> None:
    root = ET.fromstring((ROOT / "docs" / figure).read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert figure.split("/")[1] in {path.stem for path in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_is_explained_and_has_a_figure(scenario: Path) -> None:
    assert f"`configs/simulations/{scenario.name}`" in PAGE
    assert any(figure.startswith(f"figures/{scenario.stem}/") for figure in FIGURES)


def test_the_scenario_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    scenario = load_scenario(path)
    assert (len(scenario.devices), len(scenario.settings), scenario.workload_names) == (4, 1, ["users"])
