"""The options of ``glip detect``."""

from typing import Literal

from glip.config import COMPETE, DTYPE, Count, CountOrZero, Dtype, Rate, Share, Side, option
from glip.schema import checked

Output = Literal["table", "jsonl", "json", "csv", "coco", "yolo", "labels"]


@checked
class DetectConfig:
    """What ``glip detect`` finds and writes."""

    threshold: Share | None = option(None, "lowest score shown (default: the task's or the model's; 0.05 is the least)")
    nms: Share | None = option(None, "IoU above which the lower-scored of two boxes of a class is removed; 1: off")
    max_detections: CountOrZero | None = option(None, "maximum detections per image; 0: no limit")
    compete: Rate | None = option(None, COMPETE)
    image_size: Side | None = option(None, "images are resized to this short side, in pixels (default: the model's)")
    tile: Side | None = option(None, "also detect in tiles of this side in pixels, for small things in large images")
    overlap: float = option(0.2, "share of a tile's side that it shares with the next one", ge=0, le=0.8)
    recursive: bool = option(False, "also search the sub-folders of folders")
    format: tuple[Output, ...] = option((), "printed or written to OUT/results; may be repeated (default: table)")
    out: str = option("out", "folder for drawn images and results; '-' prints a JSON line per image and writes nothing")
    draw: bool = option(True, "write the drawn images")
    scores: bool = option(True, "write scores into the drawn images")
    crops: str | None = option(None, "folder for the part of the image in each box, in a sub-folder for each phrase")
    masks: str | None = option(None, "SAM model of transformers (folder or hub name): also give each box its mask")
    every: Count = option(1, "of a video, detect in each N-th frame only")
    frames: CountOrZero = option(0, "of a video or webcam, detect in this many frames at most; 0: in all")
    track: bool = option(False, "number the objects of a video: the same object has the same number in all frames")
    allow_download: bool = option(False, "download images that are given as URLs (https, up to 50 MB each)")
    quiet: bool = option(False, "print errors only")
    batch_size: Count = option(4, "images per forward pass")
    dtype: Dtype = option("float32", DTYPE)
