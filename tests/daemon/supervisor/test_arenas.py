import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensord.daemon.supervisor.arenas import ArenaAccounts, MadeArena
from tensord.ipc.descriptors import INGEST_ARENA
from tensord.ipc.errors import ArenaQuotaExceeded

LIMIT = 1_000


class Promising(RuleBasedStateMachine):
    """Promises kept, broken and returned, against two dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts = ArenaAccounts()
        self.promised: dict[int, int] = {}
        self.made: dict[int, MadeArena] = {}
        self.numbers: set[int] = {INGEST_ARENA}

    def total(self) -> int:
        return sum(self.promised.values()) + sum(made.nbytes for made in self.made.values())

    @rule(nbytes=st.integers(1, 600))
    def promise(self, nbytes: int) -> None:
        before = self.total()
        if before + nbytes > LIMIT:
            with pytest.raises(ArenaQuotaExceeded) as caught:
                self.accounts.promise(nbytes, LIMIT)
            expected = {"asked_bytes": before + nbytes, "limit_bytes": LIMIT, "knob": "arenas_bytes_max"}
            assert caught.value.data() == expected
        else:
            number = self.accounts.promise(nbytes, LIMIT)
            assert number not in self.numbers, "numbers are never given twice"
            self.numbers.add(number)
            self.promised[number] = nbytes

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def break_promise(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.promised)))
        self.accounts.break_promise(self.promised.pop(number))

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def make(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.promised)))
        nbytes = self.promised.pop(number)
        self.made[number] = self.accounts.made(number, 100 + number, nbytes)
        assert self.made[number] == MadeArena(number, 100 + number, nbytes)

    @rule(number=st.integers(0, 12))
    def give_back(self, number: int) -> None:
        assert self.accounts.returned(number) == self.made.pop(number, None)

    @invariant()
    def accounts_are_the_models(self) -> None:
        assert self.accounts.promised_bytes == self.total()
        assert list(self.accounts) == list(self.made.values())
        assert len(self.accounts) == len(self.made)


TestPromising = Promising.TestCase


def test_an_arena_can_be_returned_while_all_are_looked_at() -> None:
    accounts = ArenaAccounts()
    for _ in range(3):
        accounts.made(accounts.promise(10, LIMIT), 5, 10)
    for arena in accounts:
        accounts.returned(arena.arena)
    assert (len(accounts), accounts.promised_bytes) == (0, 0)


def test_a_lower_limit_takes_nothing_away_and_grants_nothing_more() -> None:
    accounts = ArenaAccounts()
    accounts.promise(500, 1_000)
    with pytest.raises(ArenaQuotaExceeded):
        accounts.promise(1, 100)
    assert accounts.promised_bytes == 500


def test_a_limit_of_nothing_refuses_every_arena() -> None:
    with pytest.raises(ArenaQuotaExceeded):
        ArenaAccounts().promise(1, 0)
