from collections.abc import Callable
from pathlib import Path

import pytest

from tensord.daemon import control
from tensord.daemon.knob import KnobError, Setting
from tensord.daemon.knob_store import StaleEpoch
from tensord.daemon.knobs import KNOBS
from tensord.daemon.models.repository import scan
from tensord.daemon.supervisor.catalog import Catalog
from tensord.daemon.supervisor.knobs import Knobs

AddModel = Callable[..., Path]
MakeKnobs = Callable[..., Knobs]


@pytest.fixture
def make_knobs(root: Path, add_model: AddModel) -> MakeKnobs:
    """Two models, one of which asks for smaller batches, on two devices."""

    def make(**configured: Setting) -> Knobs:
        add_model("one")
        add_model("two", tail="\n[knobs]\nmax_batch = 8\n")
        settings = {address.replace("__", "."): value for address, value in configured.items()}
        return Knobs(settings, ["cpu:0", "cpu:1"], Catalog(root, scan(root)))

    return make


def put(knobs: Knobs, expected_epoch: int | None = None, **settings: Setting | None) -> control.Applied:
    request = control.Set({name.replace("__", "."): value for name, value in settings.items()}, "why", expected_epoch)
    return knobs.applied(knobs.set(request, "uid 0", 1.0), ["frontend"])


def test_processes_are_told_all_general_values_and_what_differs(make_knobs: MakeKnobs) -> None:
    message = make_knobs(queue_max=100, one__window_us=0).message()
    assert message.epoch == 0
    assert message.general == {name: knob.default for name, knob in KNOBS.items()} | {"queue_max": 100}
    assert message.models == {"one": {"window_us": 0}, "two": {"max_batch": 8}}
    assert message.devices == {"cpu:0": {}, "cpu:1": {}}


def test_general_and_device_values_are_the_effective_ones(make_knobs: MakeKnobs) -> None:
    knobs = make_knobs(spin_us=7)
    assert (knobs.general("spin_us"), knobs.device("cpu:1", "spin_us")) == (7, 7)
    put(knobs, **{"cpu:1.spin_us": 9})
    assert (knobs.device("cpu:0", "spin_us"), knobs.device("cpu:1", "spin_us")) == (7, 9)
    assert knobs.message().devices == {"cpu:0": {}, "cpu:1": {"spin_us": 9}}


def test_a_change_is_answered_with_what_it_did(make_knobs: MakeKnobs) -> None:
    answer = put(make_knobs(), max_batch=16, one__window_us="2ms")
    assert answer.epoch == 1
    assert answer.converging == ["frontend"]
    assert answer.changes == [
        control.Changed("max_batch", 32, 16, False, ["two"]),
        control.Changed("one.window_us", 500, 2000, False, []),
    ]


def test_one_wrong_setting_changes_nothing(make_knobs: MakeKnobs) -> None:
    knobs = make_knobs()
    before = knobs.message()
    for wrong in ({"max_batch": 0}, {"nobody__max_batch": 4}, {"max_bach": 4}, {"one__queue_max": "lots"}):
        with pytest.raises(KnobError):
            put(knobs, queue_max=10, **wrong)
    assert knobs.message() == before


def test_a_change_that_expects_another_epoch_is_refused(make_knobs: MakeKnobs) -> None:
    knobs = make_knobs()
    put(knobs, expected_epoch=0, max_batch=16)
    with pytest.raises(StaleEpoch):
        put(knobs, expected_epoch=0, max_batch=17)
    assert (knobs.epoch, knobs.general("max_batch")) == (1, 16)


def test_none_takes_a_setting_away_again(make_knobs: MakeKnobs) -> None:
    knobs = make_knobs(max_batch=20)
    put(knobs, max_batch=16)
    put(knobs, max_batch=None)
    assert (knobs.epoch, knobs.general("max_batch")) == (2, 20)


def test_an_operator_reads_value_unit_and_source(make_knobs: MakeKnobs) -> None:
    knobs = make_knobs(one__max_batch=4)
    put(knobs, window_us="5ms")
    values = knobs.values(["window_us", "one.max_batch", "two.max_batch", "queue_max"])
    assert values.epoch == 1
    found = {state.address: (state.value, state.source, state.context) for state in values.knobs}
    assert found == {
        "window_us": (5_000, "admin", "live"),
        "one.max_batch": (4, "config", "live"),
        "two.max_batch": (8, "manifest", "live"),
        "queue_max": (4096, "default", "live"),
    }
    assert all(state.help == KNOBS[state.address.rpartition(".")[2]].help for state in values.knobs)
    assert values.knobs[0].text == KNOBS["window_us"].format(5_000)


def test_without_an_address_all_are_read_and_what_differs(make_knobs: MakeKnobs) -> None:
    knobs = make_knobs(one__window_us=0)
    put(knobs, **{"cpu:0.spin_us": 1})
    addresses = [state.address for state in knobs.values([]).knobs]
    assert addresses == [*KNOBS, "one.window_us", "two.max_batch", "cpu:0.spin_us"]


@pytest.mark.parametrize("address", ["nothing", "nobody.max_batch", "one.spin_us", "cpu:7.spin_us", ""])
def test_an_address_that_is_not_there_is_an_error(make_knobs: MakeKnobs, address: str) -> None:
    with pytest.raises(KnobError):
        make_knobs().values(["max_batch", address])


def test_a_manifest_that_asks_for_nonsense_is_an_error(root: Path, add_model: AddModel) -> None:
    add_model("one", tail="\n[knobs]\nmax_batch = 0\n")
    with pytest.raises(KnobError):
        Knobs({}, ["cpu:0"], Catalog(root, scan(root)))
