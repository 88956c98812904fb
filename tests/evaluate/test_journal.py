"""The journal of an evaluation: killed anywhere it keeps every whole answer, and only those."""

import pytest
import torch
from scored import detections, sample

from glip.evaluate.journal import Journal
from glip.evaluate.run import Answer

OF = {"model": "tiny", "set": "one"}
ASKED = sample(["cat", "dog"])
FOUND = detections(ASKED, [((1.5, 2.25, 30.1, 40.7), 0.7123456, 1), ((0, 0, 5, 5), 0.5, 0)])


def answer(index, found=FOUND):
    return Answer(index, ASKED, found)


def written(folder, *indices, process=0):
    journal = Journal(folder, OF, process=process)
    for index in indices:
        journal.add(answer(index))
    journal.close()
    return journal


def test_answers_come_back_bit_for_bit_in_the_order_of_the_samples(tmp_path):
    journal = written(tmp_path, 5, 2)
    journal.add(Answer(3, ASKED, None, "unreadable image", "a.jpg, line 7"))
    again = Journal(tmp_path, OF)
    assert again.done == {2, 3, 5}
    first, second, third = again.entries()
    assert (first.sample, second.sample, third.sample) == (2, 3, 5)
    found = first.detections(FOUND.prompt)
    assert torch.equal(found.boxes, FOUND.boxes) and torch.equal(found.scores, FOUND.scores)
    assert torch.equal(found.labels, FOUND.labels) and found.size == FOUND.size and found.prompt is FOUND.prompt
    assert (second.reason, second.place, len(second.labels)) == ("unreadable image", "a.jpg, line 7", 0)


@pytest.mark.parametrize("cut", [1, 20, 24, 30, 60])
def test_a_record_cut_off_by_a_kill_is_made_again(cut, tmp_path):
    written(tmp_path, 0, 1)
    path = tmp_path / "answers-0.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(tmp_path, OF)
    assert journal.done == {0}
    journal.add(answer(1))
    journal.add(answer(2))
    assert Journal(tmp_path, OF).done == {0, 1, 2}
    assert [entry.scores.tolist() for entry in Journal(tmp_path, OF).entries()] == [FOUND.scores.tolist()] * 3


def test_a_damaged_record_is_not_believed(tmp_path):
    written(tmp_path, 0, 1)
    path = tmp_path / "answers-0.bin"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert Journal(tmp_path, OF).done == {0}


def test_processes_read_one_another(tmp_path):
    written(tmp_path, 0, 1)
    written(tmp_path, 2, 3, process=1)
    for process in range(3):
        assert Journal(tmp_path, OF, process=process).done == {0, 1, 2, 3}
    assert [entry.sample for entry in Journal(tmp_path, OF).entries()] == [0, 1, 2, 3]


def test_answers_of_another_evaluation_are_refused(tmp_path):
    written(tmp_path, 0)
    with pytest.raises(ValueError, match=r"another evaluation \(model was 'tiny', is 'large'\): give another folder"):
        Journal(tmp_path, OF | {"model": "large"})
    (tmp_path / "of.json").write_text("{")
    with pytest.raises(ValueError, match="not readable"):
        Journal(tmp_path, OF)
