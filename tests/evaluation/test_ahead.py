"""Calls at a time: their order, their number, their errors."""

from __future__ import annotations

import threading
import time

import pytest

from loquela.evaluation.ahead import in_order


def test_in_the_order_of_the_calls_and_never_more_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001 * (7 - number % 7))
        with lock:
            running -= 1
        return number * number

    assert list(in_order(slow, range(60), 5)) == [number * number for number in range(60)]
    assert 2 <= most <= 5


def test_things_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    for at_once in (1, 4):
        taken = 0
        found = in_order(lambda x: x, endless(), at_once)  # type: ignore[arg-type, var-annotated]
        assert [next(found) for _ in range(3)] == [1, 2, 3]
        assert taken <= 3 + 4 * at_once
        found.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_place_and_nothing_new_begins_after_it() -> None:
    begun: list[int] = []

    def one(number: int) -> int:
        begun.append(number)
        time.sleep(0.002)
        if number == 3:
            raise ValueError("three")
        return number

    found = in_order(one, range(1000), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)
    time.sleep(0.05)
    assert len(begun) < 12
