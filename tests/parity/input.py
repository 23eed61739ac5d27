"""Times CLIP's preprocessing by Pillow and torchvision on one core, like ``worker bench input``.

``draft`` uses Pillow's draft mode, in which libjpeg scales by powers of two: it is faster, but the
pixels differ from those of CLIP's training.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy
import torch
from PIL import Image, features
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in SUFFIXES)[: arguments.images]
    square = Compose([Resize(arguments.size, interpolation=InterpolationMode.BICUBIC), CenterCrop(arguments.size)])

    def read(path: Path, *, draft: bool) -> numpy.ndarray:
        with Image.open(path) as image:
            if draft:
                image.draft("RGB", (arguments.size, arguments.size))
            return numpy.asarray(square(image.convert("RGB")))

    def images_per_core_s(*, draft: bool) -> float:
        seconds = []
        for _ in range(arguments.steps + 1):
            started = time.process_time()
            for path in paths:
                read(path, draft=draft)
            seconds.append(time.process_time() - started)
        # The first round is a warm-up.
        return len(paths) / statistics.median(seconds[1:])

    print(
        json.dumps(
            {
                "images_per_core_s": images_per_core_s(draft=False),
                "draft_images_per_core_s": images_per_core_s(draft=True),
                "images": len(paths),
                "size": arguments.size,
                "pillow": Image.__version__,
                "libjpeg_turbo": features.version("libjpeg_turbo"),
            }
        )
    )


if __name__ == "__main__":
    main()
