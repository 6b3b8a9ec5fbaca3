"""Pictures are made ready as the reference processors do it, on real photographs: the same 8-bit pixels, so the same numbers.

The processors of transformers that use Pillow are compared (`...ImageProcessorPil`), and open_clip's transform, which does too. Those
of transformers that use torchvision's tensors differ from them themselves.
"""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.core.files import BadFile
from simvlm_jax.data.fit import Fit
from simvlm_jax.data.transforms import Pixels
from simvlm_jax.interop import pixels
from simvlm_jax.interop.parts import open_clip_pixels
from simvlm_jax.interop.pixels import pixels_of

HALF = (0.5, 0.5, 0.5)
USUAL = pixels.Pixels(64, {"how": "whole", "filter": "bicubic"}, HALF, HALF)
PHOTOGRAPHS = 24


@pytest.fixture(scope="module")
def photographs(shared):
    """Encoded pictures of many shapes, some of them grey."""
    found = []
    with tarfile.open(shared("imagenet1k_samples") / "images.tar") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                found.append(archive.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]
            if len(found) == PHOTOGRAPHS:
                return found
    raise AssertionError("there are fewer photographs")


def ours(found, encoded):
    """[C,Y,X] as the model sees a picture."""
    made = Pixels(found.image_size, fit=Fit(**found.fit))({"image": encoded}, None)["image"][0]
    mean, deviation = (np.asarray(x, np.float32) for x in (found.mean, found.deviation))
    return ((made.astype(np.float32) / 255 - mean) / deviation).transpose(2, 0, 1)


PROCESSORS = {
    "CLIPImageProcessorPil": (224, {}),
    "SiglipImageProcessorPil": (224, {}),
    "ViTImageProcessorPil": (224, {}),
    "DeiTImageProcessorPil": (224, {}),
    "BeitImageProcessorPil": (224, {}),
    "CLIPImageProcessorPil of 97 px": (97, {"size": {"shortest_edge": 131}, "crop_size": {"height": 97, "width": 97}}),
    "CLIPImageProcessorPil, filled": (97, {"size": {"shortest_edge": 80}, "crop_size": {"height": 97, "width": 97}}),
    "SiglipImageProcessorPil, bilinear": (96, {"size": {"height": 96, "width": 96}, "resample": 2}),
    "ViTImageProcessorPil, not square": ((96, 160), {"size": {"height": 96, "width": 160}}),
    "ViTImageProcessorPil, lanczos": (64, {"size": {"height": 64, "width": 64}, "resample": 1, "do_normalize": False}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers(photographs, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    image_size, fields = PROCESSORS[name]
    theirs = getattr(transformers, name.split()[0].rstrip(","))(**fields)
    theirs.save_pretrained(tmp_path)
    found = pixels_of(tmp_path, image_size, USUAL)
    for encoded in photographs:
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
        expected = np.asarray(theirs(picture, return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(ours(found, encoded), expected, rtol=0, atol=2e-6)


def test_padded_to_a_square(photographs, tmp_path):
    """LLaVA fills a picture up to a square with the mean colour, then resizes."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = transformers.LlavaImageProcessorPil(do_pad=True)
    theirs.save_pretrained(tmp_path)
    found = pixels_of(tmp_path, 224, USUAL)
    assert found.fit["how"] == "pad" and found.fit["fill"] == (122, 116, 104)
    for encoded in photographs:
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
        expected = np.asarray(theirs(picture, return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(ours(found, encoded), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("side", [224, 97])
def test_open_clip(photographs, mode, side):
    transform = pytest.importorskip("open_clip.transform")
    said = {"interpolation": "bicubic", "resize_mode": mode, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    theirs = transform.image_transform(
        side,
        is_train=False,
        mean=said["mean"],
        std=said["std"],
        resize_mode=mode,
        interpolation="bicubic",
        fill_color=0,
    )
    usual = USUAL._replace(fit={"how": "shorter", "rounding": "even"})
    found = open_clip_pixels({"preprocess_cfg": said}, side, usual)
    for encoded in photographs:
        expected = theirs(Image.open(io.BytesIO(encoded)).convert("RGB")).numpy()
        np.testing.assert_allclose(ours(found, encoded), expected, rtol=0, atol=2e-6)


def test_what_is_written_is_read_again(tmp_path):
    for fit in ({"how": "whole", "filter": "bilinear"}, {"how": "whole", "side": 256}, {"how": "shorter", "side": 248}):
        data = {"image_size": 224, "whole": False, "fit": fit}

        class Data(dict):
            __getattr__ = dict.__getitem__

        said = pixels.written(Data(data), (0.1, 0.2, 0.3), HALF, "ViTImageProcessor")
        (tmp_path / pixels.FILE).write_text(json.dumps(said))
        found = pixels_of(tmp_path, 224, USUAL)
        same = {"filter": "bicubic", "rounding": "down", **fit}
        assert dict(found.fit) == same and found.mean == (0.1, 0.2, 0.3) and found.deviation == HALF


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"rescale_factor": 1.0}, "multiplies pixels by 1.0, and only 1/255 is known"),
        ({"resample": 9}, "resizes by filter 9"),
        ({"size": {"shortest_edge": 224}, "do_center_crop": False}, "cuts nothing out"),
        ({"size": {"max_pixels": 5}}, "known are shortest_edge, and height with width"),
        ({"image_mean": [0.5]}, "are not three numbers"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, said, told):
    (tmp_path / pixels.FILE).write_text(json.dumps(said))
    with pytest.raises(BadFile, match=told):
        pixels_of(tmp_path, 224, USUAL)
