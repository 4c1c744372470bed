"""One thread for FAISS: indices as small as these take several longer, on a busy machine by far."""

import faiss
import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    faiss.omp_set_num_threads(1)
