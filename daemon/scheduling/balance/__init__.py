"""Balance policies: which of a model's replicas takes the next batch.

    round_robin             the next in turn; a sick one has less turns                      turns.py
    weighted_round_robin    in proportion to device weight × health                          turns.py
    least_connections       (batches in flight + 1) / health                                 load.py
    least_work              (predicted time in flight + of this batch) / health              load.py
    fastest_response        average response time × (batches in flight + 1) / health         load.py
    power_of_two            the better of two drawn at random, by least work                 load.py
    hash                    ((a·session + b) mod p) mod n                                    sessions.py
    consistent_hash         the next point on a ring of virtual nodes                        sessions.py

Only workers with a free place are compared, so weights never hold back a batch from the last worker that could take
it; the hashes alone let a bound session wait for its worker while others are free. Weights and health are never 0: a
worker that is out of favour gets a batch now and then, or when the better ones are full, and can prove itself.

Hashes bind sessions, whatever the health of the worker: moving a session costs the state that it was bound for. The
requests of a bound session wait in a queue of their worker's own (model.py), so those of one worker never stand in
the way of another's, and a batch only holds sessions of its worker. Requests without a session wait in the shared
queue, and go where there is least work. The two do not share batches: where there is enough to wait for, both fill
theirs anyway.
"""

from collections.abc import Callable

from .load import FastestResponse, LeastConnections, LeastWork, PowerOfTwo
from .policy import BalancePolicy
from .sessions import ConsistentHash, Hash
from .turns import RoundRobin, WeightedRoundRobin

__all__ = ["BALANCE_POLICIES", "BalancePolicy"]

BALANCE_POLICIES: dict[str, Callable[[], BalancePolicy]] = {
    "round_robin": RoundRobin,
    "weighted_round_robin": WeightedRoundRobin,
    "least_connections": LeastConnections,
    "least_work": LeastWork,
    "fastest_response": FastestResponse,
    "power_of_two": PowerOfTwo,
    "hash": Hash,
    "consistent_hash": ConsistentHash,
}
"""Name, as the knob `balance` takes it, to a maker of policies."""
