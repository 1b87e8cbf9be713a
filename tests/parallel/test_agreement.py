"""Agreement in a single process. Jobs of several processes are in tests/test_jobs.py."""

import pytest

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.parallel import agreement


def test_a_single_process_agrees_with_itself():
    assert parallel.leads() and parallel.lead(lambda: 3) == parallel.together(lambda: 3) == 3
    assert parallel.leader_first(lambda: [1]) == [1]
    with parallel.joint_end():
        parallel.check_equal("a", "data: the files")


def test_a_board_keeps_the_newest_note_of_a_topic():
    board = parallel.Board("one")
    assert board.read("a") is None and board.all("a") is None
    board.write("a", {"x": 1})
    board.write("a", None)
    assert board.read("a") == (None,) and board.all("a") == [None] and board.read("b") is None
    board.remove("a")
    assert board.read("a") is None


def test_another_value_in_one_process_is_named(monkeypatch):
    monkeypatch.setattr(agreement, "lead", lambda function: "that of process 0")
    with pytest.raises(UserError, match=r"config: the settings differ between the processes: process 0 \(.*\) sees"):
        parallel.check_equal("another", "config: the settings")


def test_errors_that_cannot_be_sent_keep_their_text():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def fail():
        raise Odd(1, 2)

    value, error = agreement._outcome(fail)
    assert value is None and isinstance(error, RuntimeError) and str(error) == "Odd: 1 and 2"
    with pytest.raises(UserError) as caught:
        agreement._result(agreement._outcome(lambda: (_ for _ in ()).throw(UserError("x"))))
    assert caught.value.of_all


@pytest.mark.parametrize(
    ("text", "broken"),
    [("Gloo AllGather failed: Connection closed by peer", True), ("RESOURCE_EXHAUSTED: out of memory", False)],
)
def test_a_broken_connection_is_told_from_other_errors_of_the_device(text, broken):
    assert bool(agreement._BROKEN.search(text)) is broken
