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
        "classifier": ".precompute.teachers.classifier:ClassifierTeacher",
        "open_clip": ".precompute.teachers.open_clip:OpenClipTeacher",
        "diffusers": ".precompute.teachers.diffusers:DiffusersTeacher",
    },
)
