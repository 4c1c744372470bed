import json
import os
import subprocess
import sys

import pytest

from pixrec_core.blas import CORE_TYPES, VARIABLE

CODE = """
import json, os
import numpy
from threadpoolctl import threadpool_info
mine = [each["architecture"] for each in threadpool_info() if each["internal_api"] == "openblas"]
from pixrec_core.retrieval import faiss_index
all = [each["architecture"] for each in threadpool_info() if each["internal_api"] == "openblas"]
print(json.dumps([mine, all, os.environ.get("OPENBLAS_CORETYPE")]))
"""


@pytest.mark.parametrize("given", [None, "Nehalem"])
def test_faiss_has_the_kernels_of_this_processor_or_those_that_the_user_names(given: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: given} if given else {}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    mine, everyone, left = json.loads(done.stdout)
    if not mine or (not given and mine[0] not in CORE_TYPES):
        pytest.skip(f"numpy has no OpenBLAS, or one for another processor: {mine}")
    assert left == given
    assert given or {CORE_TYPES.get(name, name) for name in everyone} == {CORE_TYPES[mine[0]]}
    assert not given or set(everyone) == {given}
