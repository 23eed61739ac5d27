"""The image processor of a captioner trained with DiCO: CLIP's own preprocessing.

It resizes the short side to the captioner's image size with Pillow's bicubic filter, and crops the
centre. The image processors of transformers for CLIP give other pixels: their crop is off by one
pixel if a margin is odd, or they resize with torchvision, which rounds differently. EXIF
orientation is not applied.
"""

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BatchFeature, ImageProcessingMixin


class DicoImageProcessor(ImageProcessingMixin):
    """Converts images (Pillow, or bytes [height, width, 3]) to `pixel_values` [images, 3, side, side]."""

    model_input_names = ["pixel_values"]

    def __call__(self, images, return_tensors=None, **_):
        images = images if isinstance(images, (list, tuple)) else [images]
        pixels = [self.pixels(image) for image in images]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def pixels(self, image):
        """One image, resized, cropped and normalized, [3, side, side]."""
        image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        square = resize_and_crop(image.convert("RGB"), self.crop_size["height"])
        values = np.asarray(square, dtype=np.float32) / np.float32(255)
        mean = np.asarray(self.image_mean, dtype=np.float32)
        std = np.asarray(self.image_std, dtype=np.float32)
        return ((values - mean) / std).transpose(2, 0, 1)


def resize_and_crop(image, side):
    """Resizes the short side of an image to `side`, and crops the centre to `side` x `side`."""
    short = min(image.size)
    width, height = (side if length == short else side * length // short for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    # Python rounds half to even, as torchvision's `CenterCrop` does.
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
