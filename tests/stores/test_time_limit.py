"""The client's sessions are limited while anybody is inside, and as before once everybody has left."""

import threading

from huggingface_hub import get_session
from huggingface_hub.utils import _http

from stores.time_limit import time_limit


def test_threads_that_leave_in_the_order_in_which_they_came_leave_the_former_setting() -> None:
    before = _http._GLOBAL_BACKEND_FACTORY
    entered, leave = threading.Event(), threading.Event()

    def second() -> None:
        with time_limit():
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=second)
    with time_limit():
        limited = type(get_session().get_adapter("https://huggingface.co"))
        thread.start()
        entered.wait(5)
    assert type(get_session().get_adapter("https://huggingface.co")) is limited  # the other one is inside
    leave.set()
    thread.join()
    assert _http._GLOBAL_BACKEND_FACTORY is before
    assert type(get_session().get_adapter("https://huggingface.co")) is not limited
