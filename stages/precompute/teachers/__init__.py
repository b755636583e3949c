"""The teachers, by name. Each is imported only when a job chooses it."""

from ...plugins import Registry

TEACHERS = Registry(
    group="armada.teachers",
    kind="teacher",
    built_in={
        "hash": ".precompute.teachers.hash:HashTeacher",
        "hash_words": ".precompute.teachers.hash:HashWordsTeacher",
        "encoder": ".precompute.teachers.encoder:EncoderTeacher",
        "causal_lm": ".precompute.teachers.causal_lm:CausalLMTeacher",
        "masked_lm": ".precompute.teachers.masked_lm:MaskedLMTeacher",
        "choices": ".precompute.teachers.choices:ChoicesTeacher",
        "classifier": ".precompute.teachers.classifier:ClassifierTeacher",
        "cross_encoder": ".precompute.teachers.cross_encoder:CrossEncoderTeacher",
        "open_clip": ".precompute.teachers.open_clip:OpenClipTeacher",
        "openai": ".precompute.remote.teacher:OpenAITeacher",
        "clip_image": ".precompute.teachers.clip_image:ClipImageTeacher",
        "student": ".precompute.teachers.student:StudentTeacher",
        "vlm": ".precompute.teachers.vlm:VlmTeacher",
        "vllm": ".precompute.engine.teacher:VLLMTeacher",
        "diffusers": ".precompute.teachers.diffusers:DiffusersTeacher",
    },
    built_in_options={
        "hash": ".precompute.teachers.options:HashOptions",
        "hash_words": ".precompute.teachers.options:HashWordsOptions",
        "encoder": ".precompute.teachers.encoder_options:EncoderOptions",
        "causal_lm": ".precompute.teachers.causal_options:CausalLMOptions",
        "masked_lm": ".precompute.teachers.masked_lm_options:MaskedLMOptions",
        "choices": ".precompute.teachers.choices_options:ChoicesOptions",
        "classifier": ".precompute.teachers.options:ClassifierOptions",
        "cross_encoder": ".precompute.teachers.options:CrossEncoderOptions",
        "open_clip": ".precompute.teachers.options:OpenClipOptions",
        "openai": ".precompute.remote.options:OpenAIOptions",
        "clip_image": ".precompute.teachers.clip_image_options:ClipImageOptions",
        "student": ".precompute.teachers.options:StudentOptions",
        "vlm": ".precompute.teachers.vlm_options:VlmOptions",
        "vllm": ".precompute.engine.options:VLLMOptions",
        "diffusers": ".precompute.teachers.diffusers_options:DiffusersOptions",
    },
)
