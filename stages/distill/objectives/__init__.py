"""The training objectives, by name. Each is imported only when a job chooses it."""

from ...plugins import Registry

OBJECTIVES = Registry(
    group="armada.objectives",
    kind="objective",
    built_in={
        "armada": ".distill.objectives.armada:ArmadaObjective",
        "kd": ".distill.objectives.kd:KDObjective",
        "feature": ".distill.objectives.feature:FeatureObjective",
        "tokens": ".distill.objectives.tokens:TokensObjective",
        "undistilled": ".distill.objectives.undistilled:UndistilledObjective",
    },
    built_in_options={
        "armada": ".distill.objectives.options:ArmadaOptions",
        "kd": ".distill.objectives.options:KDOptions",
        "feature": ".distill.objectives.options:FeatureOptions",
        "tokens": ".distill.objectives.options:TokensOptions",
        "undistilled": ".distill.objectives.options:ObjectiveOptions",
    },
)
