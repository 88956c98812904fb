"""How many captions a second the phrase finder reads on one core.

    OMP_NUM_THREADS=1 python tools/benchmark_phrases.py ../shared/data/text/coco_captions_5000.txt [--rounds 3]

One caption a line. Seconds of the wall clock and of the processor are printed: they differ where something else runs.
Not a timed test.
"""

import argparse
import os
import time
from pathlib import Path

from glip.text.phrases import PhraseFinder


def main() -> None:
    """Read all captions a few times and print the speed of each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--pipeline", help="of spaCy, instead of the bundled one")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    captions = args.captions.read_text(encoding="utf-8").splitlines()
    start = time.perf_counter()
    find = PhraseFinder(args.pipeline)
    print(f"loaded in {time.perf_counter() - start:.2f} s, spaCy's import included")
    find.many(captions[:500])
    for _ in range(args.rounds):
        start, busy = time.perf_counter(), time.process_time()
        phrases = sum(map(len, find.many(captions)))
        wall, busy = time.perf_counter() - start, time.process_time() - busy
        print(
            f"{len(captions)} captions, {phrases} phrases: {len(captions) / wall:.0f} captions/s, "
            f"{len(captions) / busy:.0f} per second of a core; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
