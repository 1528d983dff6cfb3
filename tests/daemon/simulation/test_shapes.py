import numpy as np
import pytest

from tensord.daemon.simulation.shapes import Kind, Shape

SHAPES = [
    Shape(),
    Shape(Kind.EXPONENTIAL),
    Shape(Kind.LOGNORMAL, 0.25),
    Shape(Kind.LOGNORMAL, 2.0),
    Shape(Kind.HYPEREXPONENTIAL, 4.0),
    Shape(Kind.EMPIRICAL, values=(0.5, 0.5, 2.0)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.kind}-{shape.scv}")
def test_the_mean_is_1_and_the_mean_square_as_said(shape: Shape) -> None:
    drawn = shape.draw(np.random.default_rng(1), 400_000)
    assert drawn.mean() == pytest.approx(1.0, rel=0.02)
    assert np.square(drawn).mean() == pytest.approx(shape.square, rel=0.05)
    assert drawn.min() > 0


def test_a_hyperexponential_needs_more_variance_than_an_exponential() -> None:
    with pytest.raises(AssertionError):
        Shape(Kind.HYPEREXPONENTIAL, 1.0)
