"""Options of XLA that the suite sets are those that the installed XLA has."""

from xla_flags import known_flags


def test_flags_that_xla_lacks_are_left_out():
    level = "--xla_backend_optimization_level=0"
    assert known_flags([level]) == [level]
    assert known_flags([level, "--xla_no_such_flag=1"]) == [level]
