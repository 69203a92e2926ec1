"""Work for the processes of `test_workers`, which find it by its name: imported here without pytest and models."""

import os
import time


def square(x):
    return x * x


def fail(x):
    raise ValueError(f"{x} on purpose")


def started(seconds):
    """Says its process, in one write, then is at work."""
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(seconds)
