"""Images of several requests in one forward pass, each with the result that it gets alone."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image

from glip.detector import Detector
from glip.integrations.messages import Question
from glip.integrations.serve_options import ServeConfig
from glip.processor import padded_size
from glip.structures import Detections, Prompt


@dataclass(eq=False)
class _Job:
    """An image that waits for its detections; jobs of one key share a pass of the image encoder."""

    question: Question
    image: Image.Image
    key: object
    result: Future[Detections] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def words(self) -> tuple[Prompt | None, str]:
        """Jobs of the same words (and options) share a pass of the head."""
        return self.question.prompt, repr(self.question.options)


class Batcher:
    """Detects on one thread; images that are resized to one padded size share a forward pass.

    Results depend on no other request: only images of equal padded size are together, and each prompt is grounded
    without the others. (In a batch a product may be summed in another order: the last digit of a float can differ.)

    Args:
        detectors: one for each task; "" is the model itself.
        config: most images of a pass, the longest wait for them, and how many encoded prompts are kept.
        on_batch: called with the number of images of each pass.
    """

    def __init__(
        self, detectors: Mapping[str, Detector], config: ServeConfig, on_batch: Callable[[int], object]
    ) -> None:
        self._detectors, self._config, self._on_batch = detectors, config, on_batch
        self._encode = lru_cache(config.text_cache)(lambda task, prompt: detectors[task].encode_text(prompt))
        self._jobs: list[_Job] = []
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="glip-batcher", daemon=True)
        self._thread.start()

    def submit(self, question: Question, image: Image.Image) -> Future[Detections]:
        """Ask for the detections of an RGB image; one that is cancelled before its pass begins is left out."""
        size = padded_size([self._detectors[question.task].processor.resized_size(image)])
        job = _Job(question, image, (question.task, size))
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job.result

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                batch = self._take()
            started = [job for job in batch if job.result.set_running_or_notify_cancel()]
            if started:
                self._on_batch(len(started))
                with _failures_to(started):
                    self._detect(started)

    def _take(self) -> list[_Job]:
        """The job that came first with others of its key, after waiting for more if they are few."""
        first = self._jobs[0]

        def alike() -> list[_Job]:
            return [job for job in self._jobs if job.key == first.key][: self._config.batch_size]

        left = first.since + self._config.wait_ms / 1000 - time.monotonic()
        self._changed.wait_for(lambda: len(alike()) == self._config.batch_size or self._closing, timeout=max(left, 0))
        batch = alike()
        self._jobs = [job for job in self._jobs if job not in batch]
        return batch

    def _detect(self, jobs: Sequence[_Job]) -> None:
        """Encode the prompts, then the images together, then ground each prompt in its images."""
        task, texts = jobs[0].question.task, dict[Any, Any]()
        for job in jobs:
            with _failures_to([job]):
                texts[job.words] = self._encode(task, job.question.prompt)
        jobs = [job for job in jobs if not job.result.done()]
        if not jobs:
            return
        encoded = self._detectors[task].encode_image([job.image for job in jobs])
        for words, text in texts.items():
            places = [place for place, job in enumerate(jobs) if job.words == words]
            with _failures_to([jobs[place] for place in places]):
                options: Any = {"batch_size": self._config.batch_size, **jobs[places[0]].question.options}
                found = self._detectors[task].ground(encoded.select(places), text, **options)
                for place, detections in zip(places, found, strict=True):
                    jobs[place].result.set_result(detections)


@contextmanager
def _failures_to(jobs: Sequence[_Job]) -> Iterator[None]:
    """An error is the result of these jobs; the thread goes on."""
    try:
        yield
    except Exception as error:
        for job in jobs:
            if not job.result.done():
                job.result.set_exception(error)
