"""armada's own teachers promise what it asks of others', on tiny checkpoints of real formats."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import armada.testing
import openai_server
import pytest
import tiny_checkpoints
import tiny_diffusion
import tiny_embeddings
import tiny_generators
import tiny_text_towers
import tiny_vlms
from armada.stages.corpus.labels import NO_LABELS, LabelSpace
from armada.stages.distill.export import CARD, StudentCard
from armada.stages.distill.language.export import LANGUAGE_CARD, LanguageCard
from armada.stages.language.recipe import Recipe
from armada.stages.pictures import picture_segment
from armada.stages.precompute.remote.options import OF_API
from armada.stages.precompute.teachers import TEACHERS
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.choices_options import OF_ANSWERS, ChoicesOptions
from armada.stages.precompute.teachers.diffusers_options import OF_PICTURES
from armada.stages.testing.teachers import PAIRS, TEXTS
from armada.testing import TeacherTests
from PIL import Image
from tiny_language_models import make_causal_lm
from tiny_masked_models import make_masked_lm

pytestmark = pytest.mark.long

LABELS = ("calm", "busy", "stormy")
MAKE: dict[str, Callable[[Path], object]] = {
    "bert": lambda folder: tiny_checkpoints.make_bert(folder, TEXTS),
    "classifier": lambda folder: tiny_checkpoints.make_bert_classifier(folder, TEXTS, LABELS),
    "scorer": lambda folder: tiny_checkpoints.make_bert_classifier(folder, TEXTS, ("score",)),
    "llama": lambda folder: make_causal_lm(folder, texts=TEXTS),
    "masked": lambda folder: make_masked_lm(folder, texts=TEXTS),
    "clip": tiny_checkpoints.make_open_clip,
    "diffusion": tiny_diffusion.make_stable_diffusion,
    "video": tiny_generators.make_text_to_video,
    "sound": tiny_generators.make_audioldm,
    "clip_vision": tiny_diffusion.make_clip_vision,
    "wav2vec2": tiny_generators.make_wav2vec2,
    "clip_of_pictures": tiny_text_towers.make_clip_of_pictures,
    "multi_vector": lambda folder: tiny_embeddings.make_multi_vector_model(folder, TEXTS),
    "llava": lambda folder: tiny_vlms.make_vlm(folder, "llava", TEXTS),
    "idefics3": lambda folder: tiny_vlms.make_vlm(folder, "idefics3", TEXTS),
}


def make_student(folder: Path) -> None:
    """As a run leaves it."""
    MAKE["classifier"](folder)
    space = LabelSpace(task="classification", num_labels=len(LABELS), names=LABELS)
    told = {"label_column": "label", "pooling": "own", "dropout": 0.1}
    card = StudentCard(space=space, **OF_RUN, **told)
    (folder / CARD).write_text(card.model_dump_json())


def make_language_student(folder: Path) -> None:
    """As a run leaves it."""
    MAKE["llama"](folder)
    card = LanguageCard(space=NO_LABELS, recipe=Recipe(end_token=False), **OF_RUN)
    (folder / LANGUAGE_CARD).write_text(card.model_dump_json())


OF_RUN: dict[str, Any] = {"max_length": 48, "text_columns": ("text",), "metric": "loss"}
MAKE |= {"student": make_student, "language_student": make_language_student}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of `MAKE`, made once."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        if not (root / name).exists():
            MAKE[name](root / name)
        return root / name

    return make


class TestHash(TeacherTests):
    teacher = "hash:4"
    changing = {"seed": 1, "store_dtype": "float16"}


class TestHashWords(TeacherTests):
    teacher = "hash_words:4"
    changing = {**TestHash.changing, "max_words": 2}


TEXT_OPTIONS = {"template": "say {text}", "lowercase": True}
PRECISION = {"dtype": "bfloat16", "store_dtype": "float16"}
PLACE = {"device_map": "auto"}
OF_GPUS = ("matmul_precision",)
"""Options that change nothing on a CPU, or not always."""
OF_MANY_GPUS = (*OF_GPUS, "tensor_parallel")


class TestEncoder(TeacherTests):
    changing = {
        **TEXT_OPTIONS,
        **PRECISION,
        **{"max_length": 5, "pooling": "cls", "layers": (0,), "normalize": True, "dim": 3},
        **{"prompt": "query: ", "token_layers": (1,)},
    }
    unchanging = {"include_prompt": False, **PLACE}  # where there is none
    # Of hubs, prompts, last bits; attention is that of some families.
    untried = ("revision", "prompt_name", "padding", "attention_layers", *OF_MANY_GPUS)

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"encoder:{model('bert')}"


class TestEncoderWithPrompt(TestEncoder):
    options = {"prompt": "query: ", "pooling": ("mean", "max")}
    changing = {**TestEncoder.changing, "prompt": "a ", "include_prompt": False}
    unchanging = PLACE


class TestEncoderOfTokens(TestEncoder):
    options = {"token_layers": (0, 2), "layers": (1,)}
    changing = {**TestEncoder.changing, "attention_layers": (2,)}
    untried = ("revision", "prompt_name", "padding", *OF_MANY_GPUS)


class TestMultiVectorEncoder(TeacherTests):
    changing = {
        **TEXT_OPTIONS,
        **{"dtype": "bfloat16", "max_length": 5, "normalize": False, "dim": 3, "prompt": "query: "},
    }
    unchanging = PLACE
    untried = (
        *("revision", "padding", *OF_MANY_GPUS),
        # refused; or its numbers are in half precision
        *("pooling", "layers", "token_layers", "attention_layers", "include_prompt"),
        *("prompt_name", "store_dtype"),
    )

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"encoder:{model('multi_vector')}"


class TestDecoderAsEncoder(TestEncoder):
    options = {"pooling": "last"}

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"encoder:{model('llama')}"


class TestClassifier(TeacherTests):
    changing = {**TEXT_OPTIONS, **PRECISION, "max_length": 5, "pooled": True}
    unchanging = PLACE
    untried = ("revision", "padding", *OF_MANY_GPUS)

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"classifier:{model('classifier')}"


class TestCrossEncoder(TestClassifier):
    changing = {**TestClassifier.changing, "activation": "Identity"}
    texts = ()
    pairs = (*PAIRS, ("A Red Bird", "sings"))

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"cross_encoder:{model('scorer')}"


class TestStudent(TeacherTests):
    changing = {**PRECISION, "max_length": 5}
    unchanging = PLACE
    # of hubs, language models, and students with prompts, which others refuse
    untried = ("revision", "top_k", "temperatures", "prompt_name", *OF_MANY_GPUS)
    pairs = ()

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"student:{model('student')}"


class TestStudentOfLanguage(TestStudent):
    options = {"top_k": 4}
    changing = {"dtype": "bfloat16", "max_length": 5, "top_k": 3, "temperatures": (2.0,)}
    untried = ("revision", "store_dtype", "prompt_name", *OF_MANY_GPUS)  # top_k is stored as bytes

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"student:{model('language_student')}"


class TestMaskedLM(TeacherTests):
    options = {"top_k": 4, "max_length": 48}
    changing = {
        **{"dtype": "bfloat16", "max_length": 5, "mask_seed": 1, "mask_share": 0.5},
        **{"mask_token_share": 0.5, "random_token_share": 0.0, "masks_per_text": 2},
        **{"top_k": 3, "top_k_bits": 16, "temperatures": (2.0,), "dense": True},
    }
    unchanging = PLACE
    untried = ("revision", "padding", "store_dtype", *OF_MANY_GPUS)  # bytes are stored of top_k

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"masked_lm:{model('masked')}"


class TestCausalLM(TeacherTests):
    options = {
        **{"top_k": 4, "samples": 3, "samples_log_probs": True, "characters": True},
        **{"hidden_layers": (1,), "max_length": 48},
    }
    changing = {
        **PRECISION,
        **{"max_length": 40, "seed": 1, "end_token": False},
        **{"top_k": 3, "top_k_bits": 16, "temperatures": (2.0,), "samples": 4, "dense": True},
        **{"samples_log_probs": False, "characters": False, "hidden_layers": (0, 1)},
        "own_log_probs": True,
    }
    unchanging = PLACE
    untried = (
        *("revision", "padding", "max_new_tokens", "generation_temperature", "generation_top_p"),
        *("responses_per_prompt", "generation", *OF_MANY_GPUS),
        *("text_format", "prompt_template"),  # of prompts, see below
        *("system_prompt", "template_date", "template_options", "chat_prompt"),  # of chats
        *("user_template", "response_column", "stop", "thinking"),
    )

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"causal_lm:{model('llama')}"


class TestCausalLMThatResponds(TestCausalLM):
    options = {
        **TestCausalLM.options,
        **{"text_format": "plain", "max_new_tokens": 3, "generation_temperature": 1.0},
        "generation_top_p": 0.9,
    }
    changing = {
        **TestCausalLM.changing,
        **{"text_format": "chat", "prompt_template": "{text}: ", "max_new_tokens": 2},
        **{"generation_temperature": 0.0, "generation_top_p": 0.1},
        **{"responses_per_prompt": 2, "generation": "batched"},
    }
    untried = tuple(set(TestCausalLM.untried) - changing.keys())
    texts = ()
    pairs = tuple((prompt, text) for prompt, text in zip(TEXTS[::-1], TEXTS, strict=True) if text)


class TestCausalLMOfPromptsAlone(TestCausalLM):
    options = {
        **{"text_format": "chat", "response_column": False, "max_new_tokens": 4},
        **{"generation_temperature": 1.0, "max_length": 48},
    }
    changing = {
        **{"max_length": 40, "seed": 1, "max_new_tokens": 2, "generation_temperature": 0.0},
        **{"user_template": "say {1}", "responses_per_prompt": 2, "stop": ("e",)},
        **{"dtype": "bfloat16", "generation_top_p": 0.1},
    }
    untried = tuple(set(CausalLMOptions.model_fields) - changing.keys() - PLACE.keys())
    texts = tuple(text for text in TEXTS if text)
    pairs = ()


class TestChoices(TeacherTests):
    options = {"answers": ("rain", "red bird", "two dogs that sing")}
    changing = {
        **PRECISION,
        **{"max_length": 40, "prompt_template": "{text} is ", "text_format": "chat"},
        **{"answers": ("rain", "bird", "dogs"), "names": LABELS, "score": (1, 2, 3)},
        **{"end_token": True, "per": "token", "content_free": ("N/A",), "premise": "It is "},
    }
    unchanging = PLACE
    untried = (
        *("revision", *OF_MANY_GPUS),
        *("questions", "picture"),  # see below
        # of chats
        *("user_template", "system_prompt", "template_date", "template_options", "chat_prompt"),
    )

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"choices:{model('llama')}"


class TestChoicesOfAspects(TestChoices):
    options = {
        **{"answers": ("n", "y"), "questions": ("Dogs?", "Does a bird sing?")},
        "prompt_template": "{text} {question} ",
    }
    changing = {
        **{name: TestChoices.changing[name] for name in ("max_length", "end_token")},
        **{"questions": ("Dogs?",), "content_free": ("N/A",), "premise": "{question} "},
        **{"answers": ("no", "yes"), "score": (0, 1), "prompt_template": "{question} {text} "},
    }
    untried = (
        *(set(TestChoices.untried) - {"questions"}),
        "text_format",  # has a template of its own
        *("names", "per", "dtype", "store_dtype"),  # as above, or of no effect on one token
    )


class TestOpenClip(TeacherTests):
    changing = {"template": "say {text}", **PRECISION, "normalize": False}
    untried = (
        "revision",
        "weights",
        "lowercase",
        *OF_GPUS,
    )  # of hubs; and its tokenizer has no capitals

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"open_clip:{model('clip')}"


def _picture(colour: str, width: int) -> str:
    file = BytesIO()
    Image.new("RGB", (width, 20), colour).save(file, format="PNG")
    return picture_segment(file.getvalue())


PICTURES = (_picture("red", 20), _picture("blue", 40))


GENERATOR = ("generator", *(f"generator_{name}" for name in ("steps", "guidance", "size", "seed")))


class TestVlm(TeacherTests):
    options = {"picture": "given"}
    changing = {
        **{**TEXT_OPTIONS, **PRECISION, "template": "say {text}"},
        **{"pooling": ["last", "mean"], "layers": [1], "normalize": True, "max_length": 4},
    }
    unchanging = {"device_map": None}
    untried = (
        "revision",
        "padding",
        "picture",
        "chat_template",
        *OF_MANY_GPUS,
        *GENERATOR,
    )  # below, in part
    texts = ()
    pairs = tuple((picture, text) for picture in PICTURES for text in (TEXTS[0], "", TEXTS[-1]))

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"vlm:{model('llava')}"


class TestChoicesOfPictures(TeacherTests):
    options = {
        **{"picture": "given", "text_format": "chat", "user_template": "{text}?"},
        "answers": ("rain", "red bird"),
    }
    changing = {
        **PRECISION,
        **{"user_template": "of {text}", "system_prompt": "Be brief.", "per": "token"},
        **{"answers": ("rain", "two dogs"), "names": ("a", "b"), "score": (1, 2)},
        "max_length": 40,
    }
    untried = tuple(set(ChoicesOptions.model_fields) - changing.keys())
    texts = ()
    pairs = TestVlm.pairs

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"choices:{model('llava')}"


class TestVlmOfTexts(TeacherTests):
    changing = {**TestVlm.changing, "chat_template": False}
    unchanging = TestVlm.unchanging
    untried = ("revision", "padding", "picture", *OF_MANY_GPUS, *GENERATOR)

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"vlm:{model('idefics3')}"


class TestVlmThatDraws(TeacherTests):
    changing = {"generator_steps": 3, "generator_size": 64, "generator_seed": 1}
    changing |= {"generator_guidance": 2.0}
    untried = tuple({*TestVlm.changing, *TestVlm.unchanging, *TestVlm.untried} - changing.keys())
    texts = (TEXTS[0], "", TEXTS[4], TEXTS[-1])

    @pytest.fixture
    def source(self, model: Any) -> str:
        self.options = {"picture": "generated", "generator": str(model("diffusion"))}
        self.options |= {"generator_steps": 2, "generator_size": 32}
        return f"vlm:{model('llava')}"


class TestClipImage(TeacherTests):
    changing = {**TEXT_OPTIONS, **PRECISION, "neighbours": 2, "normalize": False, "max_length": 4}
    untried = ("revision", "pictures", "picture", *OF_GPUS)  # of hubs, of another folder; below

    @pytest.fixture
    def source(self, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
        self.options = {"pictures": str(tmp_path / "pictures")}
        (tmp_path / "pictures").mkdir()
        colours = [(r, g, b) for r in (0, 120, 255) for g in (0, 120, 255) for b in (0, 255)]
        for at, colour in enumerate(colours):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "pictures" / f"{at}.png")
        return f"clip_image:{model('clip_of_pictures')}"


class TestClipImageOfGivenPictures(TeacherTests):
    options = {"picture": "given"}
    changing = {**PRECISION, "normalize": False}
    untried = (
        *("revision", "picture", *OF_GPUS),  # of hubs; above
        *("pictures", "neighbours", "max_length", "template", "lowercase"),  # which are refused
    )
    texts = tuple(_picture(colour, 8 * width) for width in (1, 2) for colour in ("red", "#246"))
    pairs = ()

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"clip_image:{model('clip_of_pictures')}"


class TestClipImageOfGivenPicturesByOpenClip(TestClipImageOfGivenPictures):
    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"clip_image:{model('clip')}"


class TestDiffusers(TeacherTests):
    options = {"steps": 3, "height": 32, "width": 32, "resize": 16, "strength": 1.0}
    changing = {
        **PRECISION,
        **{"template": "a drawing of {text}", "source": "txt2img", "seed": 1},
        **{"steps": 2, "second_steps": 2, "guidance": 2.0, "height": 64, "width": 64, "resize": 32},
        **{"strength": 0.5, "negative_prompt": "dogs", "channel_order": "bgr"},
    }
    unchanging = {"keep_images": True}
    untried = (
        *("revision", "lora", "lora_scale", "image_encoder"),  # of other models
        *("num_frames", "frame", "audio_encoder", "audio_seconds"),  # below
        *("lowercase", *OF_GPUS),  # its tokenizer has no capitals
    )
    texts = (TEXTS[0], "", TEXTS[4], TEXTS[-1])
    pairs = (("a red bird", "sings"),)

    @pytest.fixture
    def source(self, model: Any) -> str:
        return f"diffusers:{model('diffusion')}"


class TestDiffusersVideo(TestDiffusers):
    changing = {
        **{"num_frames": 2, "frame": "middle", "seed": 1, "steps": 3, "guidance": 2.0},
        **{"height": 64, "width": 64, "template": "say {text}", "negative_prompt": "dogs"},
    }
    untried = (
        *("revision", "lora", "lora_scale", "image_encoder", "audio_encoder", "audio_seconds"),
        *("lowercase", *OF_GPUS, *PRECISION),
        *("source", "resize", "strength", "second_steps", "channel_order"),  # of two passes
    )

    @pytest.fixture
    def source(self, model: Any) -> str:
        self.options = {"steps": 2, "height": 32, "width": 32, "num_frames": 3}
        self.options |= {"image_encoder": f"transformers:{model('clip_vision')}"}
        return f"diffusers:{model('video')}"


class TestDiffusersAudio(TestDiffusers):
    changing = {
        **{"audio_seconds": 0.2, "seed": 1, "steps": 2, "guidance": 2.0},
        **{"template": "say {text}", "negative_prompt": "dogs"},
    }
    unchanging = {}
    untried = (
        *("revision", "lora", "lora_scale", "image_encoder", "audio_encoder", "keep_images"),
        *("lowercase", *OF_GPUS, *PRECISION, "num_frames", "frame"),
        *OF_PICTURES,
    )

    @pytest.fixture
    def source(self, model: Any) -> str:
        self.options = {"steps": 1, "audio_seconds": 0.1}
        self.options |= {"audio_encoder": f"transformers:{model('wav2vec2')}"}
        return f"diffusers:{model('sound')}"


OF_CHOICES = (*sorted(OF_ANSWERS), "echo")


class TestOpenAI(TeacherTests):
    changing = {"dimensions": 8, "store_dtype": "float16", **TEXT_OPTIONS}
    unchanging = {
        **{"texts_per_request": 3, "concurrency": 2, "probes": 2, "timeout": 100.0},
        **{"patience": 10.0, "requests_per_minute": 10**6, "tokens_per_minute": 10**7},
        **{"accept_change": True, "max_requests": 1000, "key_variable": "ANOTHER_KEY"},
        **{"input_price": 1.0, "output_price": 1.0, "request_price": 1.0, "max_cost": 10**6},
    }
    untried = (
        *("api", "base_url", "batch"),  # of another server
        *("text_format", "response_column", "prompt_template", "system_prompt", "max_new_tokens"),
        "user_template",
        *("limit_name", "temperature", "top_p", "responses_per_prompt", "seed", "stop"),
        *("thinking", "tokenizer", "top_k", "token_ids", "end_token", "max_length"),
        *("own_log_probs", "size", "image_encoder", "keep_images", "documents_name"),  # another API
        *OF_CHOICES,
    )

    @pytest.fixture
    def source(self) -> Iterator[str]:
        with openai_server.serving() as server:
            self.options = {"base_url": server.url, "request_price": 0.1}
            yield "openai:toy"


class TestOpenAIChat(TeacherTests):
    own = {"api": "chat"}
    changing = {
        **{"max_new_tokens": 2, "system_prompt": "Be brief.", "top_k": 3},
        "user_template": "Say {1}.",
    }
    unchanging = {
        name: value for name, value in TestOpenAI.unchanging.items() if name != "texts_per_request"
    }
    untried = (
        *("api", "base_url", "batch", "texts_per_request", "tokenizer"),  # of another server
        *("dimensions", "store_dtype", "template", "lowercase", "prompt_template"),
        *("end_token", "max_length", "own_log_probs"),
        *("size", "image_encoder", "keep_images", "documents_name"),  # another API
        *("text_format", "response_column", "limit_name"),  # nothing of them is sent
        *("temperature", "top_p", "responses_per_prompt", "seed"),  # this server does not sample
        *("stop", "token_ids", "thinking"),  # which this server does not know
        *OF_CHOICES,
    )
    texts = tuple(text for text in TEXTS if len(text) < 100)

    @pytest.fixture
    def source(self, model: Any) -> Iterator[str]:
        state = openai_server.OpenAIServer(model=openai_server.Model(model("llama")))
        with openai_server.serving(state) as server:
            own = {**self.own, "max_new_tokens": 5, "tokenizer": str(model("llama"))}
            self.options = {"base_url": server.url, "request_price": 0.1, **own}
            yield "openai:toy"


class TestOpenAICompletions(TestOpenAIChat):
    own = {"api": "completions"}
    changing = {"max_new_tokens": 2, "prompt_template": "Say {1}.", "top_k": 3}
    untried = (
        *(set(TestOpenAIChat.untried) - {"prompt_template"}),
        *("system_prompt", "user_template"),  # of chats
    )


class TestOpenAIGiven(TeacherTests):
    changing = {
        **{"max_length": 6, "top_k": 3, "end_token": False},
        "own_log_probs": True,
    }
    unchanging = TestOpenAIChat.unchanging
    untried = (
        *("api", "base_url", "batch", "texts_per_request", "tokenizer"),  # of another server
        *("dimensions", "store_dtype", "template", "lowercase", "max_new_tokens"),
        *("response_column", "limit_name", "temperature", "top_p", "responses_per_prompt", "seed"),
        *("stop", "token_ids", "thinking"),
        *("size", "image_encoder", "keep_images", "documents_name"),  # another API
        *("text_format", "prompt_template", "user_template", "system_prompt"),  # have prompts
        *OF_CHOICES,
    )
    texts = tuple(text for text in TEXTS if len(text) < 100)

    @pytest.fixture
    def source(self, model: Any) -> Iterator[str]:
        state = openai_server.OpenAIServer(model=openai_server.Model(model("llama")))
        with openai_server.serving(state) as server:
            own = {"api": "given", "tokenizer": str(model("llama")), "top_k": 4}
            own["text_format"] = "text"
            self.options = {"base_url": server.url, "request_price": 0.1, **own}
            yield "openai:toy"


class TestOpenAIChoices(TeacherTests):
    changing = {
        **{"answers": ("rain", "bird", "dogs"), "names": LABELS, "score": (1, 2, 3)},
        **{"end_token": True, "per": "token", "content_free": ("N/A",), "premise": "It is "},
        **{"max_length": 40, "prompt_template": "{text} is ", "store_dtype": "float16"},
        "text_format": "chat",
    }
    unchanging = {"echo": True, **TestOpenAIChat.unchanging}
    untried = (
        *("api", "base_url", "batch", "texts_per_request", "tokenizer"),  # of another server
        *("dimensions", "template", "lowercase", "max_new_tokens", "own_log_probs", "top_k"),
        *("response_column", "limit_name", "temperature", "top_p", "responses_per_prompt", "seed"),
        *("stop", "token_ids", "thinking"),
        *("size", "image_encoder", "keep_images", "documents_name"),  # another API
        *("user_template", "system_prompt", "questions"),  # of chats; have a template of their own
    )
    texts = tuple(text for text in TEXTS if len(text) < 100)

    @pytest.fixture
    def source(self, model: Any) -> Iterator[str]:
        state = openai_server.OpenAIServer(model=openai_server.Model(model("llama")))
        with openai_server.serving(state) as server:
            own = {"api": "choices", "tokenizer": str(model("llama"))}
            own |= {"answers": ("rain", "red bird", "two dogs that sing")}
            self.options = {"base_url": server.url, "request_price": 0.1, **own}
            yield "openai:toy"


class TestOpenAIImages(TeacherTests):
    changing = {"size": "24x24", "store_dtype": "float16", **TEXT_OPTIONS}
    unchanging = {"keep_images": True, **TestOpenAIChat.unchanging}
    untried = (
        *("api", "base_url", "batch", "texts_per_request", "image_encoder"),  # of another server
        *("text_format", "response_column", "prompt_template", "system_prompt", "max_new_tokens"),
        *("user_template", "end_token", "max_length", "limit_name", "temperature", "top_p"),
        *("responses_per_prompt", "seed", "stop", "thinking", "tokenizer", "top_k", "token_ids"),
        *("own_log_probs", "dimensions", "documents_name"),  # of another API
        *OF_CHOICES,
    )

    @pytest.fixture
    def source(self, tmp_path: Path) -> Iterator[str]:
        tiny_diffusion.make_vit(tmp_path / "vit")
        with openai_server.serving() as server:
            own = {"api": "images", "image_encoder": f"transformers:{tmp_path / 'vit'}"}
            self.options = {"base_url": server.url, "request_price": 0.1, **own}
            yield "openai:toy"


class TestOpenAIScore(TeacherTests):
    own = {"api": "score"}
    changing = {"store_dtype": "float16"}
    unchanging = {**TestOpenAI.unchanging}
    untried = (
        *("api", "base_url", "batch", "documents_name"),  # of another server
        *("text_format", "response_column", "prompt_template", "system_prompt", "max_new_tokens"),
        *("user_template", "end_token", "max_length", "limit_name", "temperature", "top_p"),
        *("responses_per_prompt", "seed", "stop", "thinking", "tokenizer", "top_k", "token_ids"),
        *("own_log_probs", "dimensions", "size", "image_encoder", "keep_images", "template"),
        *("lowercase", *OF_CHOICES),  # of another API
    )
    texts = ()
    pairs = (*PAIRS, *((text, f"{text} again") for text in TEXTS[:8] if text))

    @pytest.fixture
    def source(self) -> Iterator[str]:
        with openai_server.serving() as server:
            self.options = {"base_url": server.url, "request_price": 0.1, **self.own}
            yield "openai:toy"


class TestOpenAIRerank(TestOpenAIScore):
    own = {"api": "rerank"}


ENGINES = {"vllm"}
"""Engines are started for minutes, and round by what shares a batch: `engine/test_vllm.py`."""


def test_none_is_left_out() -> None:
    tested = {
        value.__name__.removeprefix("Test").lower()
        for value in globals().values()
        if isinstance(value, type) and issubclass(value, armada.testing.TeacherTests)
    }
    kinds = {kind.replace("_", "") for kind in TEACHERS.built_in}
    apis = {"openai" if api == "embeddings" else f"openai{api}" for api in OF_API}
    assert (kinds - ENGINES) | apis <= tested
