from dataclasses import FrozenInstanceError, fields, replace

import pytest

from tensord.daemon.knobs import KNOBS
from tensord.daemon.scheduling.balance import BALANCE_POLICIES
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.daemon.scheduling.policy import GlobalPolicy, ModelPolicy, TenantPolicy


def defaults(policy: ModelPolicy | GlobalPolicy) -> dict[str, object]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}


DEFAULTS = {name: knob.default for name, knob in KNOBS.items()}


def test_the_defaults_are_those_of_the_knobs() -> None:
    assert ModelPolicy.of(DEFAULTS) == ModelPolicy()
    assert GlobalPolicy.of(DEFAULTS) == GlobalPolicy()
    assert TenantPolicy.of("default", DEFAULTS) == TenantPolicy()


def test_preferred_batches_come_as_text() -> None:
    assert ModelPolicy.of(DEFAULTS | {"preferred_batches": "8,16"}).preferred_batches == (8, 16)


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
