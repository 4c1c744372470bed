"""FAISS with the matrix products of this processor: import `faiss` from here."""

import os
from typing import Any, Final

import numpy  # noqa: F401 - loads its OpenBLAS, which knows the processor
from threadpoolctl import threadpool_info

VARIABLE: Final = "OPENBLAS_CORETYPE"
#: Processors as numpy's OpenBLAS names them -> as that of FAISS does, which is older.
CORE_TYPES: Final = {
    "Haswell": "Haswell",
    "Zen": "Zen",
    "SkylakeX": "SkylakeX",
    "Cooperlake": "SkylakeX",
    "SapphireRapids": "SkylakeX",
}


def _import_faiss() -> Any:
    """Import FAISS. Its wheel brings OpenBLAS 0.3.15, of 2021, which uses kernels of 2004 on processors that are newer.

    The variable is set only while FAISS is loaded, and only if the user has not set it.
    """
    names = [CORE_TYPES[name] for each in threadpool_info() if (name := each.get("architecture")) in CORE_TYPES]
    is_set = bool(names) and VARIABLE not in os.environ
    if is_set:
        os.environ[VARIABLE] = names[0]
    try:
        import faiss
    finally:
        if is_set:
            del os.environ[VARIABLE]
    return faiss


faiss = _import_faiss()
