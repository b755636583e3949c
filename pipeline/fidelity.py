"""What coding cost the answers of a teacher, brought together from its shards, and in words."""

from collections.abc import Iterable

from ..cache_schemas.fidelity import Fidelity, combined
from ..cache_schemas.manifest import CommitRecord


def fidelity_of(commits: Iterable[CommitRecord]) -> dict[str, Fidelity]:
    """Coded feature -> its fidelity in all shards where it was measured."""
    samples: dict[str, list[Fidelity]] = {}
    for commit in commits:
        for name, measured in commit.fidelity.items():
            samples.setdefault(name, []).append(measured)
    return {name: combined(each) for name, each in sorted(samples.items())}


def in_words(fidelity: Fidelity) -> str:
    """One line; divergences and errors are in nats."""
    parts = [f"{fidelity.bytes_per_token:g} bytes a token"]
    if fidelity.divergence is not None:
        parts.append(f"KL {fidelity.divergence:.1e}")
    if fidelity.mean_error is not None and fidelity.max_error is not None:
        parts.append(f"log-probabilities off by {fidelity.mean_error:.4f}")
        parts.append(f"at most {fidelity.max_error:.4f}")
    if fidelity.mean_tail is not None:
        parts.append(f"{fidelity.mean_tail:.1%} of the mass in the tail")
    return f"{', '.join(parts)} ({fidelity.tokens:,} tokens measured)"
