"""Where weights go, for machines that are only described."""

import pytest
import torch

from srdyn.loading import devices

GB = 10**9
CPU = {"cpu": 16 * GB}
ONE_GPU = {0: 24 * GB, "cpu": 64 * GB}
TWO_GPUS = {0: 24 * GB, 1: 24 * GB, "cpu": 64 * GB}


AUTO = {"offload": "auto"}


@pytest.mark.parametrize(
    ("weights", "rooms", "options", "expected"),
    [
        (10, CPU, AUTO, ("cpu", None, ())),  # the first that fits
        (16, CPU, AUTO, ("cpu", "disk", ())),
        (23, ONE_GPU, AUTO, ("cuda:0", None, ())),
        (24, ONE_GPU, AUTO, ("cuda:0", "cpu", ())),
        (64, ONE_GPU, AUTO, ("cuda:0", "disk", ())),
        (46, TWO_GPUS, AUTO, ("cuda:0", None, (0, 1))),
        (47, TWO_GPUS, AUTO, ("cuda:0", "cpu", ())),
        (23, TWO_GPUS, {"device": "cuda:1"}, ("cuda:1", None, ())),  # a device that is named is used alone
        (46, TWO_GPUS, {"device": "cuda:1"} | AUTO, ("cuda:1", "cpu", ())),
        (46, TWO_GPUS, {"device": "cpu"}, ("cpu", None, ())),
        (1, ONE_GPU, {"offload": "cpu"}, ("cuda:0", "cpu", ())),  # an offload that is named is taken
        (1, CPU, {"offload": "disk"}, ("cpu", "disk", ())),
        (100, {"cpu": GB}, {"device": "mps"}, ("mps", None, ())),  # a device of unknown size is trusted
    ],
)
def test_weights_go_where_they_fit_and_may(weights, rooms, options, expected):
    found = devices.decide(weights * GB, GB, rooms, **options)
    assert (str(found.device), found.offload, found.shards) == expected


def test_without_offload_weights_that_do_not_fit_are_refused_before_they_are_read():
    advice = r'16 GB of weights \(largest layer 1 GB\) do not fit: cpu has 16 GB.*offload="auto"'
    with pytest.raises(MemoryError, match=advice):
        devices.decide(16 * GB, GB, CPU)


def test_a_layer_too_large_for_memory_is_refused():
    with pytest.raises(MemoryError, match=r"a machine with more memory"):
        devices.decide(100 * GB, 9 * GB, CPU, offload="auto")


@pytest.mark.parametrize(
    ("offload", "message"),
    [("gpu", r'offload must be None, "cpu", "disk" or "auto", got \'gpu\''), ("cpu", "this runs on the CPU")],
)
def test_an_offload_that_makes_no_sense_is_refused(offload, message):
    with pytest.raises(ValueError, match=message):
        devices.decide.__wrapped__(GB, GB, CPU, offload=offload)


def test_what_is_granted_replaces_what_is_free():
    assert devices.rooms({"cpu": "3GB"})["cpu"] == 3 * GB
    assert devices.rooms()["cpu"] > 0


def test_a_container_has_no_more_than_it_is_granted(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "LIMIT", tmp_path / "memory.max")
    devices.LIMIT.write_text("1000\n")
    assert devices.rooms()["cpu"] == 1000
    devices.LIMIT.write_text("max\n")
    assert devices.rooms()["cpu"] > 1000


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="GPU 7 is there")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"GPUs \[7\], which are not there"):
        devices.rooms({7: "1GB"})


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (72 * 2**20, "75.5 MB"), (GB, "1 GB")]
)
def test_sizes_are_read_at_a_glance(size, words):
    assert devices.in_words(size) == words


def test_a_placement_says_where_and_why():
    shared = devices.decide(46 * GB, GB, TWO_GPUS, offload="auto")
    assert str(shared) == "shared by the GPUs 0, 1 (46 GB of weights, more than the 24 GB of cuda:0)"
    disk = devices.decide(64 * GB, GB, ONE_GPU, offload="auto")
    assert str(disk) == "on cuda:0, weights read from disk layer by layer (64 GB of weights; cuda:0 has 24 GB)"
