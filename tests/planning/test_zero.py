"""Every ZeRO stage on two ranks: what a step takes and sends, beside what the plan says."""

import pytest

from benchmarks.traffic import KINDS, TUNERS, predicted, run_ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("tuner", TUNERS)
def test_memory_and_traffic_are_as_planned(tuner, stage, every):
    releases = stage == 3 and every == 1
    seen, plan = run_ranks(tuner, stage, 2, every, releases), predicted(tuner, stage, 2, every, releases)
    measured, planned = max(seen["most"].values()), max(plan["most"].values())
    assert 0.9 * (measured - seen["unseen"]) < planned < 1.1 * measured, (seen, plan["most"])
    for kind in {kind for kind, _ in KINDS.values()}:
        assert plan[kind] == pytest.approx(seen.get(kind, 0), rel=0.06, abs=64), kind
    if seen["loopback"]:
        assert plan["sent"] == pytest.approx(seen["loopback"], rel=0.1, abs=60_000)
