"""Writes JPEGs like those of COCO, from scikit-image's photographs: 640 x 480, 4:2:0, about 100 kB.

usage: photographs.py FOLDER
"""

import pathlib
import random
import sys

import skimage.data
from PIL import Image

COUNT = 64
SIZE = (640, 480)
SOURCES = ("astronaut", "chelsea", "coffee", "rocket")


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Image.fromarray(getattr(skimage.data, name)()) for name in SOURCES]
    draw = random.Random(1)
    for number in range(COUNT):
        source = sources[number % len(sources)]
        # Each crop has another offset and scale, so that no two files are equal.
        height = draw.uniform(0.8, 1) * min(source.height, source.width * SIZE[1] / SIZE[0])
        width = height * SIZE[0] / SIZE[1]
        left, top = draw.uniform(0, source.width - width), draw.uniform(0, source.height - height)
        crop = source.resize(SIZE, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
        crop.save(folder / f"{number:03}.jpg", quality=96)


if __name__ == "__main__":
    main()
