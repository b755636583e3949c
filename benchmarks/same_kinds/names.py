"""Names that changed between versions of armada, by which two of them can be compared."""

RUNS = {
    "armada and tokens": {
        "language": "tokens.language",
        "distillation": "tokens.distillation",
        "manifold": "armada.manifold",
        "aligner/aligner.safetensors": "aligner/armada.safetensors",
        "student/heads.safetensors: objective": "student/heads.safetensors: objective.each.1",
    }
}
"""Kind of run -> the beginning of a name in its log or weights -> what it is today."""

FEATURES = {"draws": "samples"}
"""Name of a feature in stores of version 1 of the format -> its name today."""

OPTIONS = {"draws": "samples", "draws_log_probs": "samples_log_probs"}
"""Name of a teacher's option, while stores had that version -> its name today."""
