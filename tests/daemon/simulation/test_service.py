from tensord.daemon.simulation.service import Line, Service

SERVICE = Service(Line(100.0, 10.0), {"long": Line(1000.0, 0.0)})


def test_a_batch_takes_a_fixed_part_and_one_per_row() -> None:
    assert [SERVICE.compute_ns("", rows, 1.0) for rows in (1, 2, 10)] == [110, 120, 200]


def test_a_bucket_may_have_a_line_of_its_own() -> None:
    assert SERVICE.compute_ns("long", 5, 1.0) == 1000


def test_factor_and_speed_scale_it() -> None:
    assert SERVICE.compute_ns("", 10, 3.0, speed=2.0) == 300


def test_no_batch_takes_no_time() -> None:
    assert Service(Line(0.0, 0.0)).compute_ns("", 1, 1.0) == 1
