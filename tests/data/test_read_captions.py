"""Captions as they are found: COCO json, jsonl, tables, shards; what cannot be used is counted, never a crash."""

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from glip.data import records
from glip.data.captions import read_captions
from glip.data.image import load_image
from glip.structures import TarMember

BY_URL = "image named by a URL (download it, for instance with img2dataset)"
BROKEN = "tar that is compressed, or broken from some place on"
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def read(path: Path):
    """Every (image name, caption) of a file beside its images, and what was left out."""
    found = read_captions(path, [path.parent])
    assert all(len(sample.boxes) == 0 and sample.prompt is None for sample in found.samples)
    return [(sample.image.name, sample.caption) for sample in found.samples], found.skipped.counts


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_coco_captions(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}, {"id": "x", "file_name": "sub/b.jpg"}]
    images += [{"id": 9, "file_name": "c.jpg"}, {"id": 10, "file_name": ".."}, {"file_name": "d.jpg"}]
    said = [("x", "a cat"), (7, " a dog\n"), (7, "two"), (7, "  "), (7, None), (8, "nobody's"), (10, "nameless")]
    tree = {"images": images, "annotations": [{"image_id": image, "caption": text} for image, text in said]}
    found = read_captions(written(tmp_path / "a.json", json.dumps(tree)), [tmp_path])
    samples = list(found.samples)
    made = [(s.image_id, s.caption, s.size) for s in samples]
    assert made == [(7, "a dog", (40, 30)), (7, "two", (40, 30)), ("x", "a cat", None)]
    assert samples[2].image == tmp_path / "sub" / "b.jpg"
    assert found.skipped.counts == {
        "image without an id": 1,
        "annotation of an unknown image": 1,
        "caption that is empty or no text": 2,
        "image without a caption": 1,
        "image without a file name": 1,
    }


def test_entities_are_the_characters_they_stand_for(tmp_path):
    said = ["a red key &amp; a caf&eacute;", "&quot;a&#39;&amp;quot; AT&T &copy;", "Q&A &c &nosuch;"]
    lines = "".join(json.dumps({"image": "a.jpg", "caption": text}) + "\n" for text in said)
    found, _ = read(written(tmp_path / "a.jsonl", lines))
    assert [caption for _, caption in found] == ["a red key & a café", '"a\'" AT&T ©', "Q&A &c &nosuch;"]


@pytest.mark.parametrize(("key", "text"), [("image", "caption"), ("file_name", "text"), ("filepath", "captions")])
def test_records_by_any_name(tmp_path, key, text):
    rows = [{key: "a.jpg", text: "a dog"}, {key: "b.jpg", text: ["a cat", "an owl"], "width": 4, "height": 3}]
    lines = written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n\n" for row in rows))
    expected = [("a.jpg", "a dog"), ("b.jpg", "a cat"), ("b.jpg", "an owl")]
    assert read(lines) == read(written(tmp_path / "a.json", json.dumps(rows))) == (expected, {})
    assert [sample.size for sample in read_captions(lines, []).samples] == [None, (4, 3), (4, 3)]


NO_RECORDS = {
    "line that is no json record": [b"not json", b"[" * 100_000, b"[1]", b'{"image": "a.jpg", "caption": "\xff"}'],
    "caption that is empty or no text": [
        b'{"image": "a.jpg", "caption": "\\ud800"}',
        b'{"image": "a.jpg", "caption": 5}',
    ],
    "image without a caption": [b'{"image": "a.jpg"}'],
    "image without a file name": [
        *[b'{"caption": "x"}', b'{"image": "", "caption": "x"}', b'{"image": {}, "text": "x"}'],
        b'{"image": "/..", "caption": "a dog"}',
    ],
    BY_URL: [b'{"image": "https://a.b/c.jpg", "caption": "a dog"}', b'{"url": "https://a.b/c.jpg", "text": "a dog"}'],
}


def test_what_is_no_record_is_counted(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"image": "a.jpg", "caption": "a dog"}',
        *(row for rows in NO_RECORDS.values() for row in rows),
    ]
    rows, counts = read(written(tmp_path / "a.jsonl", b"\r\n".join(lines)))
    assert rows == [("a.jpg", "a dog")] and counts == {reason: len(rows) for reason, rows in NO_RECORDS.items()}


def test_an_image_named_by_a_url_is_taken_where_it_is_there(tmp_path):
    (tmp_path / "c 1.jpg").touch()
    rows = [{"image": f"https://a.b/{name}.jpg?size=9", "caption": "a dog"} for name in ("c%201", "d")]
    lines = written(tmp_path / "a.json", "\n".join(map(json.dumps, rows)))  # lines of json called .json
    assert read(lines) == ([("c 1.jpg", "a dog")], {BY_URL: 1})


def test_an_endless_line_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE", 1 << 10)
    good = '{"image": "a.jpg", "caption": "a dog"}\n'
    rows, counts = read(written(tmp_path / "a.jsonl", good + "x" * 5000 + "\n" + good))
    assert rows == [("a.jpg", "a dog")] * 2 and counts.keys() == {"line that is no json record"}


def test_csv_with_quotes_and_line_breaks(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        rows = [["id", "Caption", "filepath"], ["1", 'a "red"\nbus, parked', "a.jpg"], ["2", "a dog", "sub/b.jpg"]]
        csv.writer(file).writerows([*rows, ["3", "short"], ["4", "", "c.jpg"]])
    rows, counts = read(tmp_path / "a.csv")
    assert rows == [("a.jpg", 'a "red"\nbus, parked'), ("b.jpg", "a dog")]
    assert counts == {"line with too few or too many columns": 1, "caption that is empty or no text": 1}


def test_places_in_a_table_are_lines_of_the_file(tmp_path):
    file = written(tmp_path / "a.csv", b"image,caption\n\n\xff\na.jpg\nb.jpg,a dog\n")
    assert read_captions(file, [tmp_path]).skipped.places == {
        "text that is not UTF-8": ["a.csv, line 3"],
        "line with too few or too many columns": ["a.csv, line 4"],
    }


def test_a_quote_left_open_swallows_no_more_than_a_field_may_hold(tmp_path):
    text = 'image,caption\na.jpg,a dog\nb.jpg,"an open quote\n' + "c.jpg,a cat\n" * 12_000
    rows, counts = read(written(tmp_path / "a.csv", text))
    assert rows[0] == ("a.jpg", "a dog") and ("c.jpg", "a cat") in rows
    assert counts["line that is not CSV"] >= 1


def test_tsv_with_a_header(tmp_path):
    text = 'key\ttext\tnsfw\na.jpg\t"a ""red"" bus"\tno\nb.jpg\t"two" "quotes"\tno\nc.jpg\ta 6" pipe\tno\n'
    rows, counts = read(written(tmp_path / "a.tsv", text))
    assert rows == [("a.jpg", 'a "red" bus'), ("b.jpg", '"two" "quotes"'), ("c.jpg", 'a 6" pipe')] and counts == {}


@pytest.mark.parametrize("order", [1, -1])
def test_tsv_without_a_header(tmp_path, order):
    table = [["a.jpg#0", "a dog"], ["a.jpg#1", "no text"], ["http://x.y/z", "by URL"]]
    text = "".join("\t".join(row[::order]) + "\n" for row in table)
    rows, counts = read(written(tmp_path / "captions.txt", text))
    assert rows == [("a.jpg", "a dog"), ("a.jpg", "no text")] and list(counts.values()) == [1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "a dog\thttp://x.y/z\na cat\thttp://x.y/a.jpg\n", f"2 x {re.escape(BY_URL)}"),
        ("a.csv", "a.jpg,a cat\n", "first line that names no columns .give a header"),
        ("a.jsonl", "", "no sample in it can be used .it lists none"),
        ("a.json", "{}", "not COCO captions"),
        ("a.tar", "not a tar" * 200, f"1 x {BROKEN}"),
    ],
)
def test_errors_teach(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / name, text))


def jpeg(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_shard_is_read_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile.TarFile, "_extract_member", lambda *_, **__: pytest.fail("extracted"), raising=False)
    record = {"caption": "ignored: the text counts", "width": 8, "height": 6}
    long = "a_name_so_long_that_it_needs_a_header_of_its_own" * 4
    members = [("000.jpg", jpeg("red")), ("000.txt", b"a red field\n"), ("000.json", json.dumps(record).encode())]
    members += [("sub/001.JFIF", jpeg("blue")), ("sub/001.json", json.dumps({"caption": ["blue", "sky"]}).encode())]
    members += [(f"{long}.jpg", jpeg("green")), (f"{long}.txt", "grün".encode())]
    path = shard(tmp_path / "00000.tar", members)
    found = read_captions(path, [])
    samples = list(found.samples)
    assert [sample.caption for sample in samples] == ["a red field", "blue", "sky", "grün"]
    assert [sample.size for sample in samples] == [(8, 6), None, None, None]
    assert isinstance(samples[0].image, TarMember) and str(samples[0].image) == f"{path}:000.jpg"
    colours = [load_image(sample.image).getpixel((4, 3)) for sample in samples]
    assert [colour.index(max(colour)) for colour in colours] == [0, 2, 2, 1]
    assert not found.skipped and [file.name for file in tmp_path.iterdir()] == ["00000.tar"]


def test_members_that_are_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_IMAGE", 1000)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))

        add("folder", type=tarfile.DIRTYPE)
        add("0.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("0.txt", b"of a link")
        for kind in (tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
            add("../../1.jpg", type=kind, linkname="/etc/passwd")
        add("2.jpg", b"x" * 1001)
        add("3.jpg", jpeg("red")[:400])
        add("3.txt", b"\xff\xfe")
        add("4.jpg", b"x")
        add("4.json", b"[" * 100_000)
        add("5.exe", b"x")
        add("../../6.jpg", b"x")
        add("../../6.txt", b"its name leads out, but nothing is written")
    before = set(tmp_path.parent.rglob("*"))
    found = read_captions(tmp_path / "a.tar", [])
    assert [sample.caption for sample in found.samples] == ["its name leads out, but nothing is written"]
    assert set(tmp_path.parent.rglob("*")) == before
    assert found.skipped.counts == {
        "member that is a link, a device or sparse": 5,
        "caption without an image": 1,
        "member of over 0 MB": 1,
        "text that is not UTF-8": 1,
        "line that is no json record": 1,
        "image without a caption": 2,
        "member that is neither an image nor a caption": 1,
    }


def test_folders_of_shards_and_of_tables(tmp_path):
    (tmp_path / "b.TSV").write_text("image\tcaption\na.jpg\tlast\n")
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "caption": "first"}\n')
    assert [sample.caption for sample in read_captions(tmp_path, [tmp_path]).samples] == ["first", "last"]
    for number, ending in ((1, ".tar"), (0, ".TAR")):
        shard(tmp_path / f"{number}{ending}", [("a.jpg", jpeg("red")), ("a.txt", str(number).encode())])
    assert [sample.caption for sample in read_captions(tmp_path, [tmp_path / "not_there"]).samples] == ["0", "1"]


def test_a_shard_that_was_cut_off(tmp_path):
    members = [
        (f"{i}.{ending}", jpeg("red") * 3 if ending == "jpg" else b"a") for i in range(3) for ending in ("jpg", "txt")
    ]
    whole = shard(tmp_path / "whole.tar", members).read_bytes()
    assert len(read_captions(tmp_path / "whole.tar", []).samples) == 3
    last = whole.rindex(b"2.jpg")
    counts = read(written(tmp_path / "in_data.tar", whole[: last + 900]))[1]
    assert counts[BROKEN] == 1 and counts["member that is cut off"] == 1
    broken = bytearray(whole)
    broken[last : last + 400] = b"x" * 400
    rows, counts = read(written(tmp_path / "broken.tar", bytes(broken)))
    assert len(rows) == 2 and counts == {BROKEN: 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_real_captions():
    found = read_captions(SHARED / "coco_mini/annotations/captions_unlabeled.json", [SHARED / "coco_mini/images"])
    assert len({sample.image_id for sample in found.samples}) == 76 and not found.skipped
    assert all(sample.image.is_file() and len(sample.caption.split()) > 3 for sample in found.samples)
