"""PixRec's core: data, model, retrieval, evaluation and report. It knows nothing of Dagster."""

import os

__version__ = "0.1.0"

# Threads of the math libraries wait asleep, not spinning; it is read when torch and numpy load. On two idle cores a
# training epoch takes a third longer so (33 s against 43 s), but where other processes share the cores a
# spinning thread waits for one that is not running: steps of 0.6 s then took 7 to 27 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # spins for 2^4 processor cycles; 2^26 by default
