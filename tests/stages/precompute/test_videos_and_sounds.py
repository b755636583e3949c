"""Teachers that generate videos and sounds, on tiny pipelines of real formats, against the plain
pipelines and encoders by hand."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_diffusion
import tiny_generators
import torch
from armada.cache_schemas.errors import JobError, TeacherOutputError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example, example_seed
from armada.stages.precompute.teachers.diffusers import DiffusersOptions, DiffusersTeacher
from pydantic import ValidationError

CPU = torch.device("cpu")
VIDEO: dict[str, Any] = {"steps": 2, "height": 32, "width": 32, "num_frames": 5}
SOUND: dict[str, Any] = {"steps": 2, "audio_seconds": 0.1}
MAKE = {
    "TextToVideoSD": tiny_generators.make_text_to_video,
    "Wan": tiny_generators.make_wan,
    "AudioLDM": tiny_generators.make_audioldm,
    "AudioLDM2": tiny_generators.make_audioldm2,
    "StableAudio": tiny_generators.make_stable_audio,
    "clip": tiny_diffusion.make_clip_vision,
    "clap": tiny_generators.make_clap,
    "wav2vec2": tiny_generators.make_wav2vec2,
    "pictures": tiny_diffusion.make_stable_diffusion,
}
ONE_LEVEL = 1
"""Rounding: weights that want gradients, as those of a plain pipeline, take other kernels."""
VIDEOS, SOUNDS = ("TextToVideoSD", "Wan"), ("AudioLDM", "AudioLDM2", "StableAudio")

Find = Callable[[str], Path]
MakeTeacher = Callable[..., DiffusersTeacher]


def example(*segments: str) -> Example:
    return Example(example_key(segments), segments)


EXAMPLES = [example("A red", "kite"), example("two dogs"), example("x")]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """The folder of a model of `MAKE`, made once."""
    root = tmp_path_factory.mktemp("models")

    def found(name: str) -> Path:
        if not (root / name).exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries, about each other
                MAKE[name](root / name)
        return root / name

    return found


@pytest.fixture
def make(find: Find) -> MakeTeacher:
    def teacher(name: str, load: bool = True, **options: Any) -> DiffusersTeacher:
        if name in VIDEOS:
            options = {"image_encoder": f"transformers:{find('clip')}"} | VIDEO | options
        elif name in SOUNDS:
            options = {"audio_encoder": f"transformers:{find('wav2vec2')}"} | SOUND | options
        made = DiffusersTeacher(str(find(name)), DiffusersOptions(**options), CPU)
        if load:
            made.load()
        return made

    return teacher


def rows(teacher: DiffusersTeacher, examples: list[Example]) -> npt.NDArray[Any]:
    with torch.inference_mode():
        return np.asarray(teacher.encode(examples).features[teacher.spec.features[0].name])


def by_hand(folder: Path, of: Example, **asked: Any) -> Any:
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(example_seed(0, of.key))
    prompt = [" ".join(of.segments).lower()]
    more = {"guidance_scale": 7.5, "num_inference_steps": 2, "generator": [generator]}
    return pipeline(prompt=prompt, **more, **asked)


def seen(folder: Path, pictures: list[Any]) -> npt.NDArray[Any]:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    pixels = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    with torch.inference_mode():
        return np.asarray(model(**pixels).image_embeds)


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_the_plain_pipeline(find: Find, make: MakeTeacher, name: str) -> None:
    asked = {"num_frames": 5, "height": 32, "width": 32, "output_type": "pil"}
    (frames,) = by_hand(find(name), EXAMPLES[0], **asked).frames
    embedded = seen(find("clip"), list(frames))
    expected = {"first": embedded[0], "middle": embedded[2], "mean": embedded.mean(axis=0)}
    teachers = {frame: make(name, frame=frame) for frame in expected}
    for frame, teacher in teachers.items():
        assert teacher.spec.features[0].name == "video_embedding"
        np.testing.assert_allclose(rows(teacher, EXAMPLES[:1])[0], expected[frame], atol=1e-3)
    assert len({teacher.spec.fingerprint for teacher in teachers.values()}) == 3


def heard(folder: Path, sound: npt.NDArray[np.float32], clap: bool) -> npt.NDArray[Any]:
    from scipy.signal import resample_poly
    from transformers import AutoFeatureExtractor, AutoModel

    extractor, model = (
        AutoFeatureExtractor.from_pretrained(folder),
        AutoModel.from_pretrained(folder),
    )
    if clap:  # from 16 to 8 kHz
        sound = resample_poly(sound, 1, 2).astype(np.float32)
    inputs = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        if clap:
            return np.asarray(model.eval().get_audio_features(**inputs).pooler_output[0])
        return np.asarray(model.eval()(**inputs).last_hidden_state[0].mean(dim=0))


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_those_of_the_plain_pipeline(find: Find, make: MakeTeacher, name: str) -> None:
    length = "audio_end_in_s" if name == "StableAudio" else "audio_length_in_s"
    sound = by_hand(find(name), EXAMPLES[1], **{length: 0.1}).audios
    mono = np.asarray(torch.as_tensor(sound).float())[0]
    mono = mono.mean(axis=0) if mono.ndim == 2 else mono
    assert mono.shape == (tiny_generators.RATE // 10,)
    for encoder in ("wav2vec2", "clap"):
        teacher = make(name, audio_encoder=f"transformers:{find(encoder)}")
        assert teacher.spec.features[0].name == "audio_embedding"
        expected = heard(find(encoder), mono, clap=encoder == "clap")
        np.testing.assert_allclose(rows(teacher, EXAMPLES[1:2])[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", [*VIDEOS, *SOUNDS])
def test_answers_do_not_depend_on_the_batch(make: MakeTeacher, name: str) -> None:
    teacher = make(name)
    together = rows(teacher, EXAMPLES)
    assert np.abs(together[0] - together[1]).max() > 1e-4
    alone = np.concatenate([rows(teacher, [each]) for each in EXAMPLES[::-1]])[::-1]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["TextToVideoSD", "Wan", "AudioLDM", "StableAudio"])
def test_a_batch_generated_at_once_agrees_up_to_rounding(make: MakeTeacher, name: str) -> None:
    """As on a GPU."""
    from armada.stages.precompute.teachers.latents import Request

    teacher = make(name)
    texts = [teacher._options.text(each.segments) for each in EXAMPLES]
    request = Request(texts, [each.key for each in EXAMPLES])
    with torch.inference_mode():
        at_once, _ = teacher._answer(request)
    np.testing.assert_allclose(at_once, rows(teacher, EXAMPLES), atol=1e-3)


@pytest.mark.parametrize("name", ["TextToVideoSD", "Wan", "AudioLDM"])
def test_what_is_not_finite_is_reported(make: MakeTeacher, name: str) -> None:
    teacher = make(name)
    assert np.isfinite(rows(teacher, EXAMPLES)).all()
    part = teacher._pipeline.vocoder if name == "AudioLDM" else teacher._pipeline.vae.decoder
    with torch.no_grad():
        part.conv_out.weight.fill_(float("nan")) if hasattr(part, "conv_out") else [
            weight.fill_(float("nan")) for weight in part.conv_post.parameters()
        ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        assert np.isnan(rows(teacher, EXAMPLES)).all()


def test_a_frame_is_kept_and_changes_nothing(find: Find, make: MakeTeacher) -> None:
    import io

    from PIL import Image

    asked = {"num_frames": 5, "height": 32, "width": 32, "output_type": "pil"}
    (frames,) = by_hand(find("TextToVideoSD"), EXAMPLES[0], **asked).frames
    plain, keeping = make("TextToVideoSD"), make("TextToVideoSD", keep_images=True)
    assert plain.spec.fingerprint == keeping.spec.fingerprint
    with torch.inference_mode():
        answers = keeping.encode(EXAMPLES[:1])
    kept = np.asarray(Image.open(io.BytesIO(answers.images[0]))).astype(int)
    assert np.abs(kept - np.asarray(frames[0])).max() <= ONE_LEVEL


def test_other_numbers_of_frames_than_a_pipeline_makes_are_refused(make: MakeTeacher) -> None:
    with pytest.raises(TeacherOutputError, match="num_frames: 4, but this pipeline made 5"):
        rows(make("Wan", num_frames=4), EXAMPLES[:1])


def test_a_sound_longer_than_a_clap_reads_is_refused(find: Find, make: MakeTeacher) -> None:
    """It would read a part of it, chosen at random."""
    with pytest.raises(JobError, match="audio_seconds: 3, but this CLAP reads 2"):
        make("AudioLDM", audio_encoder=f"transformers:{find('clap')}", audio_seconds=3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "pictures",
            {**VIDEO, "image_encoder": "clip"},
            "StableDiffusionPipeline takes no num_fra",
        ),
        ("pictures", {**SOUND, "audio_encoder": "wav2vec2"}, "choose a text-to-audio pipeline"),
        ("Wan", {"num_frames": None}, "WanPipeline generates videos; set num_frames"),
        ("AudioLDM", {"audio_encoder": "clip"}, "a clip_vision_model is no known model of sounds"),
    ],
)
def test_pipelines_of_something_else_are_refused(
    find: Find, make: MakeTeacher, name: str, options: dict[str, Any], message: str
) -> None:
    for encoder in options.keys() & {"image_encoder", "audio_encoder"}:
        options = options | {encoder: f"transformers:{find(options[encoder])}"}
    with pytest.raises(TeacherSourceError, match=message):
        make(name, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 4}, "num_frames: of a video, frames are embedded; set image_encoder"),
        ({"frame": "mean"}, "frame: a picture has none"),
        ({"audio_encoder": "a:b", "image_encoder": "a:b"}, "a sound has no pictures"),
        ({"audio_seconds": 2}, "audio_seconds: of a sound; set audio_encoder"),
        ({"audio_encoder": "a:b", "height": 64}, "height: a sound has none"),
    ],
)
def test_options_of_another_medium_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusersOptions(**options)


def test_pictures_keep_the_fingerprints_of_earlier_releases(find: Find) -> None:
    teacher = DiffusersTeacher(str(find("pictures")), DiffusersOptions(), CPU)
    added = {"num_frames", "frame", "audio_encoder", "audio_seconds"}
    assert not added & teacher.spec.settings.keys()
