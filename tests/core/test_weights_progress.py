"""Who loads weights can be told how far they are."""

import pytest

from pipezoo_core.weights import observed_weights


def heard(load_tiny, **settings):
    reports = []
    with observed_weights(lambda *report: reports.append(report)):
        load_tiny(**settings)
    return reports


def test_it_goes_from_nothing_to_the_whole_model(load_tiny, tiny_reference):
    reports = heard(load_tiny)
    (num_all,) = {num_all for _, num_all in reports}
    assert num_all == tiny_reference.num_parameters()
    done = [num_done for num_done, _ in reports]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, num_all)
    assert len(done) > tiny_reference.config.num_hidden_layers


def test_it_begins_anew_for_each_replica(load_tiny):
    one = heard(load_tiny)
    assert heard(load_tiny, data_parallel_degree=2) == one * 2


def test_nobody_hears_of_a_later_load(load_tiny):
    reports = heard(load_tiny)
    before = list(reports)
    load_tiny()
    assert reports == before


def test_what_an_observer_raises_ends_the_load(load_tiny):
    def stop(num_done, num_all):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), observed_weights(stop):
        load_tiny()
    load_tiny().generate("hello", max_new_tokens=2)
