"""Where weights go, for machines that are only described."""

import pytest
import torch

from srdyn.loading import devices

GB = 10**9
CPU = {"cpu": 16 * GB}
ONE_GPU = {0: 24 * GB, "cpu": 64 * GB}
TWO_GPUS = {0: 24 * GB, 1: 24 * GB, "cpu": 64 * GB}


def placed(weights, rooms, *, layer=GB, **options):
    found = devices.decide(weights, layer, rooms, **options)
    return str(found.device), found.offload, found.shards


@pytest.mark.parametrize(
    ("weights", "rooms", "expected"),
    [
        (10 * GB, CPU, ("cpu", None, ())),
        (16 * GB, CPU, ("cpu", "disk", ())),
        (23 * GB, ONE_GPU, ("cuda:0", None, ())),
        (24 * GB, ONE_GPU, ("cuda:0", "cpu", ())),
        (64 * GB, ONE_GPU, ("cuda:0", "disk", ())),
        (46 * GB, TWO_GPUS, ("cuda:0", None, (0, 1))),
        (47 * GB, TWO_GPUS, ("cuda:0", "cpu", ())),
    ],
)
def test_auto_takes_the_first_that_fits(weights, rooms, expected):
    assert placed(weights, rooms, offload="auto") == expected


def test_a_device_that_is_named_is_used_alone():
    assert placed(23 * GB, TWO_GPUS, device="cuda:1") == ("cuda:1", None, ())
    assert placed(46 * GB, TWO_GPUS, device="cuda:1", offload="auto") == ("cuda:1", "cpu", ())
    assert placed(46 * GB, TWO_GPUS, device="cpu") == ("cpu", None, ())


def test_an_offload_that_is_named_is_taken():
    assert placed(GB, ONE_GPU, offload="cpu") == ("cuda:0", "cpu", ())
    assert placed(GB, CPU, offload="disk") == ("cpu", "disk", ())


def test_without_offload_weights_that_do_not_fit_are_refused_before_they_are_read():
    advice = r'16 GB of weights \(largest layer 1 GB\) do not fit: cpu has 16 GB.*offload="auto"'
    with pytest.raises(MemoryError, match=advice):
        devices.decide(16 * GB, GB, CPU)


def test_a_layer_too_large_for_memory_is_refused():
    with pytest.raises(MemoryError, match=r"a machine with more memory"):
        devices.decide(100 * GB, 9 * GB, CPU, offload="auto")


def test_a_device_of_unknown_size_is_trusted():
    assert placed(100 * GB, {"cpu": GB}, device="mps") == ("mps", None, ())


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
