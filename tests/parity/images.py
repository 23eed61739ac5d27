"""Expected pixels of odd images: decoded and converted by Pillow, scaled and cropped by torchvision.

Writes the inputs, for each of them and each size NAME.SIZE.png, and images.json. Where transformers' CLIPImageProcessor
crops elsewhere, because it rounds the offset down, NAME.SIZE.floor.png has what it makes.
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

import cases

SEED = 48
TARGETS = {"golden": (48,), "full": (224, 48)}
VARIANTS = 300
# Photographs that scikit-image carries within its package.
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "moon", "page", "text", "clock")


@dataclass(frozen=True)
class Input:
    """A file's bytes and where it is hard."""

    name: str
    data: bytes


def encoded(image: Image.Image, form: str, **settings) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **settings)
    return sink.getvalue()


def drawn(width: int, height: int, seed: int = SEED, noise: float = 12.0) -> Image.Image:
    """A picture with what photographs have: slopes, edges, thin lines and grain."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    slopes = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 127 * numpy.sin((x + y) / 9)]
    image = Image.fromarray(numpy.stack(slopes, axis=2).astype(numpy.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        corners = sorted(random.integers(0, width, 2).tolist()), sorted(random.integers(0, height, 2).tolist())
        (left, right), (top, bottom) = corners
        pen.ellipse((left, top, right, bottom), fill=tuple(random.integers(0, 256, 3).tolist()))
        pen.line((left, bottom, right, top), fill=tuple(random.integers(0, 256, 3).tolist()))
    grain = random.normal(0, noise, (height, width, 3))
    return Image.fromarray(numpy.clip(numpy.asarray(image) + grain, 0, 255).astype(numpy.uint8))


def jpegs() -> Iterator[Input]:
    image = drawn(100, 75)
    for name, subsampling in (("420", "4:2:0"), ("422", "4:2:2"), ("444", "4:4:4")):
        yield Input(f"jpeg_{name}.jpg", encoded(image, "JPEG", quality=85, subsampling=subsampling))
    yield Input("jpeg_progressive.jpg", encoded(image, "JPEG", quality=85, progressive=True))
    yield Input("jpeg_poor.jpg", encoded(image, "JPEG", quality=20))
    yield Input("jpeg_odd_size.jpg", encoded(drawn(67, 83), "JPEG", quality=90))
    yield Input("jpeg_grey.jpg", encoded(image.convert("L"), "JPEG", quality=85))
    yield Input("jpeg_cmyk.jpg", encoded(image.convert("CMYK"), "JPEG", quality=85))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter; CLIP's preprocessing does not
    yield Input("jpeg_rotated.jpg", encoded(image, "JPEG", quality=85, exif=exif))


def pngs() -> Iterator[Input]:
    image = drawn(70, 60, noise=3)
    alpha = Image.fromarray(numpy.tile(numpy.linspace(0, 255, 70).astype(numpy.uint8), (60, 1)))
    transparent = image.copy()
    transparent.putalpha(alpha)
    grey = image.convert("L")
    grey_transparent = grey.copy()
    grey_transparent.putalpha(alpha)
    palette = image.quantize(32)
    deep = Image.fromarray((numpy.asarray(grey).astype(numpy.uint16) << 8) | 0x7F)
    yield Input("png_rgb.png", encoded(image, "PNG", optimize=True))
    yield Input("png_rgba.png", encoded(transparent, "PNG", optimize=True))
    yield Input("png_grey.png", encoded(grey, "PNG", optimize=True))
    yield Input("png_grey_alpha.png", encoded(grey_transparent, "PNG", optimize=True))
    yield Input("png_palette.png", encoded(palette, "PNG", optimize=True))
    yield Input("png_palette_transparent.png", encoded(palette, "PNG", optimize=True, transparency=3))
    yield Input("png_one_bit.png", encoded(grey.convert("1"), "PNG", optimize=True))
    yield Input("png_grey_16.png", encoded(deep, "PNG", optimize=True))


def webps() -> Iterator[Input]:
    image = drawn(90, 70, noise=4)
    transparent = image.copy()
    transparent.putalpha(128)
    yield Input("webp_lossy.webp", encoded(image, "WEBP", quality=80))
    yield Input("webp_lossless.webp", encoded(drawn(60, 50, noise=2), "WEBP", lossless=True))
    yield Input("webp_alpha.webp", encoded(transparent, "WEBP", quality=80))


def shapes() -> Iterator[Input]:
    """As PNG, so that only scaling and cropping are looked at."""
    tiny, odd = ((1, 1), (1, 90), (90, 1), (2, 3), (5, 5)), ((47, 49), (49, 97), (51, 48), (130, 31), (50, 125))
    for width, height in (*tiny, *odd, (48, 48), (48, 64)):
        yield Input(f"shape_{width}x{height}.png", encoded(drawn(width, height, noise=3), "PNG", optimize=True))


def photographs() -> Iterator[Input]:
    """Real ones, as PNG and as JPEG of two qualities."""
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)())
        yield Input(f"photo_{name}.png", encoded(image, "PNG"))
        for quality in (75, 95):
            yield Input(f"photo_{name}_{quality}.jpg", encoded(image, "JPEG", quality=quality))


def variants() -> Iterator[Input]:
    """Parts of photographs of any shape under any settings of the encoders."""
    random = numpy.random.default_rng(SEED)
    colour = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]
    writers: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
        ("jpg", lambda image: encoded(image, "JPEG", quality=int(random.integers(30, 100)))),
        ("jpg", lambda image: encoded(image, "JPEG", progressive=True, subsampling=int(random.integers(0, 3)))),
        ("png", lambda image: encoded(image, "PNG")),
        ("webp", lambda image: encoded(image, "WEBP", quality=int(random.integers(30, 100)))),
    )
    for number in range(VARIANTS):
        image = colour[number % len(colour)]
        width, height = (int(random.integers(16, side)) for side in image.size)
        left, top = (int(random.integers(0, whole - part)) for whole, part in zip(image.size, (width, height)))
        ending, write = writers[int(random.integers(0, len(writers)))]
        yield Input(f"variant{number}.{ending}", write(image.crop((left, top, left + width, top + height))))


def inputs(size: str) -> Iterator[Input]:
    yield from itertools.chain(jpegs(), pngs(), webps(), shapes())
    if size == "full":
        yield from itertools.chain(photographs(), variants())


def prepared(path: Path, side: int) -> Image.Image:
    """What CLIP sees, as 8-bit pixels."""
    chain = Compose([Resize(side, InterpolationMode.BICUBIC), CenterCrop(side)])
    with Image.open(path) as image:
        return chain(image.convert("RGB"))


def extracted(path: Path, side: int) -> Image.Image:
    """What CLIP sees in transformers, whose extractor rounds the offset of the crop down; 8-bit pixels."""
    extractor = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_rescale=False,
        do_normalize=False,
    )
    with Image.open(path) as image:
        pixels = extractor(image, input_data_format="channels_last", data_format="channels_last")["pixel_values"][0]
    return Image.fromarray(pixels.astype(numpy.uint8))


def case(given: Input, targets: tuple[int, ...], out: Path) -> dict:
    path = out / given.name
    path.write_bytes(given.data)
    expected, floor = {}, {}
    for side in targets:
        square, other = prepared(path, side), extracted(path, side)
        expected[str(side)] = f"{path.stem}.{side}.png"
        square.save(out / expected[str(side)], optimize=True)
        if square.tobytes() != other.tobytes():
            floor[str(side)] = f"{path.stem}.{side}.floor.png"
            other.save(out / floor[str(side)], optimize=True)
    with Image.open(path) as image:
        described = {"mode": image.mode, "width": image.width, "height": image.height}
    return {"file": given.name} | described | {"expected": expected, "floor": floor}


def main() -> None:
    arguments = cases.arguments(__doc__)
    described = [case(given, TARGETS[arguments.size], arguments.out) for given in inputs(arguments.size)]
    versions = cases.versions() | {
        "Pillow": PIL.__version__,
        "torchvision": torchvision.__version__,
        "scikit-image": skimage.__version__,
    }
    cases.write_json(arguments.out / "images.json", {"versions": versions, "images": described})
    print(f"{len(described)} images")


if __name__ == "__main__":
    main()
