from dataclasses import FrozenInstanceError, fields, replace

import pytest

from tensord.daemon.knobs import KNOBS
from tensord.daemon.scheduling.balance import BALANCE_POLICIES
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.daemon.scheduling.policy import GlobalPolicy, ModelPolicy


def defaults(policy: ModelPolicy | GlobalPolicy) -> dict[str, object]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}


def test_a_models_defaults_are_those_of_the_knobs() -> None:
    window_us = KNOBS["window_us"].default
    assert isinstance(window_us, int)
    assert defaults(ModelPolicy()) == {
        "max_batch": KNOBS["max_batch"].default,
        "window_ns": window_us * 1_000,
        "queue_max": KNOBS["queue_max"].default,
        "weight": KNOBS["weight"].default,
        "order": KNOBS["order"].default,
        "balance": KNOBS["balance"].default,
        "retries": KNOBS["retries"].default,
    }


def test_the_instances_defaults_are_those_of_the_knobs() -> None:
    ageing_ms = KNOBS["ageing_ms"].default
    assert isinstance(ageing_ms, int)
    assert defaults(GlobalPolicy()) == {
        "pipeline_depth": KNOBS["pipeline_depth"].default,
        "ageing_ns": ageing_ms * 1_000_000,
    }


def test_every_order_and_balance_that_a_knob_takes_is_there() -> None:
    assert set(KNOBS["order"].choices) == set(ORDER_POLICIES)
    assert set(KNOBS["balance"].choices) == set(BALANCE_POLICIES)


def test_a_policy_is_replaced_whole_and_never_changed() -> None:
    model, whole = ModelPolicy(), GlobalPolicy()
    with pytest.raises(FrozenInstanceError):
        model.max_batch = 5  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        whole.pipeline_depth = 5  # type: ignore[misc]
    assert defaults(replace(model, max_batch=5)) == defaults(model) | {"max_batch": 5}
    assert defaults(replace(whole, pipeline_depth=5)) == defaults(whole) | {"pipeline_depth": 5}
