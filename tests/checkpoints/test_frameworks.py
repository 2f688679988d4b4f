"""The process is as it was, whichever thread leaves first."""

import sys
import threading

from checkpoints.frameworks import quiet


def test_a_second_thread_waits_until_the_first_one_has_put_the_process_back() -> None:
    before = sys.stdout
    first_is_in, second_is_in, go_on = threading.Event(), threading.Event(), threading.Event()
    heard: list[str] = []

    def second() -> None:
        first_is_in.wait()
        with quiet(heard.append) as progress:
            second_is_in.set()
            go_on.wait(5)
            progress("second")

    thread = threading.Thread(target=second)
    thread.start()
    with quiet(heard.append) as progress:
        first_is_in.set()
        entered = second_is_in.wait(0.3)
        progress("first")
    go_on.set()
    thread.join()
    assert not entered
    assert sys.stdout is before
    assert heard == ["first", "second"]


def test_a_thread_that_is_quiet_may_call_what_is_quiet_by_itself() -> None:
    heard: list[str] = []
    with quiet(heard.append) as outer, quiet(outer) as inner:
        inner("both")
    assert heard == ["both"]
