"""The diffusers teacher on a tiny real Stable Diffusion, against the plain pipelines by hand."""

import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_diffusion
import torch
from armada.cache_schemas.errors import (
    JobError,
    MissingExtraError,
    TeacherOutputError,
    TeacherSourceError,
)
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Answers, Example, example_seed
from armada.stages.precompute.teachers.diffusers import DiffusersOptions, DiffusersTeacher
from armada.stages.precompute.teachers.latents import (
    Request,
    text_to_latents,
    text_to_pictures,
    watched,
)
from armada.stages.precompute.teachers.pipelines import shortened_prompts
from armada.stages.tokenizing import long_texts
from PIL import Image
from tiny_tokenizers import KINDS, make_kind

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"steps": 3, "height": 64, "width": 32, "resize": 16}
SECOND_PASS = b"second pass"

MakeTeacher = Callable[..., DiffusersTeacher]


def example(*segments: str) -> Example:
    return Example(example_key(segments), segments)


EXAMPLES = [
    example("A red", "kite"),
    example("two dogs"),
    example("x"),
    example("a sentence of too many letters"),
    example("blue"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models, made once."""
    root = tmp_path_factory.mktemp("models")
    tiny_diffusion.make_stable_diffusion(root / "sd")
    tiny_diffusion.make_lora(root / "lora")
    tiny_diffusion.make_clip_vision(root / "clip_vision")
    tiny_diffusion.make_vit(root / "vit")
    tiny_diffusion.make_vit(root / "dino", pooler=False)
    tiny_diffusion.make_open_clip(root / "open_clip")
    return root


@pytest.fixture
def make(models: Path) -> MakeTeacher:
    """Makes and loads a teacher of the tiny pipeline, or of another folder."""

    def teacher(place: Path | None = None, load: bool = True, **options: Any) -> DiffusersTeacher:
        made = DiffusersTeacher(
            str(place or models / "sd"), DiffusersOptions(**(QUICK | options)), CPU
        )
        if load:
            made.load()
        return made

    return teacher


@pytest.fixture
def broken(models: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline, to be damaged."""
    return Path(shutil.copytree(models / "sd", tmp_path / "broken"))


def ask(teacher: DiffusersTeacher, examples: list[Example]) -> Answers:
    with torch.inference_mode():
        return teacher.encode(examples)


def rows(teacher: DiffusersTeacher, examples: list[Example]) -> npt.NDArray[Any]:
    return ask(teacher, examples).features[teacher.spec.features[0].name]


def edit_index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def generator(of: Example, stream: bytes = b"") -> torch.Generator:
    return torch.Generator().manual_seed(example_seed(0, of.key + stream))


def by_hand(folder: Path, of: Example, channel_order: str = "rgb") -> tuple[Image.Image, Any]:
    """The paper's stage 1 for one example: the first picture, through a PNG, and the latents."""
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    prompt = " ".join(of.segments).lower()
    first = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    png = io.BytesIO()
    first(
        prompt,
        height=64,
        width=32,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=generator(of),
    ).images[0].save(png, format="PNG")
    picture = Image.open(png)
    if channel_order == "bgr":
        picture = Image.merge("RGB", picture.split()[::-1])
    second = StableDiffusionImg2ImgPipeline(**first.components, requires_safety_checker=False)
    latents = second(
        prompt,
        image=picture.resize((16, 16), Image.Resampling.BICUBIC),
        strength=0.75,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=generator(of, SECOND_PASS),
        output_type="latent",
    ).images
    return picture, latents.numpy().reshape(-1)


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
def test_latents_are_those_of_the_plain_pipelines(
    models: Path, make: MakeTeacher, channel_order: str
) -> None:
    teacher = make(channel_order=channel_order)
    answers = rows(teacher, EXAMPLES[:2])
    assert teacher.spec.features[0].shape == (4 * 2 * 2,)
    assert answers.dtype == np.float32
    for answer, of in zip(answers, EXAMPLES, strict=False):
        np.testing.assert_array_equal(answer, by_hand(models / "sd", of, channel_order)[1])


def test_colours_matter(make: MakeTeacher) -> None:
    rgb, bgr = make(), make(channel_order="bgr")
    assert rgb.spec.fingerprint != bgr.spec.fingerprint
    assert np.abs(rows(rgb, EXAMPLES[:1]) - rows(bgr, EXAMPLES[:1])).max() > 1e-3


@pytest.mark.parametrize("source", ["img2img", "txt2img"])
def test_answers_do_not_depend_on_the_batch(make: MakeTeacher, source: str) -> None:
    teacher = make(source=source)
    together = rows(teacher, EXAMPLES)
    for size in (1, 2, 3):
        parts = [EXAMPLES[start : start + size] for start in range(0, len(EXAMPLES), size)]
        split = np.concatenate([rows(teacher, part) for part in parts])
        np.testing.assert_array_equal(split, together)
    np.testing.assert_array_equal(rows(teacher, EXAMPLES[::-1])[::-1], together)
    np.testing.assert_array_equal(rows(make(source=source), EXAMPLES), together)


def test_a_batch_drawn_at_once_agrees_up_to_rounding(make: MakeTeacher) -> None:
    from armada.stages.precompute.teachers import latents

    teacher = make(source="txt2img")
    prompts = [teacher._options.text(one.segments) for one in EXAMPLES]
    request = latents.Request(prompts, [one.key for one in EXAMPLES])
    with torch.inference_mode():
        at_once = latents.text_to_latents(teacher._pipeline, teacher._options, request)
    np.testing.assert_allclose(at_once.flatten(1), rows(teacher, EXAMPLES), atol=1e-4)


def test_one_pass_gives_the_latents_of_the_first_picture(models: Path, make: MakeTeacher) -> None:
    from diffusers import StableDiffusionPipeline

    teacher = make(source="txt2img")
    assert teacher.spec.features[0].shape == (4 * 8 * 4,)
    plain = StableDiffusionPipeline.from_pretrained(models / "sd", use_safetensors=True)
    latents = plain(
        "two dogs",
        height=64,
        width=32,
        num_inference_steps=3,
        generator=generator(EXAMPLES[1]),
        output_type="latent",
    ).images
    np.testing.assert_array_equal(rows(teacher, EXAMPLES[1:2])[0], latents.numpy().reshape(-1))


def test_long_prompts_are_flagged(make: MakeTeacher) -> None:
    truncated = ask(make(source="txt2img"), EXAMPLES).truncated
    assert truncated.tolist() == [False, False, False, True, False]


def test_a_very_long_prompt_is_cut_and_draws_what_the_whole_one_draws(
    models: Path, make: MakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_texts, "LONG", 1)
    monkeypatch.setattr(long_texts, "TRIED", 1)
    teacher, long = make(), example("a red kite, " * 400)
    (cut,) = shortened_prompts(teacher._pipeline, list(long.segments))
    assert len(cut) < len(long.segments[0]) / 2
    answers = ask(teacher, [long])
    assert answers.truncated.tolist() == [True]
    found = answers.features["latent"][0]
    np.testing.assert_array_equal(found, by_hand(models / "sd", long)[1])


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"lookahead"}))
def test_a_prompt_is_cut_for_all_tokenizers_or_for_none(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from diffusers import StableDiffusionXLPipeline

    monkeypatch.setattr(long_texts, "LONG", 1)
    monkeypatch.setattr(long_texts, "TRIED", 1)
    tokenizers = [tiny_diffusion.make_tokenizer(), make_kind(kind)]
    pipeline = StableDiffusionXLPipeline(
        None, None, None, *tokenizers, None, tiny_diffusion.make_scheduler(), add_watermarker=False
    )
    for text in ("the red bird sings, " * 300, "red" * 2000, "红色鸟" * 900):
        (cut,) = shortened_prompts(pipeline, [text])
        for tokenizer in tokenizers:
            asked = {"truncation": True, "max_length": 512}
            assert tokenizer(cut, **asked).input_ids == tokenizer(text, **asked).input_ids
    tokenizers[1].add_tokens(["<cat>", "<cat>_1"])
    assert shortened_prompts(pipeline, [text]) == [text]


def test_prompts_of_other_pipelines_are_left_whole(make: MakeTeacher) -> None:
    from diffusers import PixArtAlphaPipeline

    tokenizer = tiny_diffusion.make_tokenizer()
    pipeline = PixArtAlphaPipeline(tokenizer, None, None, None, tiny_diffusion.make_scheduler())
    text = "a red kite, " * 4000
    assert shortened_prompts(pipeline, [text]) == [text]
    assert shortened_prompts(make()._pipeline, [text]) != [text]


@pytest.mark.parametrize("source", ["img2img", "txt2img"])
def test_kept_images_are_png_and_change_nothing(
    models: Path, make: MakeTeacher, source: str
) -> None:
    plain, keeping = make(source=source), make(source=source, keep_images=True)
    assert plain.spec.fingerprint == keeping.spec.fingerprint
    answers = ask(keeping, EXAMPLES[:2])
    np.testing.assert_array_equal(answers.features["latent"], rows(plain, EXAMPLES[:2]))
    assert not ask(plain, EXAMPLES[:1]).images
    assert len(answers.images) == 2
    kept = Image.open(io.BytesIO(answers.images[0]))
    assert kept.format == "PNG"
    assert kept.size == (32, 64)
    np.testing.assert_array_equal(kept, by_hand(models / "sd", EXAMPLES[0])[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"source": "txt2img", "keep_images": True}, {"image_encoder": "transformers:CLIP"}],
    ids=["two passes", "kept images", "embedded"],
)
def test_a_picture_that_is_not_finite_is_no_black_one(
    models: Path, make: MakeTeacher, options: dict[str, Any]
) -> None:
    """A VAE that overflows in half precision decodes to NaN, which 8 bits show as black."""
    if "image_encoder" in options:
        options = {"image_encoder": f"transformers:{models / 'clip_vision'}"}
    teacher = make(**options)
    asked = [example("a red kite"), example("two dogs")]
    assert np.isfinite(rows(teacher, asked)).all()
    with torch.no_grad():
        teacher._pipeline.vae.decoder.conv_out.weight.fill_(float("nan"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        assert np.isnan(rows(teacher, asked)).all()


@pytest.fixture
def decoded(models: Path) -> Callable[..., Any]:
    """Decodes latents [3, 4, 8, 8] in half precision as the first pass does."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(models / "sd" / "vae", torch_dtype=torch.float16).eval()
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()

    @torch.inference_mode()
    def decode(hook: Callable[..., Any] | None = None) -> tuple[Any, list[bool], Any]:
        handle = hook and vae.decoder.register_forward_hook(hook)
        with watched(vae) as finite:
            pictures = vae.decode(latents, return_dict=False)[0]
        if handle:
            handle.remove()
        return pictures, torch.cat(finite).tolist(), vae

    return decode


def test_only_what_overflows_is_decoded_in_float32(decoded: Callable[..., Any]) -> None:
    expected, _, _ = decoded()

    def overflow(decoder: Any, given: Any, pictures: torch.Tensor) -> torch.Tensor:
        first = torch.zeros(len(pictures), 1, 1, 1)
        first[0] = torch.inf if pictures.dtype == torch.float16 else 0
        return pictures + first.to(pictures.dtype)

    pictures, finite, vae = decoded(overflow)
    assert {weight.dtype for weight in vae.parameters()} == {torch.float16}
    assert finite == [True] * 3
    assert vae.dtype == pictures.dtype == torch.float16
    assert torch.equal(pictures[1:], expected[1:])
    torch.testing.assert_close(pictures[0], expected[0], rtol=0, atol=0.1)
    assert not torch.equal(pictures[0], expected[0]), "nothing was decoded again"


def test_pictures_are_decoded_one_by_one_where_memory_runs_out(decoded: Callable[..., Any]) -> None:
    expected, _, _ = decoded()
    rows = []

    def narrow(decoder: Any, given: Any, pictures: torch.Tensor) -> None:
        rows.append(len(pictures))
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    pictures, finite, _ = decoded(narrow)
    assert rows == [3, 1, 1, 1]
    assert finite == [True] * 3
    torch.testing.assert_close(pictures, expected, rtol=0, atol=0.1)


def test_a_vae_that_overflows_in_half_precision_is_read_in_float32(
    models: Path, make: MakeTeacher, tmp_path: Path
) -> None:
    """Its first layer gives numbers that float16 lacks, and a norm makes them small again."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models / "sd", tmp_path / "sd")
    (file,) = (folder / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_in.weight"] *= 2e5
    assert weights["decoder.conv_in.weight"].abs().max() < 65504
    save_file(weights, file, metadata={"format": "pt"})
    teacher = make(folder, dtype="float16")
    assert np.isfinite(rows(teacher, EXAMPLES[:2])).all()
    pipeline, request = teacher._pipeline, Request(["a red kite"], [EXAMPLES[0].key])
    with torch.inference_mode():
        (picture,), finite = text_to_pictures(pipeline, teacher._options, request)
        drawn = text_to_latents(pipeline, teacher._options, request).float()
        vae = pipeline.vae.float()
        by_hand = vae.decode(drawn / vae.config.scaling_factor).sample[0]
    assert finite.tolist() == [True]
    expected = ((by_hand / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0)
    np.testing.assert_allclose(np.asarray(picture), expected, atol=2)


def test_lora_changes_answers_and_fingerprint(models: Path, make: MakeTeacher) -> None:
    plain, folder = make(), make(lora=str(models / "lora"))
    file = make(lora=str(models / "lora" / "pytorch_lora_weights.safetensors"), load=False)
    half = make(lora=str(models / "lora"), lora_scale=0.5)
    assert folder.spec.fingerprint == file.spec.fingerprint
    assert len({teacher.spec.fingerprint for teacher in (plain, folder, half)}) == 3
    answers = [rows(teacher, EXAMPLES[:1]) for teacher in (plain, folder, half)]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    assert np.abs(answers[1] - answers[2]).max() > 1e-3


def test_lora_name_is_no_part_of_the_fingerprint(
    models: Path, make: MakeTeacher, tmp_path: Path
) -> None:
    file = models / "lora" / "pytorch_lora_weights.safetensors"
    other = Path(shutil.copy(file, tmp_path / "ink.safetensors"))
    specs = [make(lora=str(path), load=False).spec for path in (file, other)]
    assert specs[0].fingerprint == specs[1].fingerprint


def test_clip_vision_embeds_the_first_picture(models: Path, make: MakeTeacher) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    folder = models / "clip_vision"
    teacher = make(image_encoder=f"transformers:{folder}")
    picture, _ = by_hand(models / "sd", EXAMPLES[0])
    pixels = CLIPImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(**pixels).image_embeds.numpy()
    assert teacher.spec.features[0].name == "image_embedding"
    assert teacher.spec.settings["source"] == "txt2img"
    np.testing.assert_allclose(rows(teacher, EXAMPLES[:1]), expected, atol=1e-6)


def test_vit_gives_its_pooler_and_dino_its_first_token(models: Path, make: MakeTeacher) -> None:
    from transformers import ViTImageProcessor, ViTModel

    picture, _ = by_hand(models / "sd", EXAMPLES[0])
    for name, pooler in (("vit", True), ("dino", False)):
        folder = models / name
        pixels = ViTImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
        model = ViTModel.from_pretrained(folder, add_pooling_layer=pooler).eval()
        with torch.inference_mode():
            output = model(**pixels)
        expected = output.pooler_output if pooler else output.last_hidden_state[:, 0]
        answer = rows(make(image_encoder=f"transformers:{folder}"), EXAMPLES[:1])
        np.testing.assert_allclose(answer, expected.numpy(), atol=1e-6)


def test_open_clip_embeds_the_first_picture(models: Path, make: MakeTeacher) -> None:
    import open_clip

    folder = models / "open_clip"
    teacher = make(image_encoder=f"open_clip:{folder}")
    picture, _ = by_hand(models / "sd", EXAMPLES[0])
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.inference_mode():
        expected = model.eval().encode_image(preprocess(picture)[None]).numpy()
    np.testing.assert_allclose(rows(teacher, EXAMPLES[:1]), expected, atol=1e-6)


def test_image_encoder_enters_the_fingerprint_by_its_weights(
    models: Path, make: MakeTeacher, tmp_path: Path
) -> None:
    moved = shutil.copytree(models / "vit", tmp_path / "moved")
    specs = [
        make(image_encoder=f"transformers:{folder}", load=False).spec
        for folder in (models / "vit", moved, models / "dino")
    ]
    assert specs[0].fingerprint == specs[1].fingerprint != specs[2].fingerprint


def test_the_settings_are_those_of_earlier_releases(make: MakeTeacher) -> None:
    """One more, and no cache of theirs could be continued."""
    names = "template lowercase source seed steps guidance height width resize strength"
    names += " second_steps negative_prompt channel_order lora_scale dtype store_dtype"
    assert set(make(load=False).spec.settings) == {*names.split(), "image_encoder"}
    coarse = make(load=False, matmul_precision="high").spec
    assert coarse.settings["matmul_precision"] == "high"


def test_fingerprint_follows_weights_and_settings(
    make: MakeTeacher, tmp_path: Path, broken: Path
) -> None:
    plain = make(load=False).spec
    other = tiny_diffusion.make_stable_diffusion(tmp_path / "other", seed=9)
    assert make(broken, load=False).spec.fingerprint == plain.fingerprint
    assert make(other, load=False).spec.fingerprint != plain.fingerprint
    changes = {"seed": 1, "steps": 4, "guidance": 2.0, "strength": 1.0, "second_steps": 4}
    changes |= {"negative_prompt": "grey", "lowercase": False, "dtype": "bfloat16"}
    prints = {make(load=False, **{key: value}).spec.fingerprint for key, value in changes.items()}
    assert len(prints | {plain.fingerprint}) == len(changes) + 1
    assert make(load=False, second_steps=3).spec.fingerprint == plain.fingerprint


def test_files_that_are_not_opened_are_not_digested(make: MakeTeacher, broken: Path) -> None:
    before = make(broken, load=False).spec.weights
    shutil.copy(
        broken / "vae" / "diffusion_pytorch_model.safetensors",
        broken / "vae" / "diffusion_pytorch_model.fp16.safetensors",
    )
    (broken / "safety_checker").mkdir()
    (broken / "safety_checker" / "pytorch_model.bin").write_bytes(b"pickle")
    (broken / "sd-v1-4.safetensors").write_bytes(b"another format")
    assert make(broken).spec.weights == before


def test_safety_checker_is_left_out(make: MakeTeacher, broken: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_index(broken, safety_checker=checker, requires_safety_checker=True)
    teacher = make(broken)
    assert teacher._pipeline.safety_checker is None
    np.testing.assert_array_equal(rows(teacher, EXAMPLES[:1]), rows(make(), EXAMPLES[:1]))


def test_half_precision_is_stored_in_half(make: MakeTeacher) -> None:
    teacher = make(dtype="bfloat16", source="txt2img")
    assert teacher.spec.features[0].dtype == "float16"
    assert rows(teacher, EXAMPLES[:1]).dtype == np.float16


def test_auto_is_half_on_a_gpu(models: Path) -> None:
    teacher = DiffusersTeacher(str(models / "sd"), DiffusersOptions(**QUICK), torch.device("cuda"))
    assert teacher.spec.settings["dtype"] == teacher.spec.features[0].dtype == "float16"


def test_the_papers_latents_are_1024_numbers(models: Path) -> None:
    teacher = DiffusersTeacher(str(models / "sd"), DiffusersOptions(), CPU)
    assert teacher.spec.features[0].shape == (1024,)
    assert teacher.spec.settings["lowercase"] is True


def test_everything_is_frozen(models: Path, make: MakeTeacher) -> None:
    teacher = make(lora=str(models / "lora"))
    modules = [part for part in teacher._pipeline.components.values() if hasattr(part, "training")]
    assert len(modules) == 3
    assert not any(part.training for part in modules)
    assert not any(weight.requires_grad for part in modules for weight in part.parameters())


def test_chance_beside_the_own_generators_is_refused(make: MakeTeacher) -> None:
    teacher = make(source="txt2img")
    step = teacher._pipeline.scheduler.step

    def careless(*arguments: Any, **more: Any) -> Any:
        torch.randn(1)
        return step(*arguments, **more)

    teacher._pipeline.scheduler.step = careless
    with pytest.raises(TeacherOutputError, match="global random generator"):
        ask(teacher, EXAMPLES[:1])


def test_a_shape_that_was_not_promised_is_refused(make: MakeTeacher) -> None:
    teacher = make(source="txt2img")
    teacher._options = teacher._options.model_copy(update={"height": 32})
    with pytest.raises(TeacherOutputError, match=r"64 numbers per example, but .* says 128"):
        ask(teacher, EXAMPLES[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 36}, "height: 36 is not a multiple of 8"),
        ({"resize": 20}, "resize: 20 is not a multiple of 8"),
        ({"strength": 0.2}, "strength: 0.2 of 3 steps leaves no steps"),
        ({"image_encoder": "clip"}, "image_encoder 'clip': is neither"),
        ({"image_encoder": "timm:x"}, "image_encoder 'timm:x': is neither"),
    ],
)
def test_bad_options_are_refused(make: MakeTeacher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        make(load=False, **options)


def test_folder_without_index_is_refused(make: MakeTeacher, tmp_path: Path) -> None:
    with pytest.raises(TeacherSourceError, match=r"holds no model_index\.json"):
        make(tmp_path, load=False)


def test_index_that_is_not_json_is_refused(make: MakeTeacher, broken: Path) -> None:
    (broken / "model_index.json").write_text("{")
    with pytest.raises(TeacherSourceError, match="not JSON"):
        make(broken, load=False)


def test_code_in_the_folder_is_refused(make: MakeTeacher, broken: Path) -> None:
    edit_index(broken, _class_name=["pipeline", "MyPipeline"])
    with pytest.raises(TeacherSourceError, match="custom code"):
        make(broken, load=False)


def test_missing_component_is_refused(make: MakeTeacher, broken: Path) -> None:
    shutil.rmtree(broken / "unet")
    with pytest.raises(TeacherSourceError, match="names unet, but there is no such folder"):
        make(broken, load=False)


def test_pickled_component_is_refused(make: MakeTeacher, broken: Path) -> None:
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(TeacherSourceError, match="vae: weights are pickled"):
        make(broken, load=False)


def test_variant_alone_is_refused(make: MakeTeacher, broken: Path) -> None:
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    with pytest.raises(TeacherSourceError, match="save the pipeline without a variant"):
        make(broken, load=False)


@pytest.mark.parametrize(
    ("component", "name"),
    [("text_encoder", "model"), ("unet", "diffusion_pytorch_model")],
)
def test_weights_that_would_be_random_are_refused(
    make: MakeTeacher, broken: Path, component: str, name: str
) -> None:
    from safetensors.torch import load_file, save_file

    file = broken / component / f"{name}.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[3])
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(TeacherSourceError, match=f"{component}: the weights lack"):
        make(broken)


def test_unknown_shape_is_refused_unless_pictures_are_embedded(
    models: Path, make: MakeTeacher, broken: Path
) -> None:
    (broken / "vae" / "config.json").write_text("{}")
    with pytest.raises(TeacherSourceError, match="shape of the latents is not in"):
        make(broken, load=False)
    embedding = make(broken, load=False, image_encoder=f"transformers:{models / 'vit'}")
    assert embedding.spec.features[0].shape == (tiny_diffusion.EMBEDDING_WIDTH,)


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("NoSuchPipeline", "NoSuchPipeline is no pipeline of this diffusers"),
        ("DDPMPipeline", "DDPMPipeline takes no guidance_scale"),
        ("PixArtAlphaPipeline", "no image-to-image counterpart; set source to txt2img"),
    ],
)
def test_classes_are_refused_before_weights_are_read(
    make: MakeTeacher, broken: Path, class_name: str, message: str
) -> None:
    edit_index(broken, _class_name=class_name)
    for weights in broken.glob("*/*.safetensors"):
        weights.write_bytes(b"never opened")
    with pytest.raises(TeacherSourceError, match=message):
        make(broken)


def test_bad_loras_are_refused(make: MakeTeacher, models: Path, tmp_path: Path) -> None:
    (tmp_path / "pickle.bin").write_bytes(b"")
    for lora, message in (
        (tmp_path / "none.safetensors", "is not an existing"),
        (tmp_path / "pickle.bin", "is not an existing"),
        (tmp_path, r"holds 0 \*\.safetensors files"),
    ):
        with pytest.raises(TeacherSourceError, match=message):
            make(load=False, lora=str(lora))
    with pytest.raises(TeacherSourceError, match=r"LoRA|lora"):
        make(lora=str(models / "vit"))


def test_lora_without_peft_is_refused(
    make: MakeTeacher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"needs peft: pip install 'armada-kd\[lora\]'"):
        make(load=False, lora=str(models / "lora"))


def test_bad_image_encoders_are_refused(
    make: MakeTeacher, models: Path, tmp_path: Path, broken: Path
) -> None:
    vit = Path(shutil.copytree(models / "vit", tmp_path / "vit"))
    (vit / "preprocessor_config.json").unlink()
    clip = Path(shutil.copytree(models / "open_clip", tmp_path / "open_clip"))
    (clip / "open_clip_config.json").write_text("{}")
    for encoder, message in (
        (f"transformers:{tmp_path / 'none'}", "no such folder"),
        (f"transformers:{vit}", r"holds no preprocessor_config\.json"),
        (f"open_clip:{vit}", r"holds no open_clip_model\.safetensors"),
        (f"open_clip:{clip}", r"no open_clip_config\.json with model_cfg\.embed_dim"),
    ):
        with pytest.raises(TeacherSourceError, match=message):
            make(load=False, image_encoder=encoder)
