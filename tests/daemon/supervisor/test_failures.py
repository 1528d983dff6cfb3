from tensord.daemon.exits import Exit
from tensord.daemon.supervisor.failures import InstanceFailure


def test_a_failure_is_a_sentence_and_an_exit_code() -> None:
    failure = InstanceFailure(Exit.MODELS, "models holds no model: put one there")
    assert str(failure) == "models holds no model: put one there"
    assert failure.exit is Exit.MODELS
