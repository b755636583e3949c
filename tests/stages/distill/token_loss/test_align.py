"""Pairs of positions: worked by hand, and by brute force on random cuts of a text."""

from itertools import pairwise

import numpy as np
from armada.stages.distill.token_loss.align import aligned
from hypothesis import given
from hypothesis import strategies as st


def pairs(student: list[tuple[int, int]], teacher: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = aligned(np.array(student), np.array(teacher))
    return list(zip(found.student_N.tolist(), found.teacher_N.tolist(), strict=True))


def test_by_hand() -> None:
    """`unhappy cat`: [BOS] un happy ·cat, and un hap py · cat [EOS]."""
    student = [(0, 0), (0, 2), (2, 7), (7, 11)]
    teacher = [(0, 2), (2, 5), (5, 7), (7, 8), (8, 11), (0, 0)]
    assert pairs(student, teacher) == [(1, 0), (2, 2)]


def test_spaces_may_belong_to_tokens_or_to_none() -> None:
    """`a cat sat`: ·cat ·sat, and cat sat."""
    assert pairs([(0, 1), (1, 5), (5, 9), (0, 0)], [(0, 1), (2, 5), (6, 9), (0, 0)]) == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]


def test_special_tokens_before_the_text_predict_its_start() -> None:
    assert pairs([(0, 0), (0, 0), (0, 3), (3, 4)], [(0, 0), (0, 4)]) == [(1, 0)]
    assert pairs([(0, 3), (3, 4)], [(0, 0), (0, 4)]) == []


def test_pieces_of_a_character_predict_nothing_that_others_do() -> None:
    """`aé!`, é in two pieces; then é's second piece together with the exclamation mark."""
    whole = [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert pairs(whole, [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4)]) == [(0, 0), (1, 2), (2, 3)]
    assert pairs(whole, [(0, 1), (1, 2), (1, 3), (3, 4)]) == [(0, 0), (2, 2)]


def test_nothing_to_align() -> None:
    assert pairs([], [(0, 1)]) == []
    assert pairs([(0, 0)], [(0, 0)]) == []


@given(
    st.integers(2, 12).flatmap(
        lambda length: st.tuples(
            st.just(length), *[st.sets(st.integers(1, length - 1)) for _ in range(2)]
        )
    )
)
def test_cuts_that_both_made(drawn: tuple[int, set[int], set[int]]) -> None:
    """Of a text without special tokens: exactly the inner cuts that both tokenizers made."""
    length, *cuts = drawn
    offsets = []
    for inner in cuts:
        edges = [0, *sorted(inner), length]
        offsets.append(list(pairwise(edges)))
    student, teacher = offsets
    common = sorted(cuts[0] & cuts[1])
    assert [student[one][1] for one, _ in pairs(student, teacher)] == common
    assert [teacher[other][1] for _, other in pairs(student, teacher)] == common
