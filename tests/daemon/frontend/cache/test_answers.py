import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.frontend.cache.answers import ENTRY_BYTES, Answer, Answers

TTL_NS = 1000


def answer(payload_bytes: int = 88, computed_ns: int = 0) -> Answer:
    return Answer(bytes(10), bytes(payload_bytes), computed_ns, 5)


def kept(bytes_max: int) -> Answers:
    answers = Answers()
    answers.configure(bytes_max, TTL_NS)
    return answers


ONE = answer().nbytes


def test_an_answer_counts_with_what_it_costs_beside_its_bytes() -> None:
    assert ONE == ENTRY_BYTES + 10 + 88


def test_the_least_recently_used_goes_first() -> None:
    answers = kept(2 * ONE)
    for key in (b"a", b"b"):
        answers.put(key, answer())
    assert answers.get(b"a", 1) is not None
    answers.put(b"c", answer())
    assert [answers.get(key, 1) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert (answers.nbytes, answers.evicted) == (2 * ONE, 1)


def test_an_answer_is_given_until_its_time_is_over_however_often() -> None:
    answers = kept(ONE)
    answers.put(b"a", answer(computed_ns=7))
    for now_ns in (7, 500, 7 + TTL_NS - 1):
        assert answers.get(b"a", now_ns) is not None
    assert answers.get(b"a", 7 + TTL_NS) is None
    assert (len(answers), answers.nbytes, answers.evicted) == (0, 0, 1)


def test_a_shorter_time_holds_for_what_is_there() -> None:
    answers = kept(ONE)
    answers.put(b"a", answer())
    answers.configure(ONE, 10)
    assert answers.get(b"a", 10) is None


def test_a_smaller_bound_evicts_at_once_and_0_empties() -> None:
    answers = kept(3 * ONE)
    for key in (b"a", b"b", b"c"):
        answers.put(key, answer())
    answers.configure(2 * ONE, TTL_NS)
    assert (len(answers), answers.evicted) == (2, 1)
    answers.configure(0, TTL_NS)
    assert (len(answers), answers.nbytes, answers.evicted) == (0, 0, 3)
    answers.put(b"d", answer())
    assert len(answers) == 0


def test_what_is_larger_than_the_bound_is_not_kept_and_costs_no_other() -> None:
    answers = kept(2 * ONE)
    answers.put(b"a", answer())
    answers.put(b"b", answer(payload_bytes=3 * ONE))
    assert (len(answers), answers.evicted) == (1, 0)


def test_a_newer_answer_takes_the_place_of_the_older() -> None:
    answers = kept(2 * ONE)
    answers.put(b"a", answer())
    newer = answer(computed_ns=9)
    answers.put(b"a", newer)
    assert answers.get(b"a", 10) is newer
    assert (len(answers), answers.nbytes, answers.evicted) == (1, ONE, 0)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 700), st.booleans()), max_size=40))
def test_the_bytes_add_up_and_stay_within_the_bound(steps: list[tuple[int, int, bool]]) -> None:
    answers = kept(3000)
    for now_ns, (key, payload_bytes, put) in enumerate(steps):
        if put:
            answers.put(bytes([key]), answer(payload_bytes, now_ns))
        else:
            answers.get(bytes([key]), now_ns)
        assert answers.nbytes == sum(each.nbytes for each in answers._by_key.values()) <= 3000


def test_an_entry_takes_no_more_memory_than_it_counts_for() -> None:
    answers = kept(2**30)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(2000):
        answers.put(number.to_bytes(32, "little"), Answer(bytes(40), bytes(64), number, number))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken <= answers.nbytes
