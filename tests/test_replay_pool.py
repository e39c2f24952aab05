"""Pools: drawing with probability and size, eviction, age and use, and the pool as it was at a step."""

import numpy as np
import pytest

from tests.support_replay import PROBLEM, provenance, star_tree
from treerl.replay.keys import problem_key
from treerl.replay.pool import (
    Item,
    Pool,
    PoolSettings,
    alive,
    draw_items,
    draws_of_rows,
    probabilities,
)
from treerl.replay.store import Store


def items(*priorities, step=0):
    return [Item(i + 1, i + 1, p, step) for i, p in enumerate(priorities)]


def ids(found):
    return [item.id for item in found]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_priorities_give_probabilities_and_weights_that_undo_them():
    pool = PoolSettings(sampler="prioritised")
    there = items(4, 2, 1, 1)
    chance = probabilities(there, pool)
    np.testing.assert_allclose(chance, [0.5, 0.25, 0.125, 0.125])
    drawn = draw_items(there, {}, pool, 400, rng())
    weight = {one.item.id: one.weight(1.0) for one in drawn}
    assert weight == {1: 0.5, 2: 1.0, 3: 2.0, 4: 2.0}
    values = np.array([3.0, -1.0, 5.0, 2.0])
    expected = sum(p * weight[i + 1] * values[i] for i, p in enumerate(chance))
    assert expected == pytest.approx(values.mean())
    assert {one.size for one in drawn} == {4}
    assert drawn[0].weight(0.0) == 1.0


def test_priority_exponent_zero_is_uniform_but_priority_zero_is_never_drawn():
    flat = PoolSettings(sampler="prioritised", priority_exponent=0.0)
    np.testing.assert_allclose(probabilities(items(4, 2, 0), flat), [0.5, 0.5, 0])
    assert draw_items(items(0, 0), {}, flat, 3, rng()) == []


def test_uniform_draws_each_item_once_at_equal_chance():
    drawn = draw_items(items(9, 1, 1), {}, PoolSettings(), 5, rng())
    assert sorted(one.item.id for one in drawn) == [1, 2, 3]
    assert {(one.probability, one.size, one.weight(1.0)) for one in drawn} == {(1 / 3, 3, 1.0)}


@pytest.mark.parametrize(("sampler", "order"), [("oldest", [1, 2]), ("newest", [3, 2])])
def test_queue_and_stack(sampler, order):
    drawn = draw_items(items(1, 1, 1), {}, PoolSettings(sampler=sampler), 2, rng())
    assert [one.item.id for one in drawn] == order


def test_an_item_used_up_leaves_the_draw_under_way():
    pool = PoolSettings(sampler="prioritised", max_times_sampled=2)
    drawn = draw_items(items(100, 1), {(1, 0): 1}, pool, 9, rng())
    assert [one.item.id for one in drawn] == [1, 2, 2]
    assert [one.size for one in drawn] == [2, 1, 1]


def test_the_oldest_or_the_lowest_makes_room():
    there = [Item(1, 1, 5.0, 0), Item(2, 2, 1.0, 0), Item(3, 3, 2.0, 1), Item(4, 4, 2.0, 2)]
    assert ids(alive(there, {}, PoolSettings(max_size=2), 3)) == [3, 4]
    assert ids(alive(there, {}, PoolSettings(max_size=2, remover="lowest"), 3)) == [1, 4]
    assert ids(alive(there, {}, PoolSettings(max_size=2, remover="lowest"), 2)) == [1, 3]


def test_what_was_evicted_does_not_come_back_when_others_go():
    there = [Item(1, 1, 1.0, 0), Item(2, 2, 2.0, 1)]
    pool = PoolSettings(max_size=1, max_times_sampled=1)
    assert ids(alive(there, {}, pool, 2)) == [2]
    assert ids(alive(there, {(2, 2): 1}, pool, 3)) == []


def test_ages_up_to_the_limit_stay():
    there = [Item(step + 1, step + 1, 1.0, step) for step in range(10)]
    assert ids(alive(there, {}, PoolSettings(max_age=7), 9)) == [3, 4, 5, 6, 7, 8, 9]
    assert ids(alive(there[:1], {}, PoolSettings(max_age=7), 7)) == [1]
    assert ids(alive(there[:1], {}, PoolSettings(max_age=7), 8)) == []


def test_items_and_uses_of_this_step_and_later_are_not_seen():
    there = [*items(1, step=0), Item(2, 2, 1.0, 4)]
    pool = PoolSettings(max_times_sampled=1)
    assert ids(alive(there, {(1, 4): 1}, pool, 4)) == [1]
    assert ids(alive(there, {(1, 4): 1}, pool, 5)) == [2]


# In the store --------------------------------------------------------------------------------------------


@pytest.fixture
def filled(any_url):
    """A run with three trees of one step and draws 1, 2 | 3, 4 | 5, 6."""
    with Store.open(any_url) as store:
        run = store.start_run("a", {})
        for number in range(3):
            tree, texts = star_tree(seed=number, leaves=([number + 4, 2], [9, number, 2]))
            store.put_tree(
                run,
                tree,
                step=0,
                number=number,
                problem=PROBLEM,
                provenance=provenance(),
                texts=texts,
            )
        yield store, run


def test_forty_items_give_thirty_two_then_eight():
    pool = PoolSettings(max_times_sampled=1)
    there, uses = [Item(i, i, 1.0, 0) for i in range(40)], {}
    first = draw_items(alive(there, uses, pool, 1), uses, pool, 32, rng())
    uses = {(one.item.id, 1): 1 for one in first}
    second = draw_items(alive(there, uses, pool, 2), uses, pool, 32, rng())
    assert (len(first), len(second)) == (32, 8)
    assert not {d.item.id for d in first} & {d.item.id for d in second}


def test_a_pool_in_the_store_remembers_use_with_probability_and_size(filled):
    store, run = filled
    pool = Pool(store, run, "good", PoolSettings(sampler="prioritised", max_times_sampled=1))
    pool.put({1: 3.0, 4: 1.0}, step=0)
    pool.put({4: 9.0}, step=1)
    (drawn,) = pool.draw(1, step=1, generator=rng())
    assert (drawn.probability, drawn.size) == ({1: 0.75, 4: 0.25}[drawn.item.draw], 2)
    left, uses = pool.at(2)
    assert [item.draw for item in left] == [d for d in (1, 4) if d != drawn.item.draw]
    assert uses == {(drawn.item.id, 1): 1}
    again = Pool(store, run, "good", PoolSettings(sampler="prioritised", max_times_sampled=1))
    assert again.id == pool.id
    assert Pool(store, run, "bad", PoolSettings()).at(9) == ([], {})


def test_a_step_done_again_draws_the_same_and_counts_once(filled):
    store, run = filled
    pool = Pool(store, run, "good", PoolSettings(max_times_sampled=1))
    pool.put(dict.fromkeys(range(1, 7), 1.0), step=0)
    first = pool.draw(2, step=1, generator=rng(1))
    later = pool.draw(2, step=2, generator=rng(2))
    assert not {d.item.id for d in first} & {d.item.id for d in later}
    assert pool.draw(2, step=1, generator=rng(1)) == first
    assert len(pool.at(2)[0]) == 4
    assert pool.draw(2, step=2, generator=rng(2)) == later


@pytest.mark.parametrize("remover", ["oldest", "lowest"])
def test_an_age_limit_bounds_what_is_read_and_changes_nothing(filled, remover):
    store, run = filled
    settings = PoolSettings(remover=remover, max_size=3, max_times_sampled=1, max_age=2)
    pool = Pool(store, run, "good", settings)
    there, uses = [], {}
    for step in range(6):
        found, _ = pool.at(step)
        assert found == alive(there, uses, settings, step)
        drawn = pool.draw(1, step=step, generator=rng(step))
        uses |= {(one.item.id, step): 1 for one in drawn}
        pool.put({step + 1: float(step % 3)}, step=step)
        everything = Pool(store, run, "good", PoolSettings(max_size=99)).at(step + 1)[0]
        there = sorted(everything, key=lambda item: item.id)


def test_deleting_the_run_takes_its_pools_along(filled):
    store, run = filled
    Pool(store, run, "good", PoolSettings()).put({1: 1.0}, step=0)
    with store.write() as connection:
        connection.exec_driver_sql("DELETE FROM run")
        left = [
            connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar()
            for name in ("pool", "item", "draw")
        ]
    assert left == [0, 0, 0]


def test_draws_are_found_by_their_place_in_a_tree(filled):
    store, run = filled
    key = problem_key(PROBLEM)
    ends = [(key, 0, 1), (key, 2, 2), (key, 9, 1)]
    assert draws_of_rows(store, run, step=0, ends=ends) == {(key, 0, 1): 1, (key, 2, 2): 6}
    assert draws_of_rows(store, run, step=1, ends=ends) == {}
