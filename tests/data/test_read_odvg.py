"""ODVG lines: detection and grounding, with and without a label map, with and without spans."""

import json

from glip.data.grounding import read_odvg

NAMES = {"0": "person", "7": "tooth_brush", "3": "bat_(animal)"}
CAPTION = "a cart, a car and another car"  # a cart 0-6, a car 8-13, another car 18-29


def instance(label=0, category="person", bbox=(1, 2, 3, 4)):
    return {"bbox": list(bbox), "label": label, "category": category}


def detection(*instances, **more):
    return {"filename": "d.jpg", "height": 48, "width": 64, "detection": {"instances": list(instances)}, **more}


def region(phrase="a car", bbox=(1, 2, 3, 4), **more):
    return {"bbox": list(bbox), "phrase": phrase, **more}


def grounding(*regions, caption=CAPTION, **more):
    told = {"caption": caption, "regions": list(regions)}
    return {"filename": "g.jpg", "height": 48, "width": 64, "grounding": told, **more}


def read(tmp_path, *lines, names=NAMES):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "set.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "names.json").write_text(json.dumps(names))
    return read_odvg(tmp_path / "set.jsonl", [tmp_path], tmp_path / "names.json" if names is not None else "")


def test_detection_with_a_label_map(tmp_path):
    found = read(tmp_path, detection(instance(0, None), instance(7, "Tooth_brush", (0.5, 0, 9, 9))), "", detection())
    assert found.vocabulary == ("person", "bat", "tooth brush") and found.ids == (0, 3, 7)
    first, second = found.samples
    assert first.boxes.tolist() == [[1, 2, 3, 4], [0.5, 0, 9, 9]] and first.box_phrases == ((0,), (2,))
    assert first.image == tmp_path / "d.jpg" and first.size == (64, 48) and first.image_id == 1
    assert first.vocabulary == found.vocabulary and first.prompt is None
    assert second.boxes.shape == (0, 4) and second.image_id == 3, "an image without boxes is a negative"
    assert not found.skipped


def test_the_vocabulary_is_gathered_from_the_categories(tmp_path):
    lines = [detection(instance(4, "zebra_(animal)"), instance(0)), detection(), detection(instance(9, "zebra"))]
    found = read(tmp_path, *lines, names=None)
    assert found.vocabulary == ("zebra", "person") and found.ids == ()
    assert [sample.box_phrases for sample in found.samples] == [((0,), (1,)), (), ((0,),)]
    assert all(sample.vocabulary == found.vocabulary for sample in found.samples)


def test_grounding_with_spans(tmp_path):
    found = read(
        tmp_path,
        grounding(
            region("Another car.", [[1, 2, 3, 4], [5, 5, 6, 6]], tokens_positive=[[18, 29]]),
            region(["a", "car"], tokens_positive=[[10, 13], [8, 9]]),
            region(None, tokens_positive=[[18, 29]], bbox=(7, 7, 8, 8)),
        ),
        names=None,
    )
    (sample,) = found.samples
    assert sample.prompt.caption == CAPTION and sample.prompt.texts == ("a car", "another car")
    assert sample.prompt.phrases[0].spans == ((8, 9), (10, 13))
    assert sample.boxes.tolist() == [[1, 2, 3, 4], [5, 5, 6, 6], [1, 2, 3, 4], [7, 7, 8, 8]]
    assert sample.box_phrases == ((1,), (1,), (0,), (1,)) and sample.vocabulary == ()
    assert found.vocabulary == () and not found.skipped


def test_phrases_without_spans_are_whole_words(tmp_path):
    line = grounding(region("car"), region("a boat", (9, 9, 11, 11)), region("Car", (5, 5, 6, 6)), region("a cart"))
    found = read(tmp_path, line, names=None)
    assert found.skipped.places == {"phrase that is not in the caption": ["line 1, region 1"]}
    (sample,) = found.samples
    assert sample.boxes.tolist()[:2] == [[1, 2, 3, 4], [5, 5, 6, 6]]
    assert [phrase.spans for phrase in sample.prompt.phrases] == [((0, 6),), ((10, 13),), ((26, 29),)]
    assert sample.box_phrases == ((1,), (2,), (0,)), "a repeated word is found in turn, and not inside 'cart'"


def test_a_phrase_of_several_pieces(tmp_path):
    lines = [grounding(region(["a cart", "another"]), region("car")), grounding(region(["another", "a boat"]))]
    found = read(tmp_path, *lines, grounding(region("car")), names=None)
    assert found.samples[0].prompt.phrases[0].spans == ((0, 6), (18, 25))
    assert found.samples[0].prompt.phrases[1].spans == ((26, 29),)
    assert found.skipped.counts == {"phrase that is not in the caption": 1, "caption without a box that can be used": 1}


def test_both_kinds_in_one_file(tmp_path):
    found = read(tmp_path, detection(instance()), grounding(region()), detection(instance(3, "bat")))
    assert [bool(sample.prompt) for sample in found.samples] == [False, True, False]
    assert [sample.vocabulary for sample in found.samples] == [found.vocabulary, (), found.vocabulary]
