"""What one key sends says most about what it sends next; the model's other keys say the rest."""

from __future__ import annotations

from gateway.pipeline.experience import KEYS_MAX, Experience


def learn(experience: Experience, key_id: str, *, input_bytes: int, input_tokens: int) -> None:
    experience.learn(
        "k", key_id=key_id, input_bytes=input_bytes, input_tokens=input_tokens, output_bytes=9, output_tokens=3
    )


def test_keys_have_a_ratio_of_their_own() -> None:
    """One key's Chinese and another's English are both within 2 % in sum; a third, unknown key is in between."""
    experience = Experience()
    for _ in range(40):
        learn(experience, "english", input_bytes=8_800, input_tokens=2_000)
        learn(experience, "chinese", input_bytes=6_000, input_tokens=2_000)
    assert abs(experience.input_tokens("k", 8_800, key_id="english") - 2_000) <= 40
    assert abs(experience.input_tokens("k", 6_000, key_id="chinese") - 2_000) <= 40
    assert 2_000 < experience.input_tokens("k", 8_000, key_id="new") < 2_667


def test_only_so_many_keys_are_remembered() -> None:
    """The one whose last answer is longest ago goes first, and is estimated like any other of the model then."""
    experience = Experience()
    learn(experience, "first", input_bytes=100, input_tokens=100)
    learn(experience, "second", input_bytes=100, input_tokens=100)
    learn(experience, "first", input_bytes=100, input_tokens=100)
    for number in range(KEYS_MAX - 1):
        learn(experience, str(number), input_bytes=400_000, input_tokens=100_000)
    unknown = experience.input_tokens("k", 4_000, key_id="unknown")
    assert experience.input_tokens("k", 4_000, key_id="second") == unknown
    assert experience.input_tokens("k", 4_000, key_id="first") > unknown
