from collections.abc import Callable, Iterator

import pytest
import structlog

from tensord.daemon.log import configure, get_logger

Lines = Callable[[], list[str]]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """The lines logged since the last look; the configuration is as before afterwards."""
    yield lambda: capsys.readouterr().err.splitlines()
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def test_an_event_is_one_line_with_its_process_and_values(logged: Lines) -> None:
    configure("worker cpu:0")
    get_logger().info("model ready", index=3, name="digits")
    (line,) = logged()
    for part in ("info", "model ready", "index=3", "name=digits", "process='worker cpu:0'"):
        assert part in line


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1), ("ERROR", 1)])
def test_what_is_below_the_level_is_not_logged(logged: Lines, level: str, shown: int) -> None:
    configure("frontend", level)
    log = get_logger()
    for event in (log.debug, log.info, log.warning, log.error):
        event("event")
    assert len(logged()) == shown


def test_the_level_can_be_changed_while_it_runs(logged: Lines) -> None:
    configure("supervisor", "error")
    get_logger().info("before")
    configure("supervisor", "debug")
    get_logger().debug("after")
    (line,) = logged()
    assert "after" in line


def test_a_bound_logger_follows_a_change_of_level(logged: Lines) -> None:
    configure("supervisor", "error")
    log = get_logger()
    log.info("before")
    configure("supervisor", "info")
    log.info("after")
    (line,) = logged()
    assert "after" in line


def test_values_are_bound_to_a_logger_and_not_to_others(logged: Lines) -> None:
    configure("supervisor")
    get_logger().bind(device="cpu:1").info("one")
    get_logger().info("two")
    first, second = logged()
    assert "device=cpu:1" in first
    assert "device" not in second


def test_a_file_gets_no_colours(logged: Lines) -> None:
    configure("supervisor")
    get_logger().error("event", value=1)
    assert "\x1b" not in "".join(logged())


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(KeyError):
        configure("supervisor", "loud")
