"""What a run makes of a config: models and datasets get names."""

from glip.train.run import readable_names, starting_model
from glip.train.start import load_config


def test_a_fine_tuned_model_is_named_after_its_folder():
    assert load_config("finetune/own", ["train.output=runs/raccoon"]).model.name == "raccoon"
    assert load_config("finetune/own", ["train.output=runs/raccoon", "model.name=mine"]).model.name == "mine"
    assert load_config("pretrain/nano").model.name == "glip-nano"


def test_names_of_datasets():
    names = ["coco_train2017", "/data/raccoon/train/annotations.json", "/data/mouse/train/annotations.json"]
    below = ["coco_train2017", "raccoon/train/annotations.json", "mouse/train/annotations.json"]
    assert list(readable_names(names).values()) == below, "two are train_annotations"
    assert readable_names(["/data/raccoon/boxes.json"]) == {"/data/raccoon/boxes.json": "raccoon_boxes"}
    assert readable_names(["/r/annotations/instances_val.json"]) == {"/r/annotations/instances_val.json": "r_val"}
    splits = ["ds/data.yaml:val", "ds/data.yaml:test"]
    assert readable_names(splits) == dict(zip(splits, ("ds_val", "ds_test"), strict=True))
    assert readable_names([]) == {}


def test_a_model_keeps_what_its_start_was_trained_on():
    row = "data.train=[{name: /data/raccoon/boxes.json}]"
    config = starting_model(load_config("finetune/own", [row]))[1]
    assert config.trained_on[0] == "drawn world" and config.trained_on[-1] == "raccoon_boxes"
    assert config.trained_on_data == ("unknown",), "glip-nano has no fingerprints: what it was trained on is not known"
    stated = starting_model(load_config("finetune/own", [row, "model.trained_on=[mine]"]))[1]
    assert stated.trained_on == ("mine",)
