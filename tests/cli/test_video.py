"""Videos: frames and their times, what is broken, and ``glip detect`` with lines, annotated videos and tracks."""

import csv
import json
import os
import re
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from glip.data import video
from glip.data.video import read_video, video_header, write_video
from glip.errors import install_command
from glip.recipes import detect_files
from glip.recipes.track import Tracker
from glip.structures import Detections, Prompt
from glip.visualize import draw

LINES = "out/results/detections.jsonl"
TICKS = 60_000


def moving(number: int) -> Image.Image:
    """A red square on blue, further to the right in each frame."""
    image = Image.new("RGB", (96, 64), (20, 30, 200))
    ImageDraw.Draw(image).rectangle((number, 8, number + 24, 32), fill=(250, 0, 0))
    return image


def make_video(path: Path, times: list[float], options: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_image(moving(number))
            frame.time_base, frame.pts = Fraction(1, TICKS), round(time * TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def even_times(count: int) -> list[float]:
    return [number / 25 for number in range(count)]


@pytest.fixture
def clip(tmp_path) -> Path:
    return make_video(tmp_path / "clip.mp4", even_times(12))


@pytest.fixture
def detect(command_line, model):
    return lambda *arguments: command_line("detect", *arguments, "--model", model, "--device", "cpu")


def played(path: Path) -> list[float]:
    """The times of a video's frames, as a player shows them."""
    with av.open(str(path)) as container:
        return [round(frame.time, 3) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_frames_have_the_times_of_the_video(name, tmp_path):
    """Also where the rate varies; transport streams begin their clock at 1.4 s."""
    times = [0.0, 0.04, 0.5, 0.52, 1.7]
    file = make_video(tmp_path / name, times)
    frames = list(read_video(file))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.time for frame in frames] == pytest.approx(times, abs=2e-3)
    assert all(frame.image.mode == "RGB" and frame.image.size == (96, 64) for frame in frames)
    seconds = list(read_video(file, every=2))
    assert [frame.number for frame in seconds] == [0, 2, 4] and seconds[1].time == frames[2].time
    assert seconds[1].image.tobytes() == frames[2].image.tobytes() != frames[1].image.tobytes()


def test_the_number_of_frames_is_known_before(clip, tmp_path):
    assert video_header(clip) == (25.0, 12)
    assert video_header(make_video(tmp_path / "a.mkv", even_times(50))).frames == 50
    assert video_header("0").frames == 0, "a webcam has no end"


def test_clocks_that_stand_still_go_on(clip, monkeypatch):
    """Times always increase, since no player and no tracker takes others."""
    monkeypatch.setattr(video, "_TICKS", 100)
    broken = clip.with_name("b.ts")
    make_video(broken, [0, 0.04, 0.04 + 1 / TICKS, 0.08])
    times = [frame.time for frame in read_video(broken)]
    assert all(later - earlier > 0.009 for earlier, later in zip(times, times[1:], strict=False))


def test_a_turned_video_is_upright(clip, tmp_path):
    content = bytearray(clip.read_bytes())
    matrix = content.find(b"tkhd") + 44  # of the track: a quarter turn to the right, as telephones write it
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    frame = next(read_video(tmp_path / "turned.mp4"))
    assert frame.image.size == (64, 96)
    red, blue = frame.image.getpixel((64 - 20, 10)), frame.image.getpixel((64 - 20, 60))
    assert red[0] > 200 > red[2] and blue[2] > 150 > blue[0]


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_video_broken_in_the_middle(name, detect, tmp_path):
    """What was read is written, as lines and as a video that plays; Matroska simply ends where it is cut."""
    whole = make_video(tmp_path / f"whole{name[3:]}", even_times(100), {"movflags": "faststart"} if "4" in name else {})
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    code, out, err = detect(name, "dog", "--every", 4, "--format", "jsonl")
    first, last = err.splitlines()
    lines = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    assert code == 2 and 3 < len(lines) < 25 and out.startswith(f"{len(lines)} frames, ")
    assert first.startswith(f"glip detect: video '{name}' ") and first.endswith(" were read: get a complete copy of it")
    read, seconds = (float(number) for number in re.search(r"(\d+) frames \(([\d.]+) s\) were", first).groups())
    assert lines[-1]["frame"] == (read - 1) // 4 * 4
    assert -0.01 < seconds - read / 25 < 0.13  # up to three frames before the last one may be missing (B-frames)
    assert last == "1 of 1 files could not be read to the end"
    assert len(played(tmp_path / "out/cut.mp4")) == len(lines)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.mp4", None, "video 'none.mp4' is not there: check the path"),
        ("text.mp4", b"no video at all\n" * 99, "video 'text.mp4' cannot be opened (Invalid data"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n", "'list.mp4' cannot be opened"),
        ("other.mp4", b"ffconcat version 1.0\nfile clip.mp4\n", "'other.mp4' cannot be opened"),
        ("sound.mp4", b"", "video 'sound.mp4' contains no images: give a file with a video stream"),
        ("huge.mp4", b"", "video 'huge.mp4' is too large (96 x 64 pixels): scale it down"),
        ("77", None, "webcam '77' is not there: check the path, or connect the webcam"),
    ],
)
def test_what_is_no_video_is_one_sentence(name, content, words, detect, tmp_path, monkeypatch):
    if content:
        (tmp_path / name).write_bytes(content)
    elif name.startswith("sound"):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate = 8000
            container.mux([*stream.encode(frame), *stream.encode()])
    elif name.startswith("huge"):
        make_video(tmp_path / name, even_times(3))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    code, out, err = detect(name, "dog")
    assert code == 2 and out == "" and err.startswith("glip detect: ") and words in err.splitlines()[0]
    assert not list(tmp_path.glob("out/*.mp4"))


@pytest.mark.parametrize(
    ("package", "arguments", "words"),
    [
        ("av", (), f"av is not installed: {install_command('video')}"),
        ("trackers", ("--track",), f"trackers is not installed: {install_command('track')}"),
    ],
)
def test_a_missing_package_is_named(package, arguments, words, detect, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = detect("clip.mp4", "dog", *arguments)
    assert code == 2 and out == "" and err == f"glip detect: {words}\n"


def test_lines_table_and_annotated_video(detect, clip, tmp_path):
    times = [0.0, 0.04, 0.5, 0.52, 1.7]
    make_video(tmp_path / "vfr.mp4", times)
    moving(0).save(tmp_path / "photo.png")
    formats = [word for form in ("jsonl", "csv", "table") for word in ("--format", form)]
    code, out, err = detect("photo.png", "vfr.mp4", "clip.mp4", "a dog. cat", "--every", 2, *formats)
    assert code == 0 and err == "" and "10 frames, " in out and out.split()[:3] == ["phrase", "frames", "detections"]
    lines = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    assert "frame" not in lines[0] and [line["frame"] for line in lines[1:]] == [0, 2, 4, 0, 2, 4, 6, 8, 10]
    assert [line["time"] for line in lines[1:4]] == [0.0, 0.5, 1.7] and lines[1]["image"] == "vfr.mp4"
    assert played(tmp_path / "out/vfr.mp4") == [0.0, 0.5, 1.7], "in step with the video"
    assert played(tmp_path / "out/clip.mp4") == [0.0, 0.08, 0.16, 0.24, 0.32, 0.4]
    rows = list(csv.DictReader((tmp_path / "out/results/detections.csv").open()))
    assert [*rows[0]][:5] == ["image", "frame", "time", "width", "height"] and [*rows[0]][-1] == "track"
    assert {(row["frame"], row["time"]) for row in rows} >= {("", ""), ("2", "0.5"), ("10", "0.4")}
    code, out, _ = detect("clip.mp4", "dog", "--out", "-", "--frames", 3)
    assert code == 0 and [json.loads(line)["frame"] for line in out.splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clip.mp4", "dog", "--format", "coco"), "--format coco is for image files, and 'clip.mp4' is none: give"),
        (("photo.png", "dog", "--track"), "--track is for videos, and none is given: leave it out"),
        ((".", "dog", "--every", 0), "--every: got 0: give a whole number, 1 or more"),
        (("folder", "dog"), "contains no image: 1 video (x.mov) skipped: give videos by name or pattern, such as"),
        (("photo.png", "dog", "clip.mp4"), "the file 'clip.mp4' comes after 'dog', which is none"),
    ],
)
def test_what_a_video_does_not_allow(arguments, words, detect, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("glip.detector.Detector.from_pretrained", None)  # refused before a model is loaded
    moving(0).save(tmp_path / "photo.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x.mov").touch()
    code, out, err = detect(*arguments)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1


@pytest.mark.parametrize(("source", "number", "ends"), [("clip.mp4", 2, 130), ("clip.mp4", 15, 143), ("0", 2, 0)])
def test_a_stopped_run_leaves_a_whole_video(source, number, ends, detect, clip, tmp_path, monkeypatch):
    """And whole files of what was found so far, after Ctrl-C or SIGTERM; a webcam has no other end."""
    monkeypatch.setattr(video, "_webcam", lambda number: av.open(str(clip)))

    def stopped(source, *, every):
        for frame in read_video(source, every=every):
            if frame.number == 5:
                os.kill(os.getpid(), number)
            yield frame

    monkeypatch.setattr(detect_files, "read_video", stopped)
    code, out, err = detect(source, "dog", "--format", "json", "--batch-size", 2)
    done = len(json.loads((tmp_path / "out/results/detections.json").read_text()))
    said = f"interrupted: the results of {done} frames are written; the same command starts over\n"
    assert code == ends and 4 <= done < 12 and out.startswith(f"{done} frames, ") and err.endswith(said if ends else "")
    drawn = f"{Path(source).stem}.mp4"
    assert len(played(tmp_path / "out" / drawn)) == done
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [drawn, "results"]


def test_a_failed_run_leaves_the_old_video(tmp_path):
    with pytest.raises(KeyError), write_video(tmp_path / "a.mp4", 25) as add:
        add(moving(0), 0.0)
        raise KeyError
    assert not list(tmp_path.iterdir())
    with write_video(tmp_path / "a.mp4", 25) as add:
        for number, size in enumerate([(31, 21), (40, 20), (10, 30)]):  # a first odd size, then others
            add(Image.new("RGB", size), number / 10)
    assert played(tmp_path / "a.mp4") == [0.0, 0.1, 0.2] and video_header(tmp_path / "a.mp4").frames == 3
    assert next(read_video(tmp_path / "a.mp4")).image.size == (30, 20)


def found_in(boxes: list[tuple[float, ...]], labels: list[int]) -> Detections:
    scores = torch.linspace(0.9, 0.5, len(boxes))
    return Detections(
        torch.tensor(boxes).reshape(-1, 4).float(), scores, torch.tensor(labels).long(), PROMPT, (240, 320)
    )


PROMPT = Prompt.from_names(["a car", "a person"])


def test_the_same_object_has_the_same_number():
    """Two cars cross, one is not seen for a while, a person walks where a car is; boxes come in changing order."""
    pytest.importorskip("trackers")
    tracker, numbers = Tracker(25), dict[str, set[int]]()
    for frame in range(60):
        things = {"right": (4.0 * frame, 20, 0), "left": (240 - 4.0 * frame, 60, 0), "person": (4.0 * frame + 5, 22, 1)}
        if 20 <= frame < 30:
            del things["left"]
        names = sorted(things, reverse=frame % 2 == 0)
        boxes = [(x, y, x + 50.0, y + 30.0) for x, y, _ in (things[name] for name in names)]
        found = tracker(found_in(boxes, [things[name][2] for name in names]), frame / 25)
        for name, track in zip(names, found.tracks.tolist(), strict=True):
            numbers.setdefault(name, set()).add(track)
    first = {name: own - {-1} for name, own in numbers.items()}
    assert all(len(own) == 1 for own in first.values()), numbers
    assert set.union(*first.values()) == {1, 2, 3}
    assert len(tracker(found_in([], []), 3.0)) == 0


def test_a_single_detection_is_no_track_and_rare_frames_are_tracked():
    pytest.importorskip("trackers")
    tracker = Tracker(0.5)  # a frame in two seconds
    tracks = [tracker(found_in([(10, 10, 60, 50)] * (time != 2), [0] * (time != 2)), 2.0 * time) for time in range(5)]
    assert [found.tracks.tolist() for found in tracks] == [[-1], [1], [], [1], [1]]


def test_tracks_are_drawn_and_written(detect, clip, tmp_path):
    pytest.importorskip("trackers")
    found = found_in([(10, 40, 60, 90), (90, 40, 150, 90)], [0, 1])
    image, numbered = Image.new("RGB", (320, 240)), Detections(**{**vars(found), "tracks": torch.tensor([3, -1])})
    assert draw(image, found).tobytes() != draw(image, numbered).tobytes()
    assert numbered.to_supervision().tracker_id.tolist() == [3, -1] == numbered[[0, 1]].tracks.tolist()
    assert found != numbered and numbered[numbered.labels == 0].tracks.tolist() == [3]
    code, out, err = detect("clip.mp4", "dog", "--track", "--format", "jsonl", "--format", "table", "--nms", 0.3)
    rows = [one for line in (tmp_path / LINES).read_text().splitlines() for one in json.loads(line)["detections"]]
    tracks = {row["track"] for row in rows} - {None}
    assert code == 0 and err == "" and tracks == set(range(1, len(tracks) + 1)) and len(tracks) < len(rows)
    header, row = out.splitlines()[:2]
    assert header.split()[-1] == "tracks" and int(row.split()[-1]) == len(tracks)
