"""Expected pixels of unusual images: decoded by Pillow, resized and cropped by torchvision.

Writes images.json, the inputs, and NAME.SIZE.png for each input and size. If transformers'
CLIPImageProcessor crops at another offset, because it rounds down, writes NAME.SIZE.floor.png with
its result.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL
import skimage
import skimage.data
import torchvision
from PIL import Image, ImageDraw
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from transformers import CLIPImageProcessor

import common

SEED = 48
TARGETS = {"golden": (48,), "full": (224, 48)}
VARIANTS = 300
# Photographs in the package of scikit-image.
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "moon", "page", "text", "clock")


@dataclass(frozen=True)
class Input:
    """An input file: its name, which describes the case, and its bytes."""

    name: str
    data: bytes


def encode(image: Image.Image, form: str, **settings) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **settings)
    return sink.getvalue()


def draw_image(width: int, height: int, seed: int = SEED, noise: float = 12.0) -> Image.Image:
    """Draws an image with features of photographs: gradients, edges, thin lines and grain."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    gradients = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 127 * numpy.sin((x + y) / 9)]
    image = Image.fromarray(numpy.stack(gradients, axis=2).astype(numpy.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        corners = sorted(random.integers(0, width, 2).tolist()), sorted(random.integers(0, height, 2).tolist())
        (left, right), (top, bottom) = corners
        pen.ellipse((left, top, right, bottom), fill=tuple(random.integers(0, 256, 3).tolist()))
        pen.line((left, bottom, right, top), fill=tuple(random.integers(0, 256, 3).tolist()))
    grain = random.normal(0, noise, (height, width, 3))
    return Image.fromarray(numpy.clip(numpy.asarray(image) + grain, 0, 255).astype(numpy.uint8))


def jpegs() -> Iterator[Input]:
    image = draw_image(100, 75)
    for name, subsampling in (("420", "4:2:0"), ("422", "4:2:2"), ("444", "4:4:4")):
        yield Input(f"jpeg_{name}.jpg", encode(image, "JPEG", quality=85, subsampling=subsampling))
    yield Input("jpeg_progressive.jpg", encode(image, "JPEG", quality=85, progressive=True))
    yield Input("jpeg_poor.jpg", encode(image, "JPEG", quality=20))
    yield Input("jpeg_odd_size.jpg", encode(draw_image(67, 83), "JPEG", quality=90))
    yield Input("jpeg_grey.jpg", encode(image.convert("L"), "JPEG", quality=85))
    yield Input("jpeg_cmyk.jpg", encode(image.convert("CMYK"), "JPEG", quality=85))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees; CLIP's preprocessing ignores it
    yield Input("jpeg_rotated.jpg", encode(image, "JPEG", quality=85, exif=exif))


def pngs() -> Iterator[Input]:
    image = draw_image(70, 60, noise=3)
    alpha = Image.fromarray(numpy.tile(numpy.linspace(0, 255, 70).astype(numpy.uint8), (60, 1)))
    transparent = image.copy()
    transparent.putalpha(alpha)
    grey = image.convert("L")
    grey_transparent = grey.copy()
    grey_transparent.putalpha(alpha)
    palette = image.quantize(32)
    deep = Image.fromarray((numpy.asarray(grey).astype(numpy.uint16) << 8) | 0x7F)
    yield Input("png_rgb.png", encode(image, "PNG", optimize=True))
    yield Input("png_rgba.png", encode(transparent, "PNG", optimize=True))
    yield Input("png_grey.png", encode(grey, "PNG", optimize=True))
    yield Input("png_grey_alpha.png", encode(grey_transparent, "PNG", optimize=True))
    yield Input("png_palette.png", encode(palette, "PNG", optimize=True))
    yield Input("png_palette_transparent.png", encode(palette, "PNG", optimize=True, transparency=3))
    yield Input("png_one_bit.png", encode(grey.convert("1"), "PNG", optimize=True))
    yield Input("png_grey_16.png", encode(deep, "PNG", optimize=True))


def webps() -> Iterator[Input]:
    image = draw_image(90, 70, noise=4)
    transparent = image.copy()
    transparent.putalpha(128)
    yield Input("webp_lossy.webp", encode(image, "WEBP", quality=80))
    yield Input("webp_lossless.webp", encode(draw_image(60, 50, noise=2), "WEBP", lossless=True))
    yield Input("webp_alpha.webp", encode(transparent, "WEBP", quality=80))


def shapes() -> Iterator[Input]:
    """Yields unusual sizes as PNG, which tests only resizing and cropping."""
    tiny, odd = ((1, 1), (1, 90), (90, 1), (2, 3), (5, 5)), ((47, 49), (49, 97), (51, 48), (130, 31), (50, 125))
    for width, height in (*tiny, *odd, (48, 48), (48, 64)):
        yield Input(f"shape_{width}x{height}.png", encode(draw_image(width, height, noise=3), "PNG", optimize=True))


def photographs() -> Iterator[Input]:
    """Yields photographs as PNG and as JPEG of two qualities."""
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)())
        yield Input(f"photo_{name}.png", encode(image, "PNG"))
        for quality in (75, 95):
            yield Input(f"photo_{name}_{quality}.jpg", encode(image, "JPEG", quality=quality))


def variants() -> Iterator[Input]:
    """Yields random crops of photographs with random settings of the encoders."""
    random = numpy.random.default_rng(SEED)
    colour = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]
    writers: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
        ("jpg", lambda image: encode(image, "JPEG", quality=int(random.integers(30, 100)))),
        ("jpg", lambda image: encode(image, "JPEG", progressive=True, subsampling=int(random.integers(0, 3)))),
        ("png", lambda image: encode(image, "PNG")),
        ("webp", lambda image: encode(image, "WEBP", quality=int(random.integers(30, 100)))),
    )
    for number in range(VARIANTS):
        image = colour[number % len(colour)]
        width, height = (int(random.integers(16, side)) for side in image.size)
        left, top = (int(random.integers(0, full_side - side)) for full_side, side in zip(image.size, (width, height)))
        ending, write = writers[int(random.integers(0, len(writers)))]
        yield Input(f"variant{number}.{ending}", write(image.crop((left, top, left + width, top + height))))


def inputs(size: str) -> Iterator[Input]:
    yield from itertools.chain(jpegs(), pngs(), webps(), shapes())
    if size == "full":
        yield from itertools.chain(photographs(), variants())


def preprocess(path: Path, side: int) -> Image.Image:
    """Returns CLIP's input as 8-bit pixels."""
    chain = Compose([Resize(side, InterpolationMode.BICUBIC), CenterCrop(side)])
    with Image.open(path) as image:
        return chain(image.convert("RGB"))


def preprocess_by_transformers(path: Path, side: int) -> Image.Image:
    """Returns CLIP's input in transformers, which rounds the crop offset down, as 8-bit pixels."""
    extractor = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_rescale=False,
        do_normalize=False,
    )
    with Image.open(path) as image:
        pixels = extractor(image, input_data_format="channels_last", data_format="channels_last")["pixel_values"][0]
    return Image.fromarray(pixels.astype(numpy.uint8))


def case(input_file: Input, targets: tuple[int, ...], out: Path) -> dict:
    path = out / input_file.name
    path.write_bytes(input_file.data)
    expected, floor = {}, {}
    for side in targets:
        square, other = preprocess(path, side), preprocess_by_transformers(path, side)
        expected[str(side)] = f"{path.stem}.{side}.png"
        square.save(out / expected[str(side)], optimize=True)
        if square.tobytes() != other.tobytes():
            floor[str(side)] = f"{path.stem}.{side}.floor.png"
            other.save(out / floor[str(side)], optimize=True)
    with Image.open(path) as image:
        properties = {"mode": image.mode, "width": image.width, "height": image.height}
    return {"file": input_file.name} | properties | {"expected": expected, "floor": floor}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    image_entries = [case(input_file, TARGETS[arguments.size], arguments.out) for input_file in inputs(arguments.size)]
    versions = common.versions() | {
        "Pillow": PIL.__version__,
        "torchvision": torchvision.__version__,
        "scikit-image": skimage.__version__,
    }
    common.write_json(arguments.out / "images.json", {"versions": versions, "images": image_entries})
    print(f"{len(image_entries)} images")


if __name__ == "__main__":
    main()
