"""Make the files in trainrun/data from what scikit-learn and scikit-image package. Run once; the results are committed.

    python -m venv scratch && scratch/bin/pip install scikit-learn==1.9.1 scikit-image==0.26.0 pillow
    scratch/bin/python tools/make_embedded_data.py trainrun/data

Neither package is needed by trainrun itself. trainrun/data/LICENSES.md says where each picture comes from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 512  # the longest side of a photograph after scaling
QUALITY = 90

# name here: (name in skimage.data, box to cut out first (left, top, right, bottom) or None)
PHOTOS: dict[str, tuple[str, tuple[int, int, int, int] | None]] = {
    "astronaut": ("astronaut", None),
    "brick": ("brick", None),
    "camera": ("camera", None),
    "chelsea": ("chelsea", None),
    "coffee": ("coffee", None),
    "grass": ("grass", None),
    "gravel": ("gravel", None),
    "hubble": ("hubble_deep_field", None),
    "retina": ("retina", (205, 205, 1205, 1205)),  # inside the round field of view, or most crops would be plain black
    "rocket": ("rocket", None),
}


def digits(folder: Path) -> None:
    """The counts 0..16 and labels as they stand in the file, nothing reordered."""
    found = load_digits()
    counts = found.images.astype(np.uint8)
    assert counts.shape == (1797, 8, 8) and counts.max() == 16 and (counts == found.images).all()
    np.savez_compressed(folder / "digits.npz", counts=counts, labels=found.target.astype(np.uint8))


def photos(folder: Path) -> None:
    """Ten photographs as RGB WebP, scaled down to at most SIDE pixels."""
    folder.mkdir(exist_ok=True)
    for name, (source, box) in PHOTOS.items():
        picture = Image.fromarray(getattr(skimage.data, source)()).convert("RGB")
        if box:
            picture = picture.crop(box)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(folder / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    digits(target)
    photos(target / "photos10")
