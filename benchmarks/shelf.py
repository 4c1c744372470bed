"""Draw the picture of README: last purchases of a user of the sample in photos, and the items that are recommended.

`pixrec run sample`, then `python -m benchmarks.shelf`. The user is the first, in the order of a hash of the id, with
at least `SHOWN` purchases, so nobody chose a flattering one.
"""

import argparse
import textwrap
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pixrec_core.paths import DatasetPaths
from pixrec_core.report.inputs import titles_of
from pixrec_core.report.pictures import hash_order
from pixrec_core.serving import Recommender

SHOWN: Final = 6


def draw_shelf(paths: DatasetPaths) -> Image.Image:
    """Return the picture of one user's shelf, from the promoted methods and the photos of a dataset."""
    shop = Recommender.load(paths.promoted.root)
    users = shop.find_users("", 1_000)
    user = next(u for _, u in sorted(zip(hash_order(users), users, strict=True)) if len(shop.history(u)) >= SHOWN)
    shelves = {
        "bought, newest last": shop.history(user)[-SHOWN:],
        "recommended next": [item for item, _ in shop.for_user(user, top=SHOWN, filter_seen=True)],
    }
    titles = titles_of(shop.catalogue)
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")
    for axes, (label, items) in zip(figure.subplots(2, SHOWN), shelves.items(), strict=True):
        for axis, item in zip(axes, items, strict=True):
            if (path := paths.image(item)).exists():
                axis.imshow(Image.open(path))
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel("\n".join(textwrap.wrap(titles[item], 20)[:2]), fontsize=8)
            axis.spines[:].set_visible(False)
        axes[0].set_title(label, loc="left", fontsize=12, fontweight="bold")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="data/sample", type=Path, help="folder of the dataset")
    parser.add_argument("--output", default="docs/shelf.png", type=Path)
    options = parser.parse_args()
    draw_shelf(DatasetPaths(options.dataset)).quantize(128).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
