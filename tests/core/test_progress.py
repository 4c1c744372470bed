"""Progress: short loops log nothing, longer ones log a line every few seconds."""

import logging
from types import SimpleNamespace

import pytest

from pixrec_core import progress

log = logging.getLogger(__name__)


@pytest.fixture
def logged(monkeypatch, caplog):
    """A function that iterates over `count` items of `seconds` each, by a fake clock, and returns the log lines."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    caplog.set_level(logging.INFO)

    def walk(count: int, seconds: float) -> list[str]:
        seen = []
        for item in progress.track(iter(range(count)), "photos", count, log):
            seen.append(item)
            clock.now += seconds
        assert seen == list(range(count))
        return caplog.messages

    return walk


def test_a_short_loop_logs_nothing(logged):
    assert logged(400, 0.01) == []


def test_a_long_loop_logs_count_share_rate_and_total_time(logged):
    assert logged(6000, 0.001953125) == [
        "photos: 2,560 of 6,000 (43 %), 512/s",
        "photos: 5,120 of 6,000 (85 %), 512/s",
        "photos: 6,000 done in 11.7 s",
    ]


def test_an_empty_loop_logs_nothing(logged):
    assert logged(0, 1.0) == []


def test_an_exception_passes_through():
    def items():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(progress.track(items(), "photos", 2, log))


def test_without_a_total_there_is_no_share(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)
    list(progress.track(range(1), "MiB", None, log))
    assert caplog.messages[0].startswith("MiB: 1, ")
