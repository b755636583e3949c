"""A teacher: one frozen model under one set of settings, and the fingerprint of both.

Everything that can change an output is in `TeacherSpec`, and so in the fingerprint; the location of
weights, the machine and the batch size are not.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from . import names
from .features import FeatureSpec
from .keys import canonical_json, digest
from .names import either, of_today, of_version_1

Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""128 bits in hexadecimal; also the name of the teacher's folder."""

DERIVED = "derived"
"""Kind of teachers whose features follow from another teacher's, their `parent`."""

_MOST_LISTED = 4

SettingValue = (
    str | int | float | bool | None | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
)


class TeacherSpec(BaseModel):
    """A frozen teacher. Two specs with equal fingerprints give equal answers (up to rounding)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="which teacher implementation: open_clip, diffusers, ...")
    name: str = Field(description="hub id or folder name, for people; not part of the fingerprint")
    weights: dict[str, str] = Field(
        description="part of the model -> digest of its configuration, tokenizer and weight files"
    )
    settings: dict[str, SettingValue] = Field(
        description="every option that can change an output, with its value"
    )
    features: tuple[FeatureSpec, ...] = Field(min_length=1, description="its features")
    vocab_digest: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{32}$",
        validation_alias=either("vocab_digest", names.TEACHER),
        description="digest of the tokenizer's tokens and their ids, of a teacher with features of "
        "tokens; not part of the fingerprint",
    )

    @field_validator("settings")
    @classmethod
    def _named_as_today(
        cls, settings: dict[str, SettingValue], info: ValidationInfo
    ) -> dict[str, SettingValue]:
        return of_today(settings, names.SETTINGS.get(info.data.get("kind", ""), {}))

    @model_validator(mode="after")
    def _names_differ(self) -> "TeacherSpec":
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError(f"features: {names} repeat a name; names must differ")
        return self

    @model_validator(mode="after")
    def _axes_have_one_end(self) -> "TeacherSpec":
        for feature in self.features:
            if feature.axis and feature.max_length != self.axes[feature.axis]:
                raise ValueError(
                    f"features: {feature.name} has at most {feature.max_length} rows along the "
                    f"axis {feature.axis!r}, another feature {self.axes[feature.axis]}"
                )
        return self

    @property
    def axes(self) -> dict[str, int]:
        """The axes that features lie along, and the most rows an example has along each."""
        return {feature.axis: feature.max_length or 0 for feature in self.features if feature.axis}

    @property
    def parent(self) -> str | None:
        """Fingerprint of the teacher that a derived one was derived from; None of others."""
        return str(self.settings.get("parent")) if self.kind == DERIVED else None

    def identity(self) -> dict[str, Any]:
        """Its hashed fields: all but name and descriptions, by their names in version 1."""
        return {
            "kind": self.kind,
            "weights": self.weights,
            "settings": of_version_1(self.settings, names.SETTINGS.get(self.kind, {})),
            "features": [feature.identity() for feature in self.features],
        }

    @property
    def fingerprint(self) -> str:
        """128-bit digest of the identity; names the teacher everywhere."""
        return digest(self.identity())

    def fingerprint_extending(self, base: Fingerprint) -> str:
        """The name of a teacher that adds these features to those of `base`: the same features
        added to another teacher are another teacher."""
        return digest(self.identity() | {"extends": base})

    def feature(self, name: str) -> FeatureSpec | None:
        """The feature of that name, or None."""
        return next((feature for feature in self.features if feature.name == name), None)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Most teachers answer by no words, and their documents stay what they were.
        document: dict[str, Any] = dump(self)
        if self.vocab_digest is None:
            document.pop("vocab_digest", None)
        return document


def differ_in_features_alone(
    one: TeacherSpec, other: TeacherSpec, selecting: frozenset[str]
) -> bool:
    """Whether two specs are of one model under the same settings, but for those (`selecting`) that
    only choose features: then the features that both have are the same numbers."""
    if not one.weights and one.name != other.name:
        return False  # nothing else may distinguish two models without weights
    return _shared(one, other, selecting) == _shared(other, one, selecting)


def _shared(spec: TeacherSpec, other: TeacherSpec, selecting: frozenset[str]) -> bytes:
    """The fields that both must have in common, of `spec`."""
    identity = spec.identity()
    identity["settings"] = without_settings(spec, selecting)
    identity["features"] = {
        feature["name"]: feature
        for feature in identity["features"]
        if other.feature(feature["name"])
    }
    return canonical_json(identity)


def without_settings(spec: TeacherSpec, left_out: frozenset[str]) -> dict[str, SettingValue]:
    """The settings but for some."""
    return {name: value for name, value in spec.settings.items() if name not in left_out}


def distinctions(specs: Mapping[Fingerprint, TeacherSpec]) -> dict[Fingerprint, str]:
    """The differences of each teacher from others of its kind and name, 'weights 3fa9c1d2, pooling
    cls'; empty if there are no others."""
    return {
        fingerprint: _apart(
            spec, [s for s in specs.values() if (s.kind, s.name) == (spec.kind, spec.name)]
        )
        for fingerprint, spec in specs.items()
    }


def _apart(spec: TeacherSpec, alike: Sequence[TeacherSpec]) -> str:
    own, *others = (
        {"weights": digest(each.weights)[:8], **each.settings} for each in (spec, *alike)
    )
    listed = [
        f"{name} {value!s:.40}"
        for name, value in own.items()
        if any(other.get(name) != value for other in others)
    ]
    return ", ".join(listed[:_MOST_LISTED])


def differences(cached: TeacherSpec, asked: TeacherSpec) -> list[str]:
    """Every field in which two specs differ, as 'field: cached X, requested Y' lines."""
    old, new = _flat(cached), _flat(asked)
    return [
        f"{field}: cached {old.get(field, '(absent)')}, requested {new.get(field, '(absent)')}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]


def _flat(spec: TeacherSpec) -> dict[str, Any]:
    flat: dict[str, Any] = {"kind": spec.kind}
    flat |= {f"weights.{part}": value for part, value in spec.weights.items()}
    flat |= dict(spec.settings)
    for feature in spec.features:
        flat[f"features.{feature.name}"] = f"{feature.dtype}{list(feature.shape)}"
        if feature.axis is not None:
            flat[f"features.{feature.name}"] += f" x {feature.max_length} {feature.axis}"
        if feature.labels is not None:
            flat[f"features.{feature.name}.labels"] = list(feature.labels)
    return flat
