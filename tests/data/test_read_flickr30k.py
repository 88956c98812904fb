"""Flickr30K Entities as released, and hostile files; evaluate/test_phrases.py has the official figures."""

import pytest

from glip.data.flickr30k import read_flickr30k

SENTENCES = "[/EN#1/people A man] with [/EN#2/clothing a hat] .\n\nNothing here\n[/EN#1/people/other The man] waves"


def thing(*chains, box=None, flags=""):
    names = "".join(f"<name>{chain}</name>" for chain in chains)
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False)
    inside = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object>{names}{f'<bndbox>{inside}</bndbox>' if box is not None else flags}</object>"


def annotation(*things, size="<size><width>64</width><height>48</height></size>"):
    return f"<annotation><filename>x.jpg</filename>{size}{''.join(things)}</annotation>"


MAN = thing("1", box=(1, 2, 30, 40))


@pytest.fixture
def folder(tmp_path):
    for part in ("Annotations", "Sentences"):
        (tmp_path / part).mkdir()
    write(tmp_path, "7", annotation(MAN, thing("2", box=(3, 4, 9, 9))), SENTENCES)
    return tmp_path


def write(folder, name, xml, sentences):
    for part, suffix, content in (("Annotations", "xml", xml), ("Sentences", "txt", sentences)):
        data = content.encode() if isinstance(content, str) else content
        (folder / part / f"{name}.{suffix}").write_bytes(data)


def read(folder, *names):
    (folder / "test.txt").write_text("\n".join(names) + "\n")
    return read_flickr30k(folder, [folder], folder / "test.txt" if names else "")


def test_sentences_and_chains(folder):
    first, second = read(folder).samples
    assert first.prompt.caption == "A man with a hat ." and first.prompt.texts == ("A man", "a hat")
    assert first.boxes.tolist() == [[1, 2, 30, 40], [3, 4, 9, 9]] and first.box_phrases == ((0,), (1,))
    assert first.image == folder / "7.jpg" and first.size == (64, 48)
    assert first.kinds == (("people",), ("clothing",)) and second.kinds == (("people", "other"),)
    assert second.prompt.caption == "The man waves" and second.boxes.tolist() == [[1, 2, 30, 40]]
    assert (first.image_id, second.image_id) == ("7:0", "7:2"), "empty lines take no number"


def test_shared_boxes_flags_and_repeated_chains(folder):
    xml = annotation(
        thing("1", "2", box=(1, 2, 30, 40)),
        thing("1", flags="<scene>1</scene><nobndbox>0</nobndbox>"),
        thing("1", box=(5, 5, 9, 9)),
        thing("3", flags="<scene>0</scene><nobndbox>1</nobndbox>"),
        thing("4", box=(1, 2, 30, 40)),
        thing("0", box=(7, 7, 8, 8)),
    )
    marked = "[/EN#1/people A man] , [/EN#2/x a hat] , [/EN#3/scene fog] , [/EN#4/x it] , [/EN#0/notvisual air] ,"
    write(folder, "8", xml, f"{marked} [/EN#1/people he] [sic]")
    (sample,) = read(folder, "8").samples
    assert sample.prompt.texts == ("A man", "a hat", "it", "he"), (
        "a chain twice is two phrases; fog and air have no box"
    )
    assert sample.prompt.caption == "A man , a hat , fog , it , air , he [sic]"
    assert sample.boxes.tolist() == [[1, 2, 30, 40], [5, 5, 9, 9]], "one box drawn for two things names both"
    assert sample.box_phrases == ((0, 1, 2, 3), (0, 3))
    assert read(folder, "8").skipped.counts == {"phrase without a box": 2}


@pytest.mark.parametrize(
    ("box", "reason"),
    [((3, 4, 3, 9), "box without area"), ((3, 4, "nan", 9), "malformed box"), ((3, 4, "?", 9), "malformed box")],
)
def test_wrong_boxes(box, reason, folder):
    write(folder, "8", annotation(thing("2", box=box), MAN), "[/EN#1/x A man] in [/EN#2/x a hat]")
    found = read(folder, "8")
    assert found.skipped.counts == {reason: 1, "phrase without a box": 1}
    assert found.skipped.places[reason] == ["image 8, object 0"] and found.samples[0].prompt.texts == ("A man",)


@pytest.mark.parametrize("box", [(3, 4, 3, 9), (9, 4, 3, 9)])
def test_boxes_without_area_stay_where_they_are_asked_for(box, folder):
    sentences = b"\xef\xbb\xbf[/EN#1/x A man] in [/EN#2/x/y a hat]\r\n[/EN#2/x a hat]"
    write(folder, "8", annotation(thing("2", box=box), MAN), sentences)
    found = read_flickr30k(folder, [folder], "", flat_boxes=True)
    first, second = (sample for sample in found.samples if str(sample.image_id).startswith("8"))
    assert first.boxes.tolist() == [list(box), [1, 2, 30, 40]] and first.box_phrases == ((1,), (0,))
    assert first.kinds == (("x",), ("x", "y")) and second.boxes.tolist() == [list(box)]
    assert "box without area" not in found.skipped.counts


@pytest.mark.parametrize(
    ("sentence", "counts"),
    [
        ("[/EN#1/people A man] and [/EN#1/people", {"phrase without an end": 1}),
        ("[/EN#1/people A man] and [/EN#1/people ]", {"span that is no part of its caption": 1}),
        ("[/EN# A man] and [/EN#1/x a man]", {"phrase without a box": 1}),
        ("[/EN#1/x A man]\n   ", {"caption that is empty or no text": 1}),
    ],
)
def test_odd_sentences(sentence, counts, folder):
    write(folder, "8", annotation(MAN), sentence)
    found = read(folder, "8")
    assert len(found.samples) == 1 and found.skipped.counts == counts


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]>' + annotation(MAN, thing("&y;"))


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (BOMB, "annotations with a DOCTYPE"),
        ('<?xml version="1.0" encoding="UTF-16"?>'.encode("utf-16") + BOMB.encode("utf-16-le"), "with a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd">' + annotation(MAN), "annotations with a DOCTYPE"),
        (annotation(MAN)[:-9], "annotations that are not xml"),
        ('<?xml version="1.0" encoding="none"?>' + annotation(MAN), "annotations that are not xml"),
        (annotation(MAN) + " " * 10_000_000, "file of more than 10 MB"),
    ],
)
def test_files_of_strangers(xml, reason, folder):
    write(folder, "8", xml, SENTENCES)
    found = read(folder, "7", "8")
    assert [sample.image_id for sample in found.samples] == ["7:0", "7:2"]
    ((noted, places),) = [(key, value) for key, value in found.skipped.places.items() if reason in key]
    assert places == ["image 8"] and found.skipped.counts[noted] == 1


def test_split_lists_may_name_anything(folder):
    (folder / "Sentences" / "9.txt").write_bytes(b"\xff")
    (folder / "Annotations" / "9.xml").write_text(annotation(MAN))
    (folder / "Sentences" / "10.txt").write_text(SENTENCES)
    found = read(folder, "../../etc/passwd", "..", "", " 7 ", "7", "a/b", "C:\\x", "8", "9", "10")
    assert found.skipped.counts == {
        "image name outside its folder": 4,
        "image listed twice": 1,
        "no xml file of the image": 2,
        "text that is not UTF-8": 1,
        "caption without a box that can be used": 1,
    }
    assert [sample.image_id for sample in found.samples] == ["7:0", "7:2"]


def test_missing_things(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="are not there"):
        read_flickr30k(folder, [folder], folder / "none.txt")
    with pytest.raises(FileNotFoundError, match="is not there"):
        read_flickr30k(folder, [folder / "none"], "")
    with pytest.raises(FileNotFoundError, match="Annotations' are not there"):
        read_flickr30k(folder / "Sentences", [folder], "")
    with pytest.raises(ValueError, match="no sample in it can be used .*2 x no xml file of the image"):
        read(folder, "8", "9")
