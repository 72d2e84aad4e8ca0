"""The last rows of a training: how many are kept, in which order, of which layer."""

import torch

from strata.sae.recent import RecentRows


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(1)


def kept(recent: RecentRows) -> list[float]:
    found = recent.last()
    assert found is not None
    return found[0].flatten().tolist()


def test_the_last_rows_in_their_order():
    recent = RecentRows(4)
    assert recent.last() is None
    recent.add(rows(1, 2, 3), None, None)
    assert kept(recent) == [1, 2, 3]
    recent.add(rows(4, 5), None, None)
    assert kept(recent) == [2, 3, 4, 5]
    recent.add(rows(6, 7, 8, 9), None, None)
    assert kept(recent) == [6, 7, 8, 9]


def test_no_more_batches_are_held_than_are_needed():
    recent = RecentRows(4)
    for start in range(0, 100, 2):
        recent.add(rows(start, start + 1), None, None)
        assert sum(len(x) for x, _, _ in recent._batches) <= 4
    assert kept(recent) == [96, 97, 98, 99]


def test_none_are_kept_where_none_are_wanted():
    recent = RecentRows(0)
    recent.add(rows(1, 2), None, None)
    assert recent.last() is None
    assert recent.state() == {}


def test_of_a_group_those_of_one_layer():
    recent = RecentRows(5)
    recent.add(rows(1, 2, 3), rows(10, 20, 30), torch.tensor([0, 1, 0], dtype=torch.uint8))
    recent.add(rows(4, 5), rows(40, 50), torch.tensor([1, 1], dtype=torch.uint8))
    found = recent.last(1)
    assert found is not None
    x, target, layer = found
    assert target is not None
    assert layer is not None
    assert x.flatten().tolist() == [2, 4, 5]
    assert target.flatten().tolist() == [20, 40, 50]
    assert layer.tolist() == [1, 1, 1]
    everything = recent.last(7)  # a layer of which there are none: better all than nothing
    assert everything is not None
    assert len(everything[0]) == 5


def test_a_checkpoint_holds_them():
    for target in (None, rows(10, 20)):
        recent, again = RecentRows(3), RecentRows(3)
        recent.add(rows(1, 2), target, None)
        again.add(rows(7), None, None)
        again.load_state(recent.state(), device=torch.device("cpu"))
        found = again.last()
        assert found is not None
        assert torch.equal(found[0], rows(1, 2))
        assert found[2] is None
        assert (found[1] is None) if target is None else torch.equal(found[1], target)
    again.load_state(RecentRows(3).state(), device=torch.device("cpu"))
    assert again.last() is None
