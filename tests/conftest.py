"""For every test."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and our children, which tests interrupt, would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
