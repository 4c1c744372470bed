"""Long tests with random input, which `make stress` runs: `STRESS_SECONDS` is the time of each, in seconds."""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator

import pytest

SECONDS = float(os.environ.get("STRESS_SECONDS", "0"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "stress" in item.path.parts and not SECONDS:
            item.add_marker(pytest.mark.skip(reason="make stress"))


@pytest.fixture
def rounds(request: pytest.FixtureRequest, capsys) -> Callable[[], Iterator[random.Random]]:
    """Yields a random generator per round until the time is over, then prints the number of rounds."""

    def generate() -> Iterator[random.Random]:
        end, count = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            yield random.Random(count)
            count += 1
        with capsys.disabled():
            sys.stdout.write(f"\n{request.node.name}: {count:,} rounds\n")

    return generate
