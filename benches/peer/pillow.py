"""From JPEG bytes to CLIP's input as its processor in Python does it, timed.

A line of input names a file and how often to decode it; the line of output that answers is the
median time in seconds. The first line of output is Pillow's version.
"""

import io
import statistics
import sys
import time

import numpy
import PIL
from PIL import Image, ImageOps

SIDE = 224
MEAN = numpy.array([0.48145466, 0.4578275, 0.40821073], dtype=numpy.float32)
DEVIATION = numpy.array([0.26862954, 0.26130258, 0.27577711], dtype=numpy.float32)


def tensor(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    width, height = image.size
    short = min(width, height)
    wide, high = SIDE * width // short, SIDE * height // short
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - SIDE) // 2, (high - SIDE) // 2
    image = image.crop((left, top, left + SIDE, top + SIDE))
    pixels = numpy.asarray(image, dtype=numpy.float32) / 255
    return numpy.ascontiguousarray(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1))


def timed(data):
    started = time.perf_counter()
    tensor(data)
    return time.perf_counter() - started


print(PIL.__version__, flush=True)
for line in sys.stdin:
    path, times = line.rsplit(" ", 1)
    with open(path, "rb") as file:
        content = file.read()
    print(statistics.median(timed(content) for _ in range(int(times))), flush=True)
