"""Track objects through the frames of a video: the same object, the same number. ByteTrack of the trackers package."""

from collections import defaultdict
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch

from glip.errors import needs
from glip.structures import Detections

_KEPT, _STEPS = 1.0, 3  # seconds, and frames at least, for which a track goes on without a detection


class Tracker:
    """The tracks of one video. Phrases are tracked apart, so that a number never passes from a car to a person.

    A track begins with the second detection of an object in a row, so that one false detection makes none.

    Args:
        rate: frames per second that it will get, about.

    Raises:
        GlipError: the trackers package is not installed.
    """

    def __init__(self, rate: float) -> None:
        with needs("track"):
            from trackers import ByteTrackTracker
        lost = ceil(30 * max(_KEPT, _STEPS / rate))  # in frames of 30 fps
        options: dict[str, Any] = {"frame_rate": rate, "lost_track_buffer": lost}
        options |= {"track_activation_threshold": 0.0, "high_conf_det_threshold": 0.0}  # what is found is above one
        self._of_label: dict[int, Any] = defaultdict(lambda: ByteTrackTracker(**options))
        self._numbers: dict[tuple[int, int], int] = {}

    def __call__(self, found: Detections, time: float) -> Detections:
        """The detections of the next frame, at a time in seconds, with their ``tracks``."""
        tracks = torch.full_like(found.labels, -1)
        for label in {*self._of_label, *found.labels.tolist()}:
            [places] = np.nonzero((found.labels == label).cpu().numpy())
            own = found[places].to_supervision()
            own.data = {"place": places}
            tracked = self._of_label[label].update(own, timestamp=time)  # in another order
            for place, number in zip(tracked.data.get("place", ()), tracked.tracker_id, strict=True):
                if number >= 0:
                    tracks[place] = self._numbers.setdefault((label, int(number)), len(self._numbers) + 1)
        return replace(found, tracks=tracks)
