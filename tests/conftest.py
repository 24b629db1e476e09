"""For every test."""

import signal

import pytest

pytest.register_assert_rewrite("tests.e2e", "tests.tracking")  # what tests share says what differs, like a test

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and our children, which tests interrupt, would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
