import pytest

from tensord.daemon.simulation.scaling import Law, fit

REPLICAS = [1, 2, 3, 4, 6, 8, 12, 16]


def usl(n: float, serial: float, coherency: float) -> float:
    return 1_000 * n / (1 + serial * (n - 1) + coherency * n * (n - 1))


def laws(per_s: list[float]) -> dict[str, Law]:
    return {law.name: law for law in fit(REPLICAS, per_s)}


@pytest.mark.parametrize(("serial", "coherency"), [(0.05, 0.002), (0.3, 0.0), (0.0, 0.01), (0.0, 0.0), (0.9, 0.1)])
def test_the_universal_law_finds_what_made_the_figures(serial: float, coherency: float) -> None:
    law = laws([usl(n, serial, coherency) for n in REPLICAS])["USL"]
    assert law.serial == pytest.approx(serial, abs=1e-5)
    assert law.coherency == pytest.approx(coherency, abs=1e-6)
    assert law.one_per_s == pytest.approx(1_000, rel=1e-4)
    assert law.r_squared == pytest.approx(1.0)


def test_amdahl_finds_the_serial_part() -> None:
    law = laws([usl(n, 0.2, 0.0) for n in REPLICAS])["Amdahl"]
    assert law.serial == pytest.approx(0.2)
    assert (law.coherency, law.best) == (0.0, None)


def test_gustafson_finds_the_serial_part() -> None:
    law = laws([1_000 * (n - 0.3 * (n - 1)) for n in REPLICAS])["Gustafson"]
    assert [law.serial, law.one_per_s] == pytest.approx([0.3, 1_000])
    assert law.at(4) == pytest.approx(3_100)


def test_the_universal_law_says_where_more_replicas_harm() -> None:
    law = laws([usl(n, 0.04, 0.01) for n in REPLICAS])["USL"]
    assert law.best == pytest.approx((0.96 / 0.01) ** 0.5, rel=1e-3)


def test_the_universal_law_is_never_worse_than_amdahls_which_it_contains() -> None:
    for per_s in (
        [1107.0, 2227, 3340, 4447, 6679, 8882, 12504, 12504],
        [5.0, 4, 3, 2, 1, 1, 1, 1],
        [1.0, 3, 2, 5, 4, 9, 1, 7],
    ):
        found = laws(per_s)
        assert found["USL"].r_squared >= found["Amdahl"].r_squared - 1e-9


def test_noise_moves_the_parameters_little() -> None:
    noisy = [usl(n, 0.05, 0.002) * (1.02 if n % 2 else 0.98) for n in REPLICAS]
    law = laws(noisy)["USL"]
    assert law.serial == pytest.approx(0.05, abs=0.03)
    assert law.coherency == pytest.approx(0.002, abs=0.002)
    assert 0.98 < law.r_squared < 1


def test_parameters_stay_within_their_bounds() -> None:
    """Better than linear growth, which none of the laws knows."""
    for law in laws([1_000 * n**1.3 for n in REPLICAS]).values():
        assert 0 <= law.serial <= 1
        assert law.coherency >= 0
