"""What queueing theory says of a queue in equilibrium: λ arrivals per second, service times S, load ρ.

Waits and service times are in seconds; "wait" is without service, "queue length" without those in service.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Queue:
    """Means in equilibrium."""

    wait_s: float
    length: float
    """Little's law (J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9, 1961)."""


def mm1(arrivals_per_s: float, service_s: float) -> Queue:
    """Poisson arrivals, exponential service, one server, first come first served.

    W = ρ/(μ(1−ρ)), L = ρ²/(1−ρ). L. Kleinrock, Queueing Systems I, Wiley 1975, section 3.2.
    """
    load = _stable(arrivals_per_s * service_s)
    return Queue(load * service_s / (1 - load), load**2 / (1 - load))


def mg1(arrivals_per_s: float, service_s: float, scv: float) -> Queue:
    """Poisson arrivals, any service with squared coefficient of variation `scv`, any order that does not look at it.

    W = λE[S²]/(2(1−ρ)). F. Pollaczek, Math. Zeitschrift 32, 1930; A. Khinchine, Mat. Sbornik 39, 1932; Kleinrock,
    section 5.6.
    """
    load = _stable(arrivals_per_s * service_s)
    wait_s = arrivals_per_s * service_s**2 * (1 + scv) / (2 * (1 - load))
    return Queue(wait_s, arrivals_per_s * wait_s)


def erlang_c(servers: int, offered: float) -> float:
    """The probability that an arrival has to wait; `offered` = λE[S] is below `servers`.

    A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
    exchanges", 1917. By the stable recursion of Erlang's loss formula B.
    """
    load = _stable(offered / servers)
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def mmc(arrivals_per_s: float, service_s: float, servers: int) -> Queue:
    """Poisson arrivals, exponential service, `servers` that share one queue: W = C(c, a)/(cμ−λ). Kleinrock, 3.5."""
    waiting = erlang_c(servers, arrivals_per_s * service_s)
    wait_s = waiting / (servers / service_s - arrivals_per_s)
    return Queue(wait_s, arrivals_per_s * wait_s)


def mg1_sjf(arrivals_per_s: float, service_s: Sequence[float], shares: Sequence[float]) -> Queue:
    """M/G/1, the shortest waiting job first, never interrupted: `service_s` ascending, each with its share of arrivals.

    A class per duration k, with σ_k the load of durations up to k: W_k = W₀/((1−σ_{k−1})(1−σ_k)), W₀ = λE[S²]/2.
    A. Cobham, "Priority Assignment in Waiting Line Problems", Operations Research 2, 1954; T. E. Phipps, "Machine
    Repair as a Priority Waiting-Line Problem", Operations Research 4, 1956, lets the classes become a continuum:
    W = W₀ ∫ dF(x)/(1−ρ_x)², in which durations may be as fine as one likes (R. W. Conway, W. L. Maxwell,
    L. W. Miller, Theory of Scheduling, Addison-Wesley 1967, section 8-6).
    """
    assert list(service_s) == sorted(service_s)
    whole = sum(shares)
    share_of = [share / whole for share in shares]
    residual_s = arrivals_per_s * sum(p * s * s for p, s in zip(share_of, service_s, strict=True)) / 2
    loads = list(accumulate((arrivals_per_s * p * s for p, s in zip(share_of, service_s, strict=True)), initial=0.0))
    _stable(loads[-1])
    wait_s = sum(
        p * residual_s / ((1 - before) * (1 - through))
        for p, before, through in zip(share_of, loads, loads[1:], strict=False)
    )
    return Queue(wait_s, arrivals_per_s * wait_s)


def closed_mm1(clients: int, think_s: float, service_s: float) -> float:
    """Answers per second of a closed loop with exponential service and thinking: the machine repairman model.

    Mean value analysis: R_n = s(1 + Q_{n−1}), X_n = n/(R_n + z), Q_n = X_n R_n. M. Reiser, S. S. Lavenberg, J. ACM 27,
    1980.
    """
    queued = throughput = 0.0
    for number in range(1, clients + 1):
        response_s = service_s * (1 + queued)
        throughput = number / (response_s + think_s)
        queued = throughput * response_s
    return throughput


def _stable(load: float) -> float:
    assert 0 < load < 1, "there is no equilibrium"
    assert math.isfinite(load)
    return load
