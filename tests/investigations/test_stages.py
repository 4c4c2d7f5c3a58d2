"""Stages: the share done never falls, whatever parts a stage turns out to have."""

from mechscope.investigations.stages import Stages


def test_the_share_done_never_falls_and_stays_in_its_stage() -> None:
    told: list[tuple[str, float]] = []
    stages = Stages(lambda what, share: told.append((what, share)))
    stages.begin("testing", 0.1, 0.5)
    for part in ("recovers", "lowers", "recovers"):
        for done in range(5):
            stages.tell(part, done, 4)
    stages.begin("writing", 0.5, 1.0)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] == 0.1 and shares[-1] == 0.5
    assert 0.1 < shares[3] < shares[-2] < 0.5 and told[1][0] == "testing: recovers"
    assert list(stages.seconds) == ["testing"]


def test_nobody_has_to_be_told() -> None:
    Stages().tell("anything", 1, 0)
