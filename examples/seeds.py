"""Three seeds of one data set: mean, deviation and paired differences as LaTeX and as a pandas table.

`python examples/seeds.py shop --seeds 0 1 2`, in the folder of pixrec.toml. The seeds share data, photos and
baselines: each starts from hard links to the first one's artefacts, so only what depends on the seed is built again.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pixrec_core import files
from pixrec_core.evaluation.runs import Run, compare_runs
from pixrec_core.settings import load_settings


def run_seeds(dataset: str, seeds: Sequence[int]) -> list[Path]:
    """Run a data set once per seed; return the folder of each evaluation. The seed of the settings uses its data."""
    settings = load_settings()
    present, usual = settings.dataset(dataset).training.seed, settings.data_dir
    folders: list[Path] = []
    for seed in sorted(seeds, key=lambda seed: seed != present):
        data_dir = usual if seed == present else usual.with_name(f"{usual.name}-seed{seed}")
        source = folders[0] if folders else usual / dataset
        if source.exists() and not (data_dir / dataset).exists():
            with files.replacing(data_dir / dataset) as copy:
                shutil.copytree(source, copy, copy_function=os.link, symlinks=True)
        variables = {"PIXREC_DATA_DIR": str(data_dir), "PIXREC_TRAINING__SEED": str(seed)}
        command = ["pixrec", "run", dataset, "--up-to", "evaluation"]
        subprocess.run(command, env=os.environ | variables, check=True)
        folders.append(data_dir / dataset)
    return folders


def summarise(folders: Sequence[Path], reference: str | None = None) -> pd.DataFrame:
    """Return a table by method and metric: mean, deviation over seeds, difference with its 95 % interval."""
    table = compare_runs([Run.read(folder) for folder in folders], ["Recall@10", "NDCG@10"], reference=reference)
    return table.to_pandas().set_index(["method", "metric"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reference", help="method that is subtracted; by default the best other one")
    options = parser.parse_args()
    folders = run_seeds(options.dataset, options.seeds)
    table = summarise(folders, options.reference)
    table.to_csv("seeds.csv")
    print(table.to_string(float_format="{:.4f}".format))
    reference = ["--reference", options.reference] if options.reference else []
    subprocess.run(["pixrec", "compare", *map(str, folders), *reference, "--format", "latex"], check=True)


if __name__ == "__main__":
    main()
