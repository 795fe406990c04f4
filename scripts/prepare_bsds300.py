"""Patches of natural images for density estimation, from the images of BSDS300.

python scripts/prepare_bsds300.py IMAGES data/bsds300.npz

IMAGES is the folder of the data set, or that of BSDS500, with `train/` (200 images) and `test/` or `val/` (100 images). As in the
literature (Uria, Murray and Larochelle 2013; Papamakarios, Pavlakou and Murray 2017): grey values, 8 x 8 patches at random places, the same
number from every image, uniform noise added, divided by 256, the mean of each patch taken away, and the last pixel, which that makes
redundant, left out. A million patches to train on and 50,000 to validate on come from the training images, 250,000 to test on from the
others. The patches of the literature were drawn at other places, so log-likelihoods agree with theirs up to a few tenths of a nat.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 8


def grey(path: Path) -> np.ndarray:
    """The luminance of an image in whole numbers, as MATLAB's rgb2gray has it."""
    return np.rint(np.asarray(Image.open(path).convert("RGB"), np.float64) @ [0.2989, 0.5870, 0.1140])


def patches(image: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` patches of an image, prepared, of 63 numbers each."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))
    rows, columns = (rng.integers(length, size=count) for length in windows.shape[:2])
    x = windows[rows, columns].reshape(count, -1)
    x = (x + rng.uniform(size=x.shape)) / 256
    return (x - x.mean(axis=1, keepdims=True))[:, :-1].astype(np.float32)


def split(folder: Path, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The patches of every image of a folder."""
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise SystemExit(f"there are no .jpg images in {folder}; expected the folder of BSDS300 or BSDS500 with train/ and test/ or val/")
    return [patches(grey(file), count, rng) for file in files]


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with train/ and test/ or val/")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    train = split(arguments.images / "train", 5250, rng)
    other = arguments.images / "test" if (arguments.images / "test").is_dir() else arguments.images / "val"
    test = split(other, 2500, rng)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        arguments.out,
        train=rng.permutation(np.concatenate([p[:5000] for p in train])),
        validation=np.concatenate([p[5000:] for p in train]),
        test=np.concatenate(test),
    )
    print(f"wrote {arguments.out}: {5000 * len(train)} patches to train on, {250 * len(train)} to validate, {2500 * len(test)} to test")


if __name__ == "__main__":
    main()
