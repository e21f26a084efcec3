"""Who shares a batch and whose turn it is, without any model."""

from __future__ import annotations

import pytest
import torch

from onbrand.engine.batch import FairQueue, Job, Row, Turns, size_class, size_classes
from onbrand.engine.request import Plan, Request


def job(brand: str = "acme", num_images: int = 1, size: int = 64, cfg: float = 3.0, steps: int = 4, **more) -> Job:
    request = Request(f"{brand}-request", brand, "a secret prompt", 0, num_images=num_images, **more)
    return Job(request, Plan(size, size, steps, cfg, cfg))


def row(job: Job, index: int = 0) -> Row:
    return Row(job, index, torch.zeros(1, 4, 8, 8))


def served(queue: FairQueue, num: int) -> list[str]:
    """The brands of the next `num` pictures."""
    brands = []
    for _ in range(num):
        chosen = queue.first()
        assert chosen is not None
        chosen.num_started += 1
        queue.charge(chosen)
        if not chosen.num_waiting:
            queue.remove(chosen)
        brands.append(chosen.request.brand_id)
    return brands


@pytest.mark.parametrize(("most", "classes"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_size_classes_double_up_to_the_largest_batch(most, classes):
    assert size_classes(most) == classes


def test_a_batch_is_filled_up_to_the_next_class():
    assert [size_class(num, (1, 2, 4, 8)) for num in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]


def test_rows_of_one_shape_go_together_and_shapes_take_turns():
    turns, small, large = Turns(4), job(), job(size=128)
    running = [row(small), row(large), row(small, 1)]
    batches = [turns.next_batch(running) for _ in range(4)]
    assert batches[0] == [running[0], running[2]]
    assert batches[1] == [running[1]]
    assert batches[2:] == batches[:2]


def test_rows_without_guidance_do_not_share_a_doubled_pass():
    guided, plain = row(job()), row(job(cfg=1.0))
    assert Turns(4).next_batch([guided, plain]) == [guided]


def test_an_exclusive_brand_shares_with_nobody():
    alone, other = row(job("acme", exclusive=True)), row(job("globex"))
    assert Turns(4).next_batch([alone, other]) == [alone]


def test_no_batch_is_larger_than_the_largest():
    many = job(num_images=7)
    assert len(Turns(4).next_batch([row(many, index) for index in range(7)])) == 4


def test_nothing_running_is_no_batch():
    assert Turns(4).next_batch([]) == []


def test_brands_get_equal_work_however_much_one_sends():
    queue = FairQueue()
    for _ in range(5):
        queue.push(job("flood", num_images=10))
    queue.push(job("quiet", num_images=3))
    assert served(queue, 7) == ["flood", "quiet"] * 3 + ["flood"]


def test_work_counts_not_pictures():
    queue = FairQueue()
    queue.push(job("long", num_images=8, steps=8))
    queue.push(job("short", num_images=8, steps=4))
    assert served(queue, 6).count("short") == 4


def test_a_brand_that_returns_from_idle_has_no_credit():
    queue = FairQueue()
    queue.push(job("busy", num_images=20))
    served(queue, 8)
    queue.push(job("back", num_images=8))
    assert served(queue, 6).count("back") == 3


def test_a_brand_alone_owes_nothing_when_another_comes():
    queue = FairQueue()
    queue.push(job("busy", num_images=8))
    served(queue, 8)
    queue.push(job("busy", num_images=4))
    queue.push(job("new", num_images=4))
    assert served(queue, 4).count("busy") == 2


def test_a_job_that_cannot_start_does_not_hold_up_the_next():
    queue, first, second = FairQueue(), job("acme"), job("acme")
    queue.push(first)
    queue.push(second)
    assert queue.first({first}) is second


def test_pictures_waiting_are_counted_by_brand_and_in_all():
    queue = FairQueue()
    queue.push(job("acme", num_images=3))
    queue.push(job("globex", num_images=2))
    assert (queue.num_pictures("acme"), queue.num_pictures(), queue.num_pictures("nobody")) == (3, 5, 0)


def test_no_repr_shows_a_prompt():
    secretive = job(negative_prompt="another secret")
    assert "secret" not in repr(secretive) + repr(row(secretive)) + str(secretive.request)
