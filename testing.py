"""Tests of what a plug-in promises: subclass `TeacherTests` or `ObjectiveTests`, and run pytest.

    from armada.testing import TeacherTests

    class TestLetters(TeacherTests):
        teacher = "letters:abc"
        changing = {"max_characters": 3, "lowercase": True, "template": "a {text}"}

armada's own teachers and objectives pass the same. Needs pytest, which armada itself does not.
"""

from .cache_schemas.extras import require_extra

require_extra("armada.testing", "test", "pytest")

import pytest  # noqa: E402

# So that a failed assertion of the kit shows its values, as those of test files do.
pytest.register_assert_rewrite(
    *(f"armada.stages.testing.{name}" for name in ("candidates", "objectives", "teachers"))
)

from .stages.testing.candidates import CandidateObjectiveTests  # noqa: E402
from .stages.testing.objectives import (  # noqa: E402
    Batch,
    ObjectiveTests,
    PairObjectiveTests,
    TokenObjectiveTests,
)
from .stages.testing.teachers import TeacherTests  # noqa: E402

__all__ = [
    "Batch",
    "CandidateObjectiveTests",
    "ObjectiveTests",
    "PairObjectiveTests",
    "TeacherTests",
    "TokenObjectiveTests",
]
