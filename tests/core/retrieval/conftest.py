"""One thread for FAISS: several threads slow down searches in such small indices, most of all on a busy machine."""

import faiss
import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    faiss.omp_set_num_threads(1)
