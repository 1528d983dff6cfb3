import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensord.daemon.supervisor.arenas import ArenaAccounts, MadeArena
from tensord.ipc.descriptors import INGEST_ARENA
from tensord.ipc.errors import ArenaQuotaExceeded, NoMemory
from tensord.ipc.limits import ARENA_PAGE_BYTES, ARENAS_MAX

PAGE = ARENA_PAGE_BYTES
LIMIT = 10 * PAGE


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

    @rule(pages=st.integers(1, 6))
    def promise(self, pages: int) -> None:
        nbytes = pages * PAGE
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
        accounts.made(accounts.promise(PAGE, LIMIT), 5, PAGE)
    for arena in accounts:
        accounts.returned(arena.arena)
    assert (len(accounts), accounts.promised_bytes) == (0, 0)


def test_a_lower_limit_takes_nothing_away_and_grants_nothing_more() -> None:
    accounts = ArenaAccounts()
    accounts.promise(5 * PAGE, LIMIT)
    with pytest.raises(ArenaQuotaExceeded):
        accounts.promise(1, PAGE)
    assert accounts.promised_bytes == 5 * PAGE


def test_a_limit_of_nothing_refuses_every_arena() -> None:
    with pytest.raises(ArenaQuotaExceeded):
        ArenaAccounts().promise(1, 0)


def test_an_arena_counts_as_whole_pages() -> None:
    accounts = ArenaAccounts()
    accounts.made(accounts.promise(1, LIMIT), 5, 1)
    assert accounts.promised_bytes == PAGE
    accounts.returned(1)
    assert accounts.promised_bytes == 0


def test_there_are_never_more_arenas_than_a_worker_can_map() -> None:
    accounts = ArenaAccounts()
    for _ in range(ARENAS_MAX):
        accounts.promise(1, 2 * ARENAS_MAX * PAGE)
    with pytest.raises(NoMemory):
        accounts.promise(1, 2 * ARENAS_MAX * PAGE)
    accounts.break_promise(1)
    accounts.promise(1, 2 * ARENAS_MAX * PAGE)
