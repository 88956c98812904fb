"""``import glip`` is lazy: it loads nothing heavy, and every public name is there when asked for."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from small import ROOT

import glip
from glip.errors import install_command

HEAVY = ("torch", "torchvision", "transformers", "spacy", "timm", "numpy", "PIL", "yaml", "pycocotools", "lvis", "cv2")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import glip", HEAVY),
        ("from glip import Prompt\nPrompt.from_caption('a cat', ['cat'])", ("spacy",)),  # only free captions are tagged
        ("import glip\nglip.load_config('tiny')", ("torch",)),
        ("from glip.cli.main import main\ntry: main(['detect', '--help'])\nexcept SystemExit: pass", ("torch",)),
        ("from glip.cli.main import main\ntry: main(['models'])\nexcept SystemExit: pass", ("torch",)),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code, absent):
    code += f"\nimport sys\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_detection_loads_only_what_it_needs(tmp_path):
    """Each of these takes between a third of torch's own time and as long."""
    image = ROOT / "docs" / "images" / "street.png"
    arguments = ["detect", str(image), "a red bus", "--out", str(tmp_path), "--device", "cpu"]
    late = ("torchvision", "transformers", "timm", "spacy", "matplotlib", "torch._dynamo", "pandas")
    test_nothing_heavy_is_loaded_before_it_is_needed(
        f"from glip.cli.main import main\ntry: main({arguments!r})\nexcept SystemExit as e: assert e.code == 0", late
    )


def test_every_public_name_is_there():
    names: dict[str, object] = {}
    exec("from glip import *", names)
    assert set(glip.__all__) <= names.keys() & set(dir(glip))
    assert glip.list_pretrained() == ("glip-nano", "glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l")


def test_unknown_name_is_explained():
    with pytest.raises(AttributeError, match="module 'glip' has no attribute 'Dectector'; it has GLIP, Criterion"):
        _ = glip.Dectector
    with pytest.raises(ImportError):
        exec("from glip import Dectector")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'glip[serve]'"),
        ('{"url": "https://host/glip.whl", "archive_info": {}}', "pip install 'glip[serve]'"),
        ('{"url": "file:///my%20code/glip", "dir_info": {}}', "pip install 'glip[serve] @ file:///my%20code/glip'"),
    ],
)
def test_extras_are_installed_from_where_glip_is_from(origin, command, monkeypatch, tmp_path):
    assert install_command("serve") == f"pip install -e '{ROOT}[serve]'", "a checkout"
    monkeypatch.setattr("glip.errors.__file__", str(tmp_path / "glip" / "errors.py"))
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: SimpleNamespace(read_text=lambda _: origin))
    assert install_command("serve") == command
