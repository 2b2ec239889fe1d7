"""Logged values: exact numbers, each step once, kept until they are durable."""

from __future__ import annotations

import pytest
import torch

from unbroken.errors import ConfigError
from unbroken.training.logbook import Logbook


def test_values_are_read_as_they_were_when_logged():
    book, loss = Logbook(), torch.tensor(1.5)
    book.log(1, {"loss": loss, "lr": 0.25, "ok": True, "count": 1 << 60})
    loss.mul_(100)
    assert book.until(1) == {"loss": [(1, 1.5)], "lr": [(1, 0.25)], "ok": [(1, 1)], "count": [(1, 1 << 60)]}


def test_the_last_value_of_a_step_stands():
    book = Logbook()
    book.log(1, {"loss": 1})
    book.log(1, {"loss": 2})
    assert book.until(1) == {"loss": [(1, 2)]}


def test_the_step_under_way_is_left_out_and_durable_steps_are_forgotten():
    book = Logbook()
    for step in range(1, 6):
        book.log(step, {"loss": float(step)})
    assert book.until(4)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    book.forget(3)
    assert book.until(5)["loss"] == [(4, 4.0), (5, 5.0)]


def test_a_tensor_with_a_graph_behind_it_does_not_keep_the_graph():
    book, weight = Logbook(), torch.ones(1, requires_grad=True)
    book.log(1, {"loss": (weight * 2).sum()})
    assert book.until(1) == {"loss": [(1, 2.0)]}


@pytest.mark.parametrize("value", ["text", None, [1], {"a": 1}])
def test_what_is_no_number_is_refused_where_it_is_logged(value):
    with pytest.raises(ConfigError, match=r"run.log\(loss=...\)"):
        Logbook().log(1, {"loss": value})


def test_a_tensor_of_several_numbers_is_refused_by_its_shape():
    with pytest.raises(ConfigError, match=r"a tensor of shape \[3\]"):
        Logbook().log(1, {"loss": torch.ones(3)})
