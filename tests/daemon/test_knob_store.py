import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.knob_store import (
    HISTORY_MAX,
    Acknowledgements,
    KnobStore,
    Source,
    StaleEpoch,
    Transaction,
    Value,
)
from tensord.daemon.knobs import KNOBS, KnobError, Scope, Setting

DEVICES = ("cpu:0", "cpu:1")


def store(**configured: Setting) -> KnobStore:
    """Models `digits` and `resnet.v2`, two devices, one class; keyword `digits__max_batch` is `digits.max_batch`."""
    knobs = KnobStore({key.replace("__", "."): value for key, value in configured.items()}, DEVICES, ("batch",))
    knobs.add_model("digits", {})
    knobs.add_model("resnet.v2", {})
    return knobs


def put(knobs: KnobStore, settings: dict[str, Setting | None], expected_epoch: int | None = None) -> Transaction:
    return knobs.apply(knobs.propose(settings), "uid 0", "a test", 12.5, expected_epoch)


def refusal(knobs: KnobStore, settings: dict[str, Setting | None]) -> str:
    with pytest.raises(KnobError) as caught:
        knobs.propose(settings)
    return str(caught.value)


# ── which value holds ───────────────────────────────────────────────────────────────────────────


def test_each_layer_yields_to_the_one_above() -> None:
    knobs = store(max_batch=2, digits__max_batch=5)
    knobs.add_model("resnet.v2", {"max_batch": 4})
    put(knobs, {"max_batch": 3})
    assert knobs.effective("max_batch", "digits") == Value(5, Source.CONFIG)
    assert knobs.effective("max_batch", "resnet.v2") == Value(4, Source.MANIFEST)
    put(knobs, {"digits.max_batch": 6})
    assert knobs.effective("max_batch", "digits") == Value(6, Source.ADMIN)
    assert knobs.effective("max_batch") == Value(3, Source.ADMIN)


def test_precedence_is_the_one_in_the_docstring() -> None:
    knobs = KnobStore({"max_batch": 2, "digits.max_batch": 5}, DEVICES)
    knobs.add_model("digits", {"max_batch": 4})
    put(knobs, {"max_batch": 3, "digits.max_batch": 6})
    seen = [knobs.effective("max_batch", "digits")]
    put(knobs, {"digits.max_batch": None})
    seen.append(knobs.effective("max_batch", "digits"))
    knobs = KnobStore({"max_batch": 2}, DEVICES)
    knobs.add_model("digits", {"max_batch": 4})
    put(knobs, {"max_batch": 3})
    seen.append(knobs.effective("max_batch", "digits"))
    knobs.add_model("digits", {})
    seen.append(knobs.effective("max_batch", "digits"))
    put(knobs, {"max_batch": None})
    seen.append(knobs.effective("max_batch", "digits"))
    seen.append(store().effective("max_batch", "digits"))
    assert seen == [
        Value(6, Source.ADMIN),
        Value(5, Source.CONFIG),
        Value(4, Source.MANIFEST),
        Value(3, Source.ADMIN),
        Value(2, Source.CONFIG),
        Value(32, Source.DEFAULT),
    ]


def test_values_of_a_scope_are_complete_and_typed() -> None:
    knobs = store(pipeline_depth=4, resnet__v2__max_batch=8)
    put(knobs, {"resnet.v2.window_us": "2ms", "cpu:1.spin_us": 0})
    assert knobs.model_values("digits") == {n: k.default for n, k in KNOBS.items() if k.scope is Scope.MODEL}
    assert knobs.model_values("resnet.v2") == knobs.model_values("digits") | {"max_batch": 8, "window_us": 2_000}
    assert knobs.global_values()["pipeline_depth"] == 4
    assert [knobs.device_values(device)["spin_us"] for device in DEVICES] == [300, 0]
    scopes = [
        knobs.model_values("digits"),
        knobs.global_values(),
        knobs.device_values("cpu:0"),
        knobs.tenant_values("batch"),
    ]
    assert sorted(name for scope in scopes for name in scope) == sorted(KNOBS)


def test_a_class_of_tenants_is_a_target() -> None:
    knobs = store()
    put(knobs, {"tenant_weight": 2, "batch.tenant_weight": "0.5"})
    assert (knobs.effective("tenant_weight").value, knobs.tenant_values("batch")["tenant_weight"]) == (2.0, 0.5)
    assert refusal(knobs, {"digits.tenant_weight": 1}).endswith("no tenant 'digits' here; known: batch")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"digits.window_us": "3ms", "digits.timeout_ms": 2},
            "digits.window_us = '3ms': longer than timeout_ms (2 ms)",
        ),
        ({"window_us": "10s", "timeout_ms": "5s"}, "window_us = '10s': longer than timeout_ms (5000 ms)"),
        ({"digits.latency_target_ms": "31s"}, "digits.latency_target_ms = '31s': longer than timeout_ms (30000 ms)"),
        ({"digits.preferred_batches": "8,64"}, "digits.preferred_batches = '8,64': 64 is more than max_batch (32)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_and_change_nothing(
    settings: dict[str, Setting | None], sentence: str
) -> None:
    knobs = store()
    before = knobs.model_values("digits")
    assert refusal(knobs, settings).startswith(sentence)
    assert (knobs.model_values("digits"), knobs.epoch) == (before, 0)


def test_a_general_change_may_not_contradict_what_a_model_has_of_its_own() -> None:
    knobs = store(digits__preferred_batches="8,32")
    assert refusal(knobs, {"max_batch": 16}).startswith("digits.preferred_batches = '8,32': 32 is more than max_batch")


def test_a_manifest_that_contradicts_the_file_is_refused_and_the_old_one_holds() -> None:
    knobs = store(max_batch=16)
    knobs.add_model("digits", {"preferred_batches": "8,16"})
    with pytest.raises(KnobError, match="32 is more than max_batch"):
        knobs.add_model("digits", {"preferred_batches": "8,32"})
    assert knobs.model_values("digits")["preferred_batches"] == "8,16"


def test_manifest_values_are_parsed_and_refused_whole() -> None:
    knobs = store()
    knobs.add_model("digits", {"window_us": "2ms"})
    assert knobs.effective("window_us", "digits") == Value(2_000, Source.MANIFEST)
    with pytest.raises(KnobError, match=r"^digits\.max_batch = 0: give a whole number, 1 to 65536 rows$"):
        knobs.add_model("digits", {"window_us": 7, "max_batch": 0})
    with pytest.raises(KnobError, match=r"^digits\.spin_us = 5: this is a device knob, not a model knob"):
        knobs.add_model("digits", {"spin_us": 5})
    assert knobs.effective("window_us", "digits") == Value(2_000, Source.MANIFEST)


def test_model_that_comes_back_keeps_what_was_said_at_run_time() -> None:
    knobs = store()
    put(knobs, {"digits.max_batch": 8})
    knobs.remove_model("digits")
    assert refusal(knobs, {"digits.max_batch": 9}) == "digits.max_batch = 9: no model 'digits' here; known: resnet.v2"
    knobs.add_model("digits", {})
    assert knobs.effective("max_batch", "digits") == Value(8, Source.ADMIN)


# ── transactions ────────────────────────────────────────────────────────────────────────────────


def test_transaction_gets_the_next_epoch_and_a_line_of_history() -> None:
    knobs = store()
    first = put(knobs, {"digits.max_batch": "64", "window_us": 200})
    assert (first.epoch, first.who, first.why, first.at_s) == (1, "uid 0", "a test", 12.5)
    assert [(c.address, c.old, c.new) for c in first.changes] == [("digits.max_batch", 32, 64), ("window_us", 500, 200)]
    second = put(knobs, {"digits.max_batch": 65})
    assert [(c.old, c.new) for c in second.changes] == [(64, 65)]
    assert (knobs.epoch, knobs.history) == (2, (first, second))


def test_proposing_changes_nothing() -> None:
    knobs = store()
    assert [change.new for change in knobs.propose({"max_batch": 64})] == [64]
    assert (knobs.effective("max_batch"), knobs.epoch, knobs.history) == (Value(32, Source.DEFAULT), 0, ())


def test_one_bad_setting_refuses_all() -> None:
    knobs = store()
    assert refusal(knobs, {"max_batch": 64, "window_us": -1}).startswith("window_us = -1: give a duration")
    assert (knobs.effective("max_batch").value, knobs.epoch) == (32, 0)


def test_change_whose_model_left_meanwhile_is_refused_whole() -> None:
    knobs = store()
    changes = knobs.propose({"window_us": 1, "digits.max_batch": 64})
    knobs.remove_model("digits")
    with pytest.raises(KnobError, match="no model 'digits' here"):
        knobs.apply(changes, "uid 0", "", 0.0)
    assert (knobs.effective("window_us").value, knobs.epoch, knobs.history) == (500, 0, ())


def test_old_values_are_those_at_the_time_of_applying() -> None:
    knobs = store()
    changes = knobs.propose({"max_batch": 64})
    put(knobs, {"max_batch": 48})
    assert [(c.old, c.new) for c in knobs.apply(changes, "uid 0", "", 0.0).changes] == [(48, 64)]


def test_expected_epoch_that_is_no_longer_current_is_refused() -> None:
    knobs = store()
    put(knobs, {"max_batch": 64}, expected_epoch=0)
    with pytest.raises(StaleEpoch, match=r"^epoch 0 was expected, and 1 is current: look again, then repeat"):
        put(knobs, {"max_batch": 65}, expected_epoch=0)
    assert knobs.effective("max_batch").value == 64


def test_general_change_names_the_targets_that_keep_their_own() -> None:
    knobs = store(digits__max_batch=8)
    assert knobs.propose({"max_batch": 64})[0].keeps_own == ("digits",)
    assert knobs.propose({"max_batch": 64, "resnet.v2.max_batch": 2})[0].keeps_own == ("digits", "resnet.v2")
    assert knobs.propose({"window_us": 64})[0].keeps_own == ()
    assert knobs.propose({"cpu:0.spin_us": 1, "spin_us": 2})[1].keeps_own == ("cpu:0",)
    assert knobs.propose({"digits.max_batch": 64})[0].keeps_own == ()


def test_none_takes_back_what_run_time_said() -> None:
    knobs = store(digits__max_batch=8)
    put(knobs, {"digits.max_batch": 64})
    change = knobs.propose({"digits.max_batch": None})[0]
    assert (change.old, change.new, change.override_before, change.override) == (64, 8, 64, None)
    put(knobs, {"digits.max_batch": None})
    assert knobs.effective("max_batch", "digits") == Value(8, Source.CONFIG)


def test_new_value_takes_the_whole_transaction_into_account() -> None:
    knobs = store()
    put(knobs, {"digits.max_batch": 5})
    changes = knobs.propose({"digits.max_batch": None, "max_batch": 64})
    assert [(change.old, change.new) for change in changes] == [(5, 64), (32, 64)]


def test_history_is_bounded_and_forgets_the_oldest() -> None:
    knobs = store()
    for value in range(1, HISTORY_MAX + 2):
        put(knobs, {"max_batch": value})
    assert [len(knobs.history), knobs.history[0].epoch, knobs.epoch] == [HISTORY_MAX, 2, HISTORY_MAX + 1]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("max_bach", "max_bach = 1: no such knob; did you mean max_batch?"),
        ("digits.max_bach", "digits.max_bach = 1: no such knob; did you mean max_batch?"),
        ("digit.max_batch", "digit.max_batch = 1: no model 'digit' here; known: digits, resnet.v2"),
        ("v2.max_batch", "v2.max_batch = 1: no model 'v2' here; known: digits, resnet.v2"),
        (".max_batch", ".max_batch = 1: no model '' here; known: digits, resnet.v2"),
        ("digits.spin_us", "digits.spin_us = 1: no device 'digits' here; known: cpu:0, cpu:1"),
        ("cpu:2.spin_us", "cpu:2.spin_us = 1: no device 'cpu:2' here; known: cpu:0, cpu:1"),
        ("cpu:0.max_batch", "cpu:0.max_batch = 1: no model 'cpu:0' here; known: digits, resnet.v2"),
        (
            "digits.pipeline_depth",
            "digits.pipeline_depth = 1: pipeline_depth is a global knob: set it without a target, as pipeline_depth",
        ),
        (
            "digits.order",
            "digits.order = 1: give one of fcfs, sjf, hrrn, mlfq, edf",
        ),
    ],
)
def test_refusal_names_the_address_the_value_and_the_remedy(address: str, sentence: str) -> None:
    assert refusal(store(), {address: 1}) == sentence


def test_empty_transaction_is_refused() -> None:
    assert refusal(store(), {}) == "knobs: name at least one to set, such as max_batch or digits.max_batch"


def test_effective_refuses_what_propose_refuses() -> None:
    with pytest.raises(KnobError, match=r"^max_bach: no such knob; did you mean max_batch\?$"):
        store().effective("max_bach")
    with pytest.raises(KnobError, match=r"^digits\.log_level: log_level is a global knob"):
        store().effective("log_level", "digits")
    with pytest.raises(KnobError, match=r"^cpu:9\.max_batch: no model 'cpu:9' here"):
        store().model_values("cpu:9")


# ── undo ────────────────────────────────────────────────────────────────────────────────────────


def test_undo_restores_values_and_their_sources() -> None:
    knobs = store(digits__max_batch=8)
    put(knobs, {"window_us": 1})
    before = [knobs.effective("max_batch", "digits"), knobs.effective("window_us"), knobs.effective("spin_us", "cpu:0")]
    put(knobs, {"digits.max_batch": 64, "window_us": 2, "spin_us": 3})
    undo = knobs.apply(knobs.propose_undo(2), "uid 0", "undo 2", 1.0)
    after = [knobs.effective("max_batch", "digits"), knobs.effective("window_us"), knobs.effective("spin_us", "cpu:0")]
    assert (after, undo.epoch) == (before, 3)


def test_undo_of_what_was_set_again_or_forgotten_is_refused() -> None:
    knobs = store()
    put(knobs, {"max_batch": 64, "window_us": 1})
    put(knobs, {"window_us": 2})
    with pytest.raises(KnobError, match=r"^window_us: it was set again after epoch 1: undo that change first$"):
        knobs.propose_undo(1)
    with pytest.raises(KnobError, match=r"^epoch = 7: the history does not hold it"):
        knobs.propose_undo(7)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["max_batch", "digits.max_batch", "resnet.v2.max_batch"]),
            st.none() | st.integers(1, 100),
            min_size=1,
        ),
        max_size=8,
    )
)
def test_undoing_all_from_the_last_to_the_first_restores_everything(batches: list[dict[str, Setting | None]]) -> None:
    knobs = store(max_batch=7)
    addresses = [("max_batch", None), ("max_batch", "digits"), ("max_batch", "resnet.v2")]
    before = [knobs.effective(*address) for address in addresses]
    for settings in batches:
        promised = {change.address: change.new for change in put(knobs, settings).changes}
        assert promised == {a: knobs.effective("max_batch", a.rpartition(".")[0] or None).value for a in settings}
    for epoch in range(len(batches), 0, -1):
        knobs.apply(knobs.propose_undo(epoch), "uid 0", "undo", 0.0)
    assert [knobs.effective(*address) for address in addresses] == before


# ── restarts and convergence ────────────────────────────────────────────────────────────────────


def test_restart_knob_is_pending_until_its_process_starts_again() -> None:
    knobs = store()
    for target in (None, *DEVICES):
        knobs.started(target)
    transaction = put(knobs, {"threads": 2, "ingest_bytes": "1GiB", "max_batch": 64})
    assert [change.pending_restart for change in transaction.changes] == [True, True, False]
    assert set(knobs.pending_restart()) == {"ingest_bytes", "cpu:0.threads", "cpu:1.threads"}
    knobs.started("cpu:0")
    knobs.started(None)
    assert knobs.pending_restart() == ("cpu:1.threads",)
    put(knobs, {"threads": None})
    assert knobs.pending_restart() == ("cpu:0.threads",)


def test_restart_knob_set_to_what_it_is_pends_nothing() -> None:
    knobs = store()
    knobs.started(None)
    assert put(knobs, {"ingest_bytes": KNOBS["ingest_bytes"].default}).changes[0].pending_restart is False
    assert knobs.pending_restart() == ()


def test_epoch_converges_when_all_processes_acknowledged_it() -> None:
    processes = Acknowledgements()
    processes.join("front end", 0)
    processes.join("worker cpu:0", 0)
    assert processes.converging(1) == [("front end", 0), ("worker cpu:0", 0)]
    processes.acknowledged("front end", 1)
    assert processes.converging(1) == [("worker cpu:0", 0)]
    processes.acknowledged("worker cpu:0", 2)  # of a later epoch: it knows this one too
    assert processes.converging(1) == []


def test_nobody_waits_for_a_dead_process_and_its_late_word_counts_nothing() -> None:
    processes = Acknowledgements()
    processes.join("worker cpu:0", 0)
    processes.leave("worker cpu:0")
    assert processes.converging(1) == []
    processes.acknowledged("worker cpu:0", 0)
    assert processes.converging(1) == []
    processes.leave("worker cpu:0")


def test_process_that_joins_has_the_values_it_started_with() -> None:
    processes = Acknowledgements()
    processes.join("worker cpu:0", 2)
    assert (processes.converging(2), processes.converging(3)) == ([], [("worker cpu:0", 2)])
    processes.acknowledged("worker cpu:0", 3)
    processes.join("worker cpu:0", 2)  # a successor that was started before epoch 3
    assert processes.converging(3) == [("worker cpu:0", 2)]


def test_older_acknowledgement_takes_nothing_back() -> None:
    processes = Acknowledgements()
    processes.join("front end", 3)
    processes.acknowledged("front end", 2)
    assert processes.converging(3) == []
