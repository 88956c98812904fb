"""The detector over a set of samples: each picture asked for its own words, whatever can be found kept for scoring."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from glip.data.picture import PictureError, open_any
from glip.data.sets import Tally
from glip.detector import Detector, EncodedText
from glip.structures import Detections, Prompt, Sample

_KEPT_TEXTS = 4  # vocabularies whose encoding is kept: a set has one, drawn pictures have one each


def detect_all(
    detector: Detector, samples: Sequence[Sample], *, tally: Tally | None = None
) -> Iterator[tuple[Sample, Detections]]:
    """Every sample with what the detector finds of its prompt, or of all names of its vocabulary.

    One picture at a time, with threshold 0 and the detector's cap. A vocabulary is encoded once for all pictures
    that share it.

    Args:
        detector: the model, its processor and its defaults.
        samples: what to look at; label ``i`` of a detection is phrase ``i`` of the prompt or name ``i`` of the
            vocabulary.
        tally: counts pictures passed over: unreadable, without words, or with a caption that the model cannot read.

    Raises:
        ValueError: a vocabulary with an empty name, or one that the model cannot read.
    """
    tally = Tally() if tally is None else tally

    @lru_cache(maxsize=_KEPT_TEXTS)
    def encoded(names: tuple[str, ...]) -> EncodedText:
        return detector.encode_text(Prompt.from_names(names))

    for index in range(len(samples)):
        sample = samples[index]
        place = f"sample {index}, picture {sample.image_id}"
        if sample.prompt is None and not sample.vocabulary:
            tally.note("picture without words to look for", place)
            continue
        try:
            picture = open_any(sample.picture)
        except PictureError as error:
            tally.note("unreadable picture", str(error))
            continue
        if sample.prompt is None:
            text = encoded(sample.vocabulary)
        else:
            try:
                text = detector.encode_text(sample.prompt)
            except ValueError as error:
                tally.note("caption that the model cannot read", f"{place}: {error}")
                continue
        [found] = detector.ground(detector.encode_image(picture), text, threshold=0.0)
        yield sample, found
