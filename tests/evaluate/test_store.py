"""Predictions on disk: after a kill what was written is kept, and only that; several processes share a folder."""

from dataclasses import replace

import pytest
import torch
from scored import detections, sample

from glip.evaluate import run as store_module
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions

SETTINGS = {"model": "tiny", "set": "one"}
SAMPLES = [replace(sample(["cat", "dog"]), image_id=number) for number in range(6)]
FOUND = detections(SAMPLES[0], [((1.5, 2.25, 30.1, 40.7), 0.7123456, 1), ((0, 0, 5, 5), 0.5, 0)])


def written(folder, *indices, process=0, flush=True):
    store = PredictionStore(folder, SETTINGS, process=process)
    for index in indices:
        store.add(Prediction(index, FOUND))
    if flush:
        store.flush()
    return store


def read(folder):
    return [one for _, one in PredictionStore(folder, SETTINGS).read(SAMPLES, QueryOptions())]


def test_predictions_come_back_bit_for_bit_in_the_order_of_the_samples(tmp_path):
    store = written(tmp_path, 5, 2)
    store.add(Prediction(3, None, "unreadable image", "a.jpg, line 7"))
    store.flush()
    first, second, third = read(tmp_path)
    assert (first.index, second.index, third.index) == (2, 3, 5)
    found = first.found
    assert torch.equal(found.boxes, FOUND.boxes) and torch.equal(found.scores, FOUND.scores)
    assert torch.equal(found.labels, FOUND.labels) and (found.size, found.prompt) == (FOUND.size, FOUND.prompt)
    assert second == Prediction(3, None, "unreadable image", "a.jpg, line 7")


def test_after_a_kill_the_rest_is_predicted_again(tmp_path, monkeypatch):
    written(tmp_path, 0, 1)
    written(tmp_path, 2, flush=False)
    (tmp_path / ".part-0-000001.npz.partial").write_bytes(b"PK cut off")
    assert PredictionStore(tmp_path, SETTINGS).done == {0, 1}
    monkeypatch.setattr(store_module, "_DETECTIONS", 2)
    assert written(tmp_path, 2, flush=False).done == {0, 1, 2}, "a full part is written at once"
    assert [one.index for one in read(tmp_path)] == [0, 1, 2]


def test_processes_read_one_another(tmp_path):
    main = written(tmp_path, 0, 1)
    written(tmp_path, 2, 3, process=1)
    for process in range(3):
        assert PredictionStore(tmp_path, SETTINGS, process=process).done == {0, 1, 2, 3}
    main.reload()
    assert [one.index for _, one in main.read(SAMPLES, QueryOptions())] == [0, 1, 2, 3]


def test_predictions_with_other_settings_are_refused(tmp_path):
    written(tmp_path, 0)
    with pytest.raises(ValueError, match='made with model "tiny", not "large"'):
        PredictionStore(tmp_path, SETTINGS | {"model": "large"})
