"""The pixels that a captioner sees which was trained with DiCO: those of CLIP's own preprocessing.

The short side is scaled to the captioner's image size, by Pillow and bicubic, and the centre is cut
out. The image processors of transformers for CLIP place the cut one pixel beside it where a margin
is odd, or scale with torchvision, which rounds otherwise. EXIF orientation is not applied.
"""

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BatchFeature, ImageProcessingMixin


class DicoImageProcessor(ImageProcessingMixin):
    """Images, Pillow's or arrays of bytes [height, width, 3], to `pixel_values` [images, 3, side, side]."""

    model_input_names = ["pixel_values"]

    def __call__(self, images, return_tensors=None, **_):
        images = images if isinstance(images, (list, tuple)) else [images]
        pixels = [self.pixels(image) for image in images]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def pixels(self, image):
        """One image, normalised, [3, side, side]."""
        image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        square = centre(image.convert("RGB"), self.crop_size["height"])
        values = np.asarray(square, dtype=np.float32) / np.float32(255)
        mean = np.asarray(self.image_mean, dtype=np.float32)
        deviation = np.asarray(self.image_std, dtype=np.float32)
        return ((values - mean) / deviation).transpose(2, 0, 1)


def centre(image, side):
    """The central `side` x `side` pixels, after the short side was scaled to `side`."""
    short = min(image.size)
    width, height = (side if length == short else side * length // short for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    # As torchvision's `CenterCrop`: half a pixel goes to the even side.
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
