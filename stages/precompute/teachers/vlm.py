"""Models of images and text as teachers: LLaVA, Qwen-VL, SmolVLM, Idefics and similar, whatever
transformers opens as AutoModelForImageTextToText.

In: a text; or a picture and a text, the first segment being the picture (`stages/pictures.py`); or
a text, of which a pipeline of diffusers generates a picture first, as the teacher `diffusers` does.
Out: its token states by the language model, pooled: `pooled` [E], and `layer_<n>` [H] for each of
`layers`. States are the library's own, of the model without its head; a picture's tokens are among
them. Texts alone are batched by length. Pictures are unpacked when their batch begins, for a shard
of them may be larger than memory; on a CPU such a batch is computed one example at a time, and so
its features are equal bit for bit in any.
Shapes: B examples, T tokens, H hidden numbers, E those of all ways of pooling.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...language.prompt_templates import columns_of, one_text
from ...pictures import PictureError, read_picture
from ...pooling import pool
from ...pretrained import refusing
from ...tokenizing.long_texts import shortened
from .base import Answers, Example, Outputs, Prepared, to_host
from .checkpoint_teacher import LanguageModelTeacher
from .diffusers import DiffusersTeacher
from .diffusers_options import DiffusersOptions
from .options import TokenizedOptions
from .picture_prompts import held_place, places_of, read_pairs, read_processor, require_place
from .tokenized import Inputs, TextTokenizer, TokenRows
from .vlm_options import VlmOptions


class PromptTokenizer(TextTokenizer):
    """Texts as the prompts of a model. The text is cut, not what the prompt has around it."""

    _options: VlmOptions

    def prompts(
        self, segments: Sequence[tuple[str, ...]], pictured: bool
    ) -> tuple[list[str], npt.NDArray[np.bool_]]:
        """Prompts of B examples without their pictures, and which [B] were cut; `pictured`: with
        the place of a picture."""
        rows = [self._options.parts(each) for each in segments]
        # Two tokens or more may become one where a text ends.
        most = max(min(self.max_length, self.positions - self._around), 1)
        texts = [shortened(self._tokenizer, [text], most)[0] for row in rows for text in row]
        offsets = self._tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        found = iter(zip(texts, offsets, strict=True))
        prompts, truncated = [], np.zeros(len(rows), dtype=bool)
        for row, parts in enumerate(rows):
            own = [next(found) for _ in parts]
            each = _share([len(spans) for _, spans in own], most)
            truncated[row] = any(len(spans) > each for _, spans in own)
            cut = [
                text[: spans[each - 1][1] if each else 0] if len(spans) > each else text
                for text, spans in own
            ]
            prompts.append(self._prompt(cut, pictured))
        return prompts, truncated

    def _prompt(self, parts: Sequence[str], pictured: bool) -> str:
        options = self._options
        text = one_text(options.template, parts)
        if not options.chat_template:
            return text
        own = [{"type": "text", "text": text}]
        turn = {"role": "user", "content": [{"type": "image"}, *own] if pictured else own}
        prompt: str = self._tokenizer.apply_chat_template(
            [turn], tokenize=False, add_generation_prompt=True
        )
        return prompt

    @cached_property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds the first token to a prompt, which most chat templates do."""
        first = self._tokenizer.bos_token
        return not (first and self._prompt(self._parts_of("a"), pictured=False).startswith(first))

    @cached_property
    def _around(self) -> int:
        """Tokens of a prompt beside its text."""
        return int(self._of_prompts([self._prompt(self._parts_of(""), pictured=False)]).lengths[0])

    def _parts_of(self, text: str) -> list[str]:
        return [text] * max(columns_of(self._options.template), 1)

    def _text_and_pair(self, segments: Sequence[str]) -> tuple[Any, None]:
        return tuple(segments), None

    def _tokenize(self, texts: Sequence[tuple[Any, str | None]]) -> TokenRows:
        prompts, truncated = self.prompts([segments for segments, _ in texts], pictured=False)
        return replace(self._of_prompts(prompts), truncated=truncated)

    def _of_prompts(self, prompts: Sequence[str]) -> TokenRows:
        added = self.adds_special_tokens
        return self._rows([(prompt, None) for prompt in prompts], add_special_tokens=added)


def _share(lengths: Sequence[int], most: int) -> int:
    """How many tokens of each of some texts are kept, at most, so that all have `most`."""

    def kept(each: int) -> int:
        return sum(min(length, each) for length in lengths)

    return bisect_right(range(most + 1), most, key=kept) - 1


class VlmTeacher(LanguageModelTeacher):
    """Features `pooled` [E], and `layer_<n>` [E] for each of `layers`."""

    Options = VlmOptions
    kind = "vlm"
    selecting = frozenset({"layers"})
    auto_class = "AutoModelForImageTextToText"
    default_batch_size: ClassVar[int] = 8
    default_rows_per_shard = 1024
    _texts: PromptTokenizer

    def __init__(self, source: str, options: VlmOptions, device: torch.device) -> None:
        self._options, self._pictured = options, options.picture != "none"
        self._generator = None
        if self._pictured:
            require_extra("teacher vlm with pictures", "teachers", "PIL", "torchvision")
        if options.picture == "generated":
            self._generator = _generator(options, device)
        super().__init__(source, options, device)

    def _resolve(self, options: TokenizedOptions, tokenizer: Any) -> TokenizedOptions:
        if not tokenizer.is_fast:
            raise TeacherSourceError(
                f"source {self._folder}: {type(tokenizer).__name__} does not tell which characters "
                "a token has; save the fast tokenizer of this model"
            )
        if self._options.chat_template and not tokenizer.chat_template:
            raise JobError("chat_template: the model has none; set chat_template=false")
        self._processor = read_processor(self._folder) if self._pictured else None
        self._places = places_of(self._config, tokenizer, self._processor)
        if self._pictured and not self._options.chat_template:
            require_place("template", self._options.template, self._places)
        return options

    def _text_tokenizer(self, *given: Any, **limits: Any) -> PromptTokenizer:
        return PromptTokenizer(*given, **limits)

    def _reader(self) -> Any:
        with refusing(TeacherSourceError, f"source {self._folder}"):
            return self._skeleton.get_decoder()

    def _features(self) -> list[FeatureSpec]:
        text = self._config.get_text_config()
        deepest, options = text.num_hidden_layers, self._options
        if beyond := [layer for layer in options.layers if layer > deepest]:
            raise JobError(f"layers: {beyond[0]} is beyond the model's; from 0 to {deepest}")
        told = " and ".join(options.modes) + (", length 1" if options.normalize else "")
        names = {"pooled": "last hidden states"}
        names |= {f"layer_{layer}": f"hidden states {layer}" for layer in options.layers}
        read = "a picture and a text" if self._pictured else "a text"
        return [
            FeatureSpec(
                name=name,
                shape=(len(options.modes) * int(text.hidden_size),),
                dtype=self._precision.stored,
                description=f"{states} of {read}, {told}",
            )
            for name, states in names.items()
        ]

    def _digests(self) -> dict[str, str]:
        if self._generator is None:
            return super()._digests()
        return super()._digests() | {"generator": self._generator.spec.weights["pipeline"]}

    def _declared_settings(self) -> dict[str, SettingValue]:
        if self._generator is None:
            return {}
        own = self._generator.spec.settings["dtype"]  # of dtype=auto it may be another
        return {} if own == self._precision.compute else {"generator_dtype": own}

    def load(self) -> None:
        """See CheckpointTeacher; and the generator."""
        super().load()
        if self._generator is not None:
            self._generator.load()

    def _unused(self, weight: str) -> bool:
        return weight.startswith("lm_head.")

    def _prepare(self) -> None:
        name = type(self._model).__name__
        if self._config.is_encoder_decoder or self._model.base_model is self._model:
            raise TeacherSourceError(
                f"source {self._folder}: a {name} has no decoder whose states could be pooled; use "
                "a model that reads pictures and texts as one sequence"
            )
        self._model = self._model.base_model  # without the head

    def _answer(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        layers = self._options.layers
        output = self._model(**inputs, output_hidden_states=bool(layers))
        states = {"pooled": output.last_hidden_state}
        states |= {f"layer_{layer}": output.hidden_states[layer] for layer in layers}
        mask = inputs["attention_mask"]
        pooled = {name: pool(each, mask, self._options.modes) for name, each in states.items()}
        if not self._options.normalize:
            return pooled
        return {name: F.normalize(values, dim=-1) for name, values in pooled.items()}

    # --- texts that cannot be read, and pictures

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """The tokens of texts alone; nothing yet of pictures."""
        if self._pictured:
            return Prepared(examples, np.zeros(len(examples), dtype=np.int64))
        return super().prepare(examples)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        pictures, refused = self._pictures_of(batch.examples)
        if not refused:
            return self._begin(batch, pictures)
        rows = np.setdiff1d(np.arange(len(batch)), list(refused))
        begun = (
            self._begin(batch.take(rows), [pictures[row] for row in rows]) if len(rows) else None
        )
        return lambda: self._among(begun() if begun else None, rows, refused)

    def _pictures_of(self, examples: Sequence[Example]) -> tuple[list[Any], dict[int, str]]:
        """The picture of each example, if it has one, and row -> why it cannot be read."""
        pictures: list[Any] = [None] * len(examples)
        refused = {}
        if self._generator is not None:
            pictures, finite = self._generator.pictures(examples)
            told = "the picture generated for it is not finite; set dtype=float32"
            refused = {row: told for row, sound in enumerate(finite) if not sound}
        given = self._options.picture == "given"
        for row, example in enumerate(examples):
            texts = self._texts_of(example)
            if held := held_place(texts, self._places):
                refused[row] = held
            elif given:
                try:
                    pictures[row] = read_picture(example.segments[0])
                except PictureError as error:
                    refused[row] = f"picture: {error}"
        return pictures, refused

    def _texts_of(self, example: Example) -> tuple[str, ...]:
        return example.segments[1:] if self._options.picture == "given" else example.segments

    def _begin(self, batch: Prepared, pictures: Sequence[Any]) -> Outputs:
        if not self._pictured:
            return super().start(batch)
        texts = [self._texts_of(example) for example in batch.examples]
        prompts, truncated = self._texts.prompts(texts, pictured=True)
        pairs = list(zip(prompts, pictures, strict=True))
        parts = [[pair] for pair in pairs] if self._device.type == "cpu" else [pairs]
        with self._answering():
            answers = [self._answer(self._inputs(part)) for part in parts]
        names = list(answers[0])
        found = [torch.cat([answer[name] for answer in answers]) for name in names]
        arriving = to_host([self._precision.cast(values) for values in found])
        return lambda: Answers(dict(zip(names, arriving(), strict=True)), truncated)

    def _inputs(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, torch.Tensor]:
        """Prompts and pictures as the model reads them, by the model's own processor."""
        return read_pairs(
            self._processor,
            pairs,
            add_special_tokens=self._texts.adds_special_tokens,
            positions=self._texts.positions,
            device=self._device,
            dtype=self._precision.torch_dtype,
        )

    def _among(
        self, answers: Answers | None, rows: IntArray, refused: Mapping[int, str]
    ) -> Answers:
        """The outputs of a batch of which only `rows` were computed."""
        total = len(rows) + len(refused)
        features = {}
        for feature in self.spec.features:
            features[feature.name] = np.zeros((total, *feature.shape), feature.dtype)
            if answers is not None:
                features[feature.name][rows] = answers.features[feature.name]
        truncated = np.zeros(total, dtype=bool)
        if answers is not None:
            truncated[rows] = answers.truncated
        return Answers(features, truncated, refused=refused)


def _generator(options: VlmOptions, device: torch.device) -> DiffusersTeacher:
    """The teacher whose pictures are read, of one pass."""
    size = options.generator_size
    drawn = DiffusersOptions(
        source="txt2img",
        lowercase=options.lowercase,
        steps=options.generator_steps,
        guidance=options.generator_guidance,
        height=size,
        width=size,
        seed=options.generator_seed,
        dtype=options.dtype,
    )
    return DiffusersTeacher(options.generator, drawn, device)
