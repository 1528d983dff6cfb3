"""A cheap number that looks random and is always the same."""

from typing import Final

_MASK: Final = 2**64 - 1


def mixed(number: int) -> int:
    """64 bits that each depend on all 64 of `number`: a bijection without visible pattern.

    Source: the output function of SplitMix64. G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014.
    """
    bits = (number + 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)
