import pytest

from glmft.data import sampler
from glmft.data.sampler import Plan, in_steps, split_up


def steps(plan: Plan, start: int = 0, epochs: int = 1) -> list[list[int]]:
    return [window for _, window in plan.windows(start, plan.total_steps(epochs, None))]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("records", [1, 7, 24, 25, 100])
def test_every_record_is_trained_exactly_once_an_epoch_whatever_the_number_of_ranks(records, world_size):
    plan = Plan(records, 2, 3, world_size, seed=1)
    dealt = [
        row
        for window in steps(plan)
        for rank in range(world_size)
        for micro_batch in plan.micro_batches(window, rank)
        for row in micro_batch
    ]
    assert sorted(dealt) == list(range(records))


@pytest.mark.parametrize("records", [1, 7, 24, 25, 100])
def test_all_ranks_run_equally_many_micro_batches_none_longer_than_asked(records):
    plan = Plan(records, 2, 3, 4, seed=1)
    for window in steps(plan):
        shares = [plan.micro_batches(window, rank) for rank in range(4)]
        assert len({len(share) for share in shares}) == 1
        assert 1 <= len(shares[0]) <= 3
        assert all(len(rows) <= 2 for share in shares for rows in share)
        assert shares[0][0]  # rank 0 always has a record


def test_the_records_of_a_step_do_not_depend_on_how_they_are_dealt():
    windows = [steps(Plan(50, *split, seed=1), epochs=2) for split in ((12, 1, 1), (3, 4, 1), (3, 2, 2), (1, 3, 4))]
    assert all(other == windows[0] for other in windows)


def test_each_epoch_and_each_seed_has_its_own_order():
    plan = Plan(50, 5, 1, 1, seed=1)
    assert plan.order(0) != plan.order(1)
    assert plan.order(0) == plan.order(0)
    assert plan.order(0) != Plan(50, 5, 1, 1, seed=9).order(0)


@pytest.mark.parametrize("start", [1, 4, 9, 13])
def test_starting_in_the_middle_equals_skipping_what_was_done(start):
    plan = Plan(50, 2, 3, 1, seed=1)
    assert steps(plan, start, epochs=2) == steps(plan, 0, epochs=2)[start:]


def test_a_short_last_window_is_a_step_and_max_steps_outranks_epochs():
    plan = Plan(50, 2, 3, 2, seed=1)
    assert plan.steps_per_epoch == 5
    assert plan.total_steps(3, None) == 15
    assert plan.total_steps(3, 4) == 4


# ------------------------------------------------------------------------------------- grouped by length

LENGTHS = [(i * 37) % 101 + 1 for i in range(300)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_grouping_still_trains_every_record_once_and_the_same_windows_on_any_number_of_ranks(world_size):
    plan = Plan(300, 12 // world_size, 1, world_size, 1, LENGTHS)
    windows = steps(plan)
    assert sorted(record for window in windows for record in window) == list(range(300))
    assert windows == steps(Plan(300, 12, 1, 1, 1, LENGTHS))
    dealt = [[plan.micro_batches(window, rank) for rank in range(world_size)] for window in windows]
    assert [sorted(r for rank in ranks for rows in rank for r in rows) for ranks in dealt] == list(map(sorted, windows))


def test_records_share_a_window_with_those_shuffled_near_them(monkeypatch):
    """Ten windows' worth are sorted together, the rest after them; what fills no window comes last."""
    monkeypatch.setattr(sampler, "GROUPED", 10)
    plan, plain = Plan(302, 4, 1, 1, 1, [*LENGTHS, 1, 1]), Plan(302, 4, 1, 1, 1)
    assert sorted(plan.order(0)) == list(range(302))
    shuffled = plain.order(0)
    windows = {tuple(plan.order(0)[i : i + 4]) for i in range(0, 300, 4)}
    for first in range(0, 300, 40):
        group = sorted(shuffled[first : min(first + 40, 300)], key=plan.lengths.__getitem__)
        assert {tuple(group[i : i + 4]) for i in range(0, len(group), 4)} <= windows
    assert plan.order(0)[300:] == shuffled[300:]


def unevenness(plan: Plan) -> int:
    """Tokens that the ranks' shares of a window differ by, over an epoch."""
    shares = ([sum(LENGTHS[i] for rows in plan.micro_batches(w, r) for i in rows) for r in (0, 1)] for w in steps(plan))
    return sum(abs(a - b) for a, b in shares)


def test_grouping_gives_ranks_like_work_and_keeps_the_order_of_lengths_random():
    grouped, plain = Plan(300, 2, 1, 2, 1, LENGTHS), Plan(300, 2, 1, 2, 1)
    assert unevenness(grouped) < 0.2 * unevenness(plain)
    first = [LENGTHS[window[0]] for window in steps(grouped)]
    assert first != sorted(first)
    assert grouped.order(0) != grouped.order(1)


@pytest.mark.parametrize(("epochs", "steps"), [(2.5, 10), (0.1, 1), (1e-9, 1), (1, 4), (3.0, 12), (2.3, 10)])
def test_a_part_of_an_epoch_takes_as_many_steps_as_hold_it(epochs, steps):
    assert Plan(10, 3, 1, 1, seed=0).total_steps(epochs, None) == steps


@pytest.mark.parametrize(
    ("interval", "total", "steps"), [(0.1, 30, 3), (0.1, 48, 5), (0.1, 3, 1), (7, 30, 7), (20.0, 30, 20), (0.99, 2, 2)]
)
def test_an_interval_below_one_is_a_share_of_all_steps(interval, total, steps):
    assert in_steps(interval, total) == steps


def test_the_heaviest_micro_batch_is_one_of_the_run():
    plan = Plan(300, 4, 2, 2, 1, LENGTHS)
    batches = [rows for window in steps(plan) for rank in (0, 1) for rows in plan.micro_batches(window, rank)]
    heaviest = plan.heaviest(LENGTHS, 0, plan.steps_per_epoch)
    assert heaviest in batches
    assert sum(LENGTHS[i] for i in heaviest) == max(sum(LENGTHS[i] for i in rows) for rows in batches)
    assert plan.heaviest(LENGTHS, 3, 4) in [rows for r in (0, 1) for rows in plan.micro_batches(steps(plan)[3], r)]


# ------------------------------------------------------------------------------------- bounded by tokens


@pytest.mark.parametrize("grouped", [None, LENGTHS], ids=["shuffled", "grouped"])
@pytest.mark.parametrize("bound", [1, 60, 150, 10**6])
def test_a_bound_of_tokens_splits_micro_batches_and_changes_neither_records_nor_their_order(bound, grouped):
    plan, plain = Plan(300, 4, 2, 3, 1, grouped, LENGTHS, bound), Plan(300, 4, 2, 3, 1, grouped)
    assert steps(plan) == steps(plain)
    for window in steps(plan):
        batches = [plan.micro_batches(window, rank) for rank in range(3)]
        assert len({len(of_rank) for of_rank in batches}) == 1  # all ranks have equally many
        for rank, of_rank in enumerate(batches):
            usual = plain.micro_batches(window, rank)
            assert [r for rows in of_rank for r in rows] == [r for rows in usual for r in rows]
            assert all(len(rows) <= 4 for rows in of_rank)
            assert all(len(rows) == 1 or sum(LENGTHS[i] for i in rows) <= bound for rows in of_rank if rows)
        assert bound < 10**6 or batches[0] == plain.micro_batches(window, 0)


# ------------------------------------------------------------------------------------- run together


@pytest.mark.parametrize("grouped", [None, LENGTHS], ids=["shuffled", "grouped"])
@pytest.mark.parametrize("bound", [None, 60, 150, 10**6])
def test_micro_batches_of_a_step_run_together_within_the_room_of_the_largest(bound, grouped, monkeypatch):
    monkeypatch.setattr(sampler, "FEW", 100)
    plan, plain = Plan(300, 2, 8, 3, 1, grouped, LENGTHS, bound, joins=True), Plan(300, 2, 8, 3, 1, grouped)
    room = bound or sum(sorted(LENGTHS)[-2:])
    assert steps(plan) == steps(plain)
    passes, usual = 0, 0
    for window in steps(plan):
        shares = [plan.micro_batches(window, rank) for rank in range(3)]
        assert len({len(share) for share in shares}) == 1
        for rank, share in enumerate(shares):
            assert [r for rows in share for r in rows] == [
                r for rows in plain.micro_batches(window, rank) for r in rows
            ]
            assert all(len(rows) == 1 or sum(LENGTHS[i] for i in rows) <= room for rows in share if rows)
        passes += len(shares[0])
        usual += len(plain.micro_batches(window, 0))
    assert bound in (60, 150) or passes < usual


def test_few_tokens_run_together_however_short_the_longest_record_is():
    plan = Plan(16, 1, 8, 1, 1, tokens=[60] * 16, joins=True)
    assert [len(rows) for rows in plan.micro_batches(list(range(8)), 0)] == [8]


def test_a_rank_of_fewer_parts_halves_them_before_it_runs_one_for_nothing():
    assert split_up([[1, 2, 3], [4]], 3) == [[1], [2, 3], [4]]
    assert split_up([[1, 2]], 4) == [[1], [2], [], []]
    assert split_up([], 1) == [[]]
