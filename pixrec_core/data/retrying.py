"""When another HTTP request may do better, and how long to wait before it."""

import random
from typing import Final

import urllib3

FIRST_WAIT_S: Final = 0.5  # before the second try; doubled before each one more, and shortened by chance
MAX_WAIT_S: Final = 60.0  # of any wait; a host that asks for more is tried again after this
WORTH_ANOTHER_TRY: Final = {408, 425, 429}  # and every 5xx


def is_transient(code: int) -> bool:
    """Whether a server that answers with this status may answer otherwise soon."""
    return code >= 500 or code in WORTH_ANOTHER_TRY


def retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that a server asked to be left alone, at most `MAX_WAIT_S`; None where it did not say it readably."""
    try:
        return urllib3.Retry(retry_after_max=int(MAX_WAIT_S)).get_retry_after(response)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def wait_s(attempts: int, asked: float | None) -> float:
    """Seconds before the next try: what the server asked for, else exponential with jitter."""
    if asked is not None:
        return asked
    return min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempts - 1)) * random.uniform(0.5, 1)
