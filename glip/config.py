"""All options of all commands as frozen dataclasses: type, range or choices, and one line of explanation for each.

The explanations are also the help of the command line and of ``glip config NAME --explain``.
"""

from dataclasses import field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from glip.schema import LARGEST, checked

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Size = Annotated[int, Field(ge=4, le=500_000)]  # of a model: limits, since its config may come from strangers
Layers = Annotated[int, Field(ge=1, le=1000)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[int, Field(ge=-1, le=16)]
Rate = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=32, le=8192)]  # of an image that the network reads, in pixels
Name = Annotated[str, Field(min_length=1)]
Precision = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Protocol = Literal[
    "coco", "lvis", "any-box", "merged-boxes", "refcoco", "grefcoco", "ovdeval", "saco", "d3", "omnilabel"
]  # fmt: skip
Mode = Literal["prompt", "linear", "lora", "full", "text"]
Logger = Literal["tensorboard", "wandb", "mlflow"]
Format = Literal[
    "coco", "lvis", "mdetr", "flickr30k", "odvg", "silver", "captions", "labels", "label-studio", "yolo", "voc",
    "refcoco", "grefcoco", "ovdeval", "saco", "d3", "omnilabel",
]  # fmt: skip
UNSTATED, VALIDATED = "unknown", "validated "  # in trained_on and trained_on_data: of a start without; sets that chose
_THREE, _FOUR = ({"min_length": count, "max_length": count} for count in (3, 4))
DTYPE = "number type: float32 is exact, bfloat16 and float16 (GPU) are faster; auto: bfloat16 where it is faster"
COMPETE = "strength of competition between names, against false positives, such as 1; 0: off (default: the model's)"


def option(default: Any, explanation: str, **limits: Any) -> Any:
    """A field with a default, one line of explanation, and limits such as ``ge=0``."""
    return Field(default, description=explanation, **limits)


@checked
class VisionConfig:
    """The image encoder. ``swin`` computes what the 2022 release computes; ``resnet`` is timm's, for small models."""

    kind: Literal["swin", "resnet"] = option("swin", "architecture")
    widths: tuple[Size, ...] = option((96, 192, 384, 768), "channels of each stage", **_FOUR)
    depths: tuple[Layers, ...] = option((2, 2, 6, 2), "blocks of each stage", **_FOUR)
    heads: tuple[Count, ...] = option((3, 6, 12, 24), "attention heads of each stage (swin)", **_FOUR)
    window: int = option(7, "side of the attention window in patches (swin)", ge=1, le=64)
    drop_path: Share = option(0.2, "highest stochastic depth rate, reached in the last block")
    pretrained: str | None = option(None, "ImageNet weights when training from scratch (swin): timm name or file")


@checked
class LanguageConfig:
    """The text encoder, a BERT without pooler."""

    hidden: Size = option(768, "hidden size")
    layers: Layers = option(12, "number of layers")
    heads: Count = option(12, "attention heads per layer")
    intermediate: Size = option(3072, "width of the feed-forward layers")
    vocabulary: Size = option(30522, "size of the vocabulary")
    positions: Size = option(512, "longest input in tokens")
    dropout: Share = option(0.1, "dropout rate")
    pretrained: str | None = option(None, "BERT weights when training from scratch: folder or file")
    frozen_layers: CountOrZero = option(0, "freeze the embeddings and this many first layers; 0 trains all")
    bits: Literal[8, 32] = option(32, "8: matrices are rounded to int8 rows before training and in the file")


@checked
class HeadConfig:
    """Feature pyramid, dynamic head and fusion."""

    channels: Size = option(256, "channels of the pyramid and the head")
    blocks: Layers = option(6, "blocks of the dynamic head")
    fusion: bool = option(True, "fuse image and text in every block (early fusion)")
    fusion_gate: Literal["none", "tanh"] = option("none", "tanh: fusion and text layer fade in from no effect")
    fusion_width: Size = option(2048, "width of the cross attention")
    fusion_heads: Count = option(8, "heads of the cross attention")
    fusion_dropout: Share = option(0.1, "dropout of the cross attention")
    groups: Count = option(16, "groups of the group norms")
    drop_block: Share = option(0.3, "DropBlock rate of the pyramid's features")
    prompt_offsets: bool = option(False, "a learned offset for each token position (prompt tuning)")


@checked
class ImageConfig:
    """How an image becomes the network's input."""

    min_size: int = option(800, "images are resized to this short side, in pixels", ge=1, le=8192)
    max_size: int = option(1333, "longest side after resizing, in pixels", ge=1, le=2**17)
    channels: Literal["bgr", "rgb"] = option("bgr", "channel order")
    mean: tuple[float, ...] = option((103.530, 116.280, 123.675), "mean in channel order, for 0..255", **_THREE)
    std: tuple[Positive, ...] = option((57.375, 57.120, 58.395), "standard deviation in channel order", **_THREE)


@checked
class InferenceConfig:
    """How network outputs become detections; defaults of the Detector's arguments."""

    threshold: Share = option(0.5, "lowest score returned")
    candidate_threshold: Share = option(0.05, "lowest class score before centerness")
    candidates_per_level: Count = option(1000, "candidates kept per pyramid level")
    nms: Share = option(0.6, "IoU above which the lower-scored of two boxes of a class is removed; 1: off")
    max_detections: CountOrZero = option(100, "maximum detections per image; 0: no limit")
    inclusive: bool = option(False, "boxes end on their last pixel, as in the release (COCO adds 1)")
    aggregate: Literal["mean", "max", "power"] = option("mean", "how token scores become a phrase score")
    compete: Rate = option(0.0, "each name loses where another scores: times (1 - the best other) ^ this; 0: off")
    temperature: float = option(1.0, "scores become sigmoid(logit(score) / this) (glip calibrate)", ge=0.05, le=20)


@checked
class ModelConfig:
    """Everything needed to build a model and to use it; stored in the checkpoint as config.json."""

    name: str = option("glip-t", "name of the model")
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    thresholds: dict[str, Share] = option({}, "lowest score of single phrases, instead of inference.threshold")
    max_tokens: Count = option(256, "longest caption in tokens")
    trained_on: tuple[str, ...] = option((), "datasets the weights were trained on")
    trained_on_data: tuple[str, ...] = option((), "fingerprints of the datasets the weights were trained on")
    license: str = option("", "license of the weights")

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        vision, language, head = self.vision, self.language, self.head
        swin = list(zip(vision.widths, vision.heads, strict=True)) if vision.kind == "swin" else []
        parts = (
            ("language.heads", language.heads, "hidden", language.hidden),
            ("head.groups", head.groups, "channels", head.channels),
            ("head.fusion_heads", head.fusion_heads, "fusion_width", head.fusion_width),
            *(("vision.heads", heads, "the stage's width", width) for width, heads in swin),
        )
        wrong = [f"{key}: got {part}: give a divisor of {of} {total}" for key, part, of, total in parts if total % part]
        if any(wide != 2 * narrow for (narrow, _), (wide, _) in pairwise(swin)):
            wrong.append(f"vision.widths: got {vision.widths}: give each stage of swin twice the width before it")
        if self.max_tokens > language.positions:
            wrong.append(f"max_tokens: got {self.max_tokens}: give at most language.positions {language.positions}")
        if head.fusion_gate != "none" and not head.fusion:
            wrong.append(f"head.fusion_gate: got {head.fusion_gate!r} without head.fusion, which it gates: give none")
        if wrong:
            raise ValueError(wrong[0])
        return self


@checked
class SetConfig:
    """Where a dataset is and how it is written: an entry of ``datasets.yaml``, paths relative to the data root."""

    format: Format | None = option(None, "annotation format (default: recognized from the file)")
    annotations: str = option("", "annotation file, or folder for flickr30k, voc, yolo and sharded captions")
    images: tuple[str, ...] = option((), "image folders, searched in order")
    names: str = option(
        "", "odvg: JSON of class names; yolo, voc: text file of them; flickr30k: list of the split's image ids"
    )
    prompts: str = option("", "YAML of the text written for each class name (ODinW's caption prompts)")


@checked
class DatasetConfig(SetConfig):
    """One dataset of a training mixture: an entry of ``datasets.yaml`` by its name, or described here in full."""

    name: str  # of datasets.yaml, or any name for a dataset described here
    weight: Rate = option(1.0, "share of the images drawn from this dataset, relative to the others")
    short_side: tuple[Count, ...] = option((), "overrides data.short_side")
    flip: Share = option(0.5, "probability of a horizontal flip")
    first: CountOrZero = option(0, "use only this many first samples; 0: all")
    soft: bool = option(False, "weight the losses of a pseudo-label by its score")
    box_loss: bool = option(True, "train box regression on it, not only the alignment with words")
    held_out: tuple[str, ...] = option((), "drop class names that contain one of these words")


@checked
class DataConfig:
    """What to train on and how images and captions are varied."""

    root: str | None = option(None, "data folder (default: environment variable GLIP_DATA, or this folder)")
    train: tuple[DatasetConfig, ...] = option((), "datasets to train on")
    validate: tuple[DatasetConfig, ...] = option((), "datasets to validate on during training")
    replay: float = option(0.0, "share of images from the old mixture, against forgetting", ge=0, lt=1)
    replay_from: str = option("", "config of the old mixture, such as pretrain/nano")
    crop: CountOrZero = option(0, "side of square random crops in pixels; 0: whole images")
    short_side: tuple[Count, ...] = option((640, 800), "range of the random short side in pixels", min_length=1)
    colour: Share = option(0.0, "strength of colour jitter; 0: off")
    max_negatives: CountOrZero = option(85, "maximum absent class names in a caption")
    hard_negatives: Share = option(0.0, "share of the absent names that resemble one in the image, by shared words")
    swap_words: Share = option(0.0, "probability of a copy of the caption with exchanged nouns as a negative")
    full_vocabulary: Share = option(0.5, "probability of a caption with all class names, if they fit")
    borrow: Share = option(0.0, "probability of negatives from the other datasets")
    pack_captions: CountOrZero = option(0, "captions of other images added as negatives (paper: 19)")
    workers: CountOrZero = option(0, "loader processes; 0: load in the main process")
    max_broken: Share = option(0.01, "share of unreadable images above which training stops")

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        names = [row.name for row in self.train]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"train: lists dataset {twice!r} twice: give each its own name")
        total = sum(row.weight for row in self.train)
        rare = next((row.name for row in self.train if not total or 0 < row.weight < total / 1000), None)
        if rare is not None:
            raise ValueError(f"train: the weight of dataset {rare!r} is less than a thousandth of all, or all are 0")
        if bool(self.replay) != bool(self.replay_from):
            raise ValueError(
                f"replay: got {self.replay:g} with replay_from {self.replay_from!r}: give both the share of images and "
                "the old config, such as 0.3 and pretrain/nano"
            )
        return self


@checked
class StepConfig:
    """One optimizer step; shared by training and tuning."""

    batch_size: Count = option(4, "images per step, over all processes")
    micro_batch: CountOrZero = option(0, "images per forward pass (gradients accumulate); 0: all at once")
    bert_lr: Rate = option(1e-5, "learning rate of the language model")
    clip: float = option(1.0, "maximum gradient norm", gt=0)
    precision: Precision = option("float32", "precision of the forward pass (mixed precision)")
    checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    compile: bool = option(False, "compile the image encoder and the head with torch.compile")
    max_bad_steps: Count = option(20, "stop after this many steps in a row with non-finite losses")
    seed: CountOrZero = option(0, "random seed")


@checked
class TrainConfig(StepConfig):
    """The training run: optimizer, schedule, checkpoints."""

    steps: Count = option(1000, "number of optimizer steps")
    lr: Rate = option(1e-4, "learning rate")
    text_lr: Rate = option(1e-4, "learning rate of the text layers inside the fusion (release: same as lr)")
    weight_decay: Rate = option(0.05, "weight decay of matrices")
    warmup: CountOrZero = option(500, "steps of linear warmup; 0: none")
    schedule: Literal["step", "cosine"] = option("step", "learning rate schedule")
    drops: tuple[Share, ...] = option((0.67, 0.89), "schedule step: shares of the run where the rate drops 10x")
    frozen_stages: CountOrZero = option(0, "freeze the image encoder's stem and this many stages; 0: none")
    freeze_language: bool = option(False, "freeze the language model")
    parallel: Literal["ddp", "fsdp"] = option("ddp", "under torchrun: replicate, or shard the model (fsdp, torch 2.6)")
    ema: float = option(0.0, "decay of the weight average (EMA) that is validated and saved; 0: off", ge=0, lt=1)
    wise_ft: Share = option(0.0, "share of the starting weights in the final model (WiSE-FT)")
    save_every: Count = option(500, "steps between checkpoints")
    keep_every: CountOrZero = option(0, "also keep step-N.pt every this many steps; 0: never")
    validate_every: CountOrZero = option(0, "steps between validations; 0: never")
    validate_images: CountOrZero = option(200, "maximum validation images per dataset; 0: all")
    final: Literal["best", "last"] = option("best", "the step that the model is of: best by validation, or the last")
    log_every: Count = option(20, "steps between log lines")
    loggers: tuple[Logger, ...] = option((), "where curves and images go, beside metrics.jsonl")
    output: str = option("runs/train", "output folder")
    start: str | None = option(None, "model to start from; its config is the default of model.* (else random)")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.warmup >= self.steps:
            raise ValueError(f"warmup: got {self.warmup} of {self.steps} steps: give fewer than steps, such as a tenth")
        return self


# ---- options of single commands


@checked
class TaskConfig:
    """The datasets of one task to tune for: names of ``datasets.yaml``, or annotation files."""

    train: Name
    validate: str = option("", "dataset to validate on (default: images not tuned on)")
    test: str = option("", "dataset to evaluate on before and after tuning (default: none)")
    images: tuple[str, ...] = option((), "image folder; may be repeated")
    prompts: str = option("", "YAML of texts for class names (default: those of the dataset, else plain names)")


@checked
class TableTask(TaskConfig):
    """A task of a table of tasks, which is always tested too."""

    test: Name


@checked
class TuneConfig(StepConfig):
    """Tuning for one task; a rate of None is the release's for the mode."""

    mode: Mode = option("prompt", "what is trained")
    shots: Count | None = option(None, "few-shot: training images (or boxes) per class; default: all")
    per: Literal["image", "box"] = option("image", "what --shots counts")
    image_list: tuple[str, ...] = option((), "ids of the images to tune on, instead of a random sample")
    rank: Count = option(8, "mode lora: rank of each change")
    alpha: Positive = option(16.0, "mode lora: changes are multiplied by alpha / rank")
    targets: tuple[str, ...] = option(
        ("fusion", "text.layer.attention"),
        "mode lora: part of the names of linear layers to adapt; may be repeated (default: fusion and text attention)",
        min_length=1,
    )
    lr: Rate | None = option(None, "learning rate (default: 0.05 for prompt, 1e-3 for lora, 1e-5 for text, else 1e-4)")
    weight_decay: Rate | None = option(None, "weight decay (default: 0.25 for prompt, else 0.05)")
    epochs: Count = option(100, "maximum number of epochs")
    images_per_epoch: CountOrZero = option(0, "images drawn per epoch; 0: every image once, but at least 64 in all")
    drop_after: Count = option(3, "epochs without improvement before the learning rate drops 10x")
    patience: Count = option(8, "epochs without improvement before training stops")
    augment: bool = option(False, "random flips and sizes in each epoch; image features cannot be cached then")
    thresholds: bool = option(True, "store for each class the score threshold with the best F1 on validation")
    max_val_images: Count = option(100, "maximum number of validation images")
    cache_gb: Rate = option(4.0, "memory for cached image features, in GB")


@checked
class EvaluateConfig:
    """How a model is evaluated."""

    protocol: Protocol | None = option(None, "which metrics are computed (default: by the annotation format)")
    prompts: tuple[str, ...] = option((), "YAML of texts for class names, or none for plain names; repeat to compare")
    task: tuple[str, ...] = option((), "task.safetensors of glip tune, or none for the plain model; repeat to compare")
    image_size: Side | None = option(None, "images are resized to this short side, in pixels (default: the model's)")
    dtype: Dtype = option("float32", DTYPE)
    batch_size: Count = option(1, "images, or chunks of a long list of class names, per forward pass")
    max_names: CountOrZero | None = option(None, "class names per chunk; 0: as many as fit (default: the protocol's)")
    max_detections: CountOrZero | None = option(None, "limit per image, for LVIS per chunk (default: the protocol's)")
    images: tuple[str, ...] = option((), "image folder, for annotation files; may be repeated")
    root: str | None = option(None, "data folder (default: environment variable GLIP_DATA, or this folder)")
    out: str | None = option(None, "output folder (default: runs/evaluate, or beside the file of --predictions)")
    compete: Rate | None = option(None, COMPETE)
    draw: bool = option(False, "also draw curves, a confusion matrix, score histograms and the worst images")
    save_thresholds: bool = option(False, "store the threshold of best F1 of each class with the model or the task")

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluateConfig":
        if self.task and self.prompts:
            raise ValueError(f"prompts: got {self.prompts[0]!r} with a task, which has texts of its own: give only one")
        return self


@checked
class LabelConfig:
    """Pseudo-labelling: how captions become boxes, and which pairs of image and caption are worth labelling."""

    threshold: Share = option(
        0.1, "lowest score stored (default: 0.1); with --names, of a label (default: the model's)"
    )
    max_detections: Count = option(100, "maximum detections per caption")
    dtype: Dtype = option("float32", DTYPE)
    batch_size: Count = option(4, "images or captions per forward pass")
    together: Count = option(1, "maximum captions of one image joined in one prompt; 1: one forward pass per caption")
    form: Literal["jsonl", "parquet"] = option("jsonl", "file format of the labels")
    pipeline: str | None = option(None, "spaCy pipeline that finds noun phrases (default: the bundled finder)")
    referring: bool = option(False, "widen noun phrases to whole referring expressions")
    engine: Literal["local", "torchrun", "ray"] = option("local", "where workers run")
    workers: Count = option(1, "number of Ray actors")
    threads: CountOrZero = option(0, "CPU threads per worker; 0: OMP_NUM_THREADS, else usable cores / workers")
    per_shard: Count = option(1000, "images per shard, where all captions are in one file")
    min_side: CountOrZero = option(64, "skip images whose short side is below this many pixels; 0: off")
    max_aspect: Rate = option(4.0, "skip images whose aspect ratio (long side / short side) is above this; 0: off")
    max_pixels: CountOrZero = option(64_000_000, "skip images with more pixels; 0: off")
    min_bytes: CountOrZero = option(2_000, "skip smaller image files; 0: off")
    max_bytes: CountOrZero = option(50_000_000, "skip larger image files; 0: off")
    min_words: CountOrZero = option(2, "skip captions with fewer words; 0: off")
    max_words: CountOrZero = option(64, "skip captions with more words; 0: off")
    max_tokens: int = option(0, "skip captions with more tokens; 0: the model's limit; -1: off", ge=-1)
    min_phrases: Count = option(1, "skip captions with fewer noun phrases")
    max_repeats: CountOrZero = option(10, "skip a caption after this many occurrences in a shard; 0: off")
    same_image: Bits = option(4, "skip near-duplicate images, whose hashes differ in at most N of 64 bits; -1: off")
    keep_html: bool = option(False, "keep captions with HTML")
    keep_control_characters: bool = option(False, "keep captions with control characters")
    keep_without_letters: bool = option(False, "keep captions without letters, such as only emoji")
    keep_unknown_words: bool = option(False, "keep phrases with words that the tokenizer cannot read, such as emoji")
    latin_only: bool = option(False, "skip captions with letters of other scripts")


@checked
class SelectConfig:
    """Filter pseudo-labels by score, overlap and size."""

    min_score: Share = option(0.5, "drop boxes that score lower (GLIP 0.5, OWL-ST 0.1, GRIT 0.65)")
    min_box_side: Rate = option(1.0, "drop boxes with a shorter side, in pixels")
    max_box_area: Share = option(1.0, "drop boxes that cover a larger share of the image; 1: off")
    nms: Share = option(1.0, "IoU above which the lower-scored of two boxes of a phrase is removed; 1: off")
    nms_across: Share = option(1.0, "the same between boxes of all phrases of a caption (GRIT 0.5); 1: off")
    max_per_phrase: CountOrZero = option(0, "maximum boxes per phrase, best first; 0: no limit")
    min_best_score: Share = option(0.5, "skip captions whose best box scores lower (OWL-ST 0.3)")


@checked
class SelfTrainConfig:
    """Rounds of self-training."""

    rounds: Count = option(1, "number of rounds; each student is the teacher of the next round")
    share: float = option(0.5, "share of pseudo-labelled images among the student's training images", gt=0, lt=1)
    from_teacher: bool = option(True, "start each student from its teacher's weights, else from train.start")
    soft: bool = option(False, "weight the losses of a pseudo-label by its score")
    box_loss: bool = option(True, "train box regression on pseudo-labels, not only the alignment with words")
