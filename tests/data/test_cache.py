# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd
from PIL import Image
from torch.utils.data import DataLoader

from monai_mimmx.data import cache
from monai_mimmx.data.cache import CachedImages, StoredImages, cache_subsets, keep_batch, select_subset
from monai_mimmx.files import locked

TASKS = ["sick", "sex"]
READ = Compose([LoadImaged("image", reader="PILReader"), EnsureChannelFirstd("image")])
OPTIONS: dict[str, Any] = {"transform_key": "read", "progress": False, "num_workers": 1}


@pytest.fixture
def frame(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02d}.png" for i in range(40)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (8, 6), dtype=np.uint8)).save(path)
    return pd.DataFrame({"image": [str(p) for p in paths], "sick": np.arange(40) % 2, "sex": np.arange(40) // 20})


class Counting:
    """The reader, counting the calls per file."""

    def __init__(self):
        self.calls = []

    def __call__(self, item):
        self.calls.append(item["image"])
        return READ(item)


def pixels_of(path):
    return np.asarray(Image.open(path), dtype=np.float32).T[None]  # MONAI puts x first


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_items_and_batches(frame, tmp_path, dtype, in_memory, workers):
    cache_dir = None if in_memory else tmp_path / "cache"
    data = CachedImages(frame, TASKS, READ, cache_dir=cache_dir, dtype=dtype, **{**OPTIONS, "num_workers": workers})
    assert len(data) == 40
    assert data.image_shape == (1, 6, 8)
    assert data.nbytes == 40 * 48 * np.dtype(dtype).itemsize
    for index in (0, 17, 39):
        item = data[index]
        assert item["image"].dtype == torch.float32
        np.testing.assert_array_equal(item["image"].numpy(), pixels_of(frame["image"][index]))
        assert item["label"].tolist() == [index % 2, index // 20]
    batch = data.__getitems__([3, 39, 3])
    assert batch["image"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    torch.testing.assert_close(batch["image"], torch.stack([data[i]["image"] for i in (3, 39, 3)]))
    torch.testing.assert_close(batch["label"], torch.stack([data[i]["label"] for i in (3, 39, 3)]))


def test_batches_are_copies(frame):
    data = CachedImages(frame, TASKS, READ, cache_dir=None, dtype="float32", **OPTIONS)
    data[0]["image"].zero_()
    data.__getitems__([0, 1])["image"].zero_()
    data[0]["label"].fill_(7)
    np.testing.assert_array_equal(data[0]["image"].numpy(), pixels_of(frame["image"][0]))
    assert data.labels[0].tolist() == [0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(frame, tmp_path, workers):
    data = CachedImages(frame, TASKS, READ, cache_dir=tmp_path / "cache", **OPTIONS)
    loader = DataLoader(data, batch_size=16, num_workers=workers, collate_fn=keep_batch)
    batches = list(loader)
    assert [len(batch["label"]) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(torch.cat([b["label"] for b in batches]).numpy(), frame[TASKS].to_numpy())
    np.testing.assert_array_equal(batches[2]["image"][7].numpy(), pixels_of(frame["image"][39]))


def test_cache_is_reused_until_something_changes(frame, tmp_path):
    cache = tmp_path / "cache"

    def calls(**changes):
        reader = Counting()
        CachedImages(frame, TASKS, reader, cache_dir=cache, **{**OPTIONS, **changes})
        return len(reader.calls)

    # Each file once, the first two times more: for the shape, and to see that the transform repeats. A cache that
    # stands is compared with the first file.
    built = 42
    assert calls() == built
    assert calls() == 1
    assert calls(dtype="float32") == built
    assert calls(transform_key="other") == built
    os.utime(frame["image"][5], ns=(0, 0))
    assert calls() == 4  # the others are taken over, after one more look at the first
    assert calls() == 1
    assert len(list(cache.glob("*.npy"))) == 4
    assert not list(cache.glob(".*.npy"))


def test_a_changed_transform_under_the_same_key_is_not_served_the_old_images(frame, tmp_path):
    def build(transform):
        return CachedImages(frame, TASKS, transform, cache_dir=tmp_path / "cache", **OPTIONS).images

    def halved(item):
        return {"image": READ(item)["image"] / 2}

    def cropped(item):
        return {"image": READ(item)["image"][..., :4]}

    for _ in range(2):
        np.testing.assert_array_equal(build(READ)[7], pixels_of(frame["image"][7]))
        np.testing.assert_array_equal(build(halved)[7], pixels_of(frame["image"][7]) / 2)
        np.testing.assert_array_equal(build(cropped)[7], pixels_of(frame["image"][7])[..., :4])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


def test_subsets_share_images_that_are_decoded_once(frame, tmp_path):
    reader = Counting()
    subsets = {
        "val": frame.iloc[10:30].reset_index(drop=True),
        "bal": frame.iloc[[29, 35, 12, 12]].reset_index(drop=True),
    }
    data = cache_subsets(subsets, TASKS, reader, cache_dir=tmp_path / "cache", **OPTIONS)
    assert sorted(set(reader.calls)) == [*frame["image"][10:30], frame["image"][35]]
    assert len(reader.calls) == 21 + 2
    assert data["val"].images is data["bal"].images
    assert len(data["bal"].images) == 21
    for name, subset in subsets.items():
        np.testing.assert_array_equal(data[name].labels, subset[TASKS].to_numpy())
        for index, path in enumerate(subset["image"]):
            np.testing.assert_array_equal(data[name][index]["image"].numpy(), pixels_of(path))
    np.testing.assert_array_equal(data["bal"].images[data["bal"].rows[1]], pixels_of(frame["image"][35]))
    reader.calls.clear()
    cache_subsets(dict(reversed(subsets.items())), TASKS, reader, cache_dir=tmp_path / "cache", **OPTIONS)
    assert len(reader.calls) == 1


def test_subset_by_index_and_by_frame(frame):
    data = CachedImages(frame, TASKS, READ, cache_dir=None, **OPTIONS)
    by_index = data.subset([5, 30]).subset([1])
    assert by_index.labels.tolist() == [[0, 1]]
    np.testing.assert_array_equal(by_index[0]["image"].numpy(), pixels_of(frame["image"][30]))
    relabelled = data.subset(frame.iloc[[30, 2]].assign(sick=[1, 1]))
    assert relabelled.labels.tolist() == [[1, 1], [1, 0]]
    np.testing.assert_array_equal(relabelled[1]["image"].numpy(), pixels_of(frame["image"][2]))
    with pytest.raises(ValueError, match=r"1 images are not cached, the first is other\.png"):
        data.subset(frame.iloc[:2].assign(image=[frame["image"][0], "other.png"]))


def test_pickle_holds_no_pixels_of_a_file(frame, tmp_path):
    data = CachedImages(frame, TASKS, READ, cache_dir=tmp_path / "cache", **OPTIONS)
    state = pickle.dumps(data)
    assert str(tmp_path / "cache").encode() in state
    again = pickle.loads(state)
    assert isinstance(again.images, np.memmap)
    torch.testing.assert_close(again[7]["image"], data[7]["image"])


def _build_in_child(frame, cache_dir, queue):
    reader = Counting()
    data = CachedImages(frame, TASKS, reader, cache_dir=cache_dir, **OPTIONS)
    queue.put((len(reader.calls), float(data.images.sum(dtype=np.float64))))


def test_two_processes_build_one_cache(frame, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_build_in_child, args=(frame, tmp_path / "cache", queue)) for _ in range(2)]
    for child in children:
        child.start()
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert sorted(calls for calls, _ in results) in ([0, 42], [1, 42])
    assert results[0][1] == results[1][1] == sum(pixels_of(path).sum(dtype=np.float64) for path in frame["image"])


def left_over(folder):
    return [path.name for path in folder.glob(".*") if not path.name.endswith(".lock")]


def interrupted(frame, folder, at, error=KeyboardInterrupt):
    """A build that ends at a row."""

    def read(item):
        if item["image"] == frame["image"][at]:
            raise error
        return READ(item)

    with pytest.raises(error if error is KeyboardInterrupt else ValueError):
        CachedImages(frame, TASKS, read, cache_dir=folder, **OPTIONS)


def taken_over(frame, folder, **options):
    """How many files are read to build a cache; it must hold what one from nothing does."""
    reader = Counting()
    data = CachedImages(frame, TASKS, reader, cache_dir=folder, **{**OPTIONS, **options})
    np.testing.assert_array_equal(data.images, np.stack([pixels_of(path) for path in frame["image"]]))
    return len({*reader.calls})


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_goes_on_and_leaves_nothing_behind(frame, tmp_path, workers):
    cache = tmp_path / "cache"
    interrupted(frame, cache, 25)
    assert len(left_over(cache)) == 3 and not list(cache.glob("*.npy"))
    assert taken_over(frame, cache, num_workers=workers) == 16  # the first, and from 25 on, in one piece
    assert not left_over(cache)


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_bad_image_the_others_are_not_read_again(frame, tmp_path, workers):
    cache, bad = tmp_path / "cache", frame["image"][25]
    whole = Path(bad).read_bytes()
    Path(bad).write_bytes(whole[:60])
    with pytest.raises(ValueError, match="row 25"):
        CachedImages(frame, TASKS, READ, cache_dir=cache, **{**OPTIONS, "num_workers": workers})
    without = frame.drop(25).reset_index(drop=True)
    assert taken_over(without, cache) == 1  # to see that the transform is the same
    Path(bad).write_bytes(whole)
    assert taken_over(frame, cache) == 2
    assert not left_over(cache)


def test_images_that_come_to_a_table_are_all_that_is_read(frame, tmp_path):
    cache = tmp_path / "cache"
    assert taken_over(frame[10:30].reset_index(drop=True), cache) == 20
    assert taken_over(frame, cache) == 21  # one of the known to compare
    assert taken_over(frame[::-1].reset_index(drop=True), cache) <= 3  # one of each earlier cache, and the first
    assert taken_over(frame, cache, transform_key="other") == 40


def test_what_a_machine_lost_before_it_wrote_is_read_again(frame, tmp_path):
    cache = tmp_path / "cache"
    interrupted(frame, cache, 25)
    part = next(cache.glob(".*.part"))
    np.load(part, mmap_mode="r+")[3:7] = 0
    assert taken_over(frame, cache) == 20
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"{")):
        for end in ("part", "done", "json"):
            interrupted(frame, tmp_path / "damaged", 25)
            damage(next((tmp_path / "damaged").glob(f".*.{end}")))
            assert taken_over(frame, tmp_path / "damaged") >= 16
            shutil.rmtree(tmp_path / "damaged")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_cache_file_that_was_cut_short_is_made_again(frame, tmp_path, caplog, kept):
    def images():
        data = CachedImages(frame, TASKS, READ, cache_dir=tmp_path, **OPTIONS)
        return data.__getitems__(list(range(len(data))))["image"].clone()

    expected = images()
    (file,) = tmp_path.glob("*.npy")
    whole = file.read_bytes()
    file.unlink()  # not in place: pages of it may still be in use
    file.write_bytes(whole[:kept])
    with caplog.at_level("WARNING", "monai_mimmx"):
        assert torch.equal(images(), expected)
    assert f"the image cache {file} is damaged: it is made again" in caplog.text
    caplog.clear()
    assert torch.equal(images(), expected) and "damaged" not in caplog.text


def test_a_build_with_nothing_done_leaves_nothing(frame, tmp_path):
    interrupted(frame, tmp_path / "cache", 0)
    interrupted(frame, tmp_path / "cache", 0, OSError)
    assert not left_over(tmp_path / "cache")


def test_what_another_process_builds_is_read_and_not_removed(frame, tmp_path):
    cache = tmp_path / "cache"
    interrupted(frame, cache, 25)
    key = left_over(cache)[0].split(".")[1]
    with locked(cache / f".{key}.lock"):  # as that process does
        assert taken_over(frame[:30].reset_index(drop=True), cache) == 6
        assert len(left_over(cache)) == 3
    assert taken_over(frame[:31].reset_index(drop=True), cache) == 2
    assert not left_over(cache)


def fails(frame, match, transform=READ, **options):
    with pytest.raises(ValueError, match=match):
        CachedImages(frame, TASKS, transform, cache_dir=None, **{**OPTIONS, **options})


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("row", [0, 25])
def test_bad_files_are_named(frame, row, workers):
    path = frame["image"][row]
    whole = Path(path).read_bytes()
    options = {"num_workers": workers}
    with open(path, "wb") as file:
        file.write(whole[: len(whole) // 2])
    fails(frame, rf"row {row}: {path}: it cannot be read as an image \(.*truncated", **options)
    with open(path, "w") as file:
        file.write("not an image")
    fails(frame, rf"row {row}: {path}: it cannot be read as an image \(.*cannot find a suitable reader", **options)
    Image.fromarray(np.full((8, 6), 3, np.uint8)).save(path)
    fails(frame, rf"row {row}: {path}: after the transforms all its pixels are 3", **options)
    os.unlink(path)
    fails(frame, rf"row {row}: {path}: the file cannot be opened", **options)


def test_all_bad_files_are_counted(frame):
    for row in (4, 20, 33):
        Image.fromarray(np.zeros((8, 6), np.uint8)).save(frame["image"][row])
    cause = "after the transforms all its pixels are 0"
    others = "; ".join(f"{frame['image'][row]}: {cause}" for row in (20, 33))
    told = rf"row 4: {frame['image'][4]}: {cause} \(and 2 more files; {others}\). Replace the files, or leave their rows out"
    fails(frame, told)


def test_wrong_shape_names_both(frame):
    Image.fromarray(np.arange(63, dtype=np.uint8).reshape(9, 7)).save(frame["image"][9])
    fails(frame, r"row 9: .*\(1, 7, 9\), but that of the first file is \(1, 6, 8\)")


@pytest.mark.parametrize(
    ("value", "match"),
    [(np.nan, "it holds NaN or infinite pixels\\. Replace"), (-np.inf, "NaN or inf"), (-7e4, "beyond float16")],
)
def test_bad_pixels(frame, value, match):
    def spoil(item):
        image = READ(dict(item))["image"].numpy().copy()
        if item["image"] == frame["image"][11]:
            image[0, 2, 2] = value
        return {"image": image}

    fails(frame, rf"row 11: .*{match}", spoil)
    if value == -7e4:
        data = CachedImages(frame, TASKS, spoil, cache_dir=None, dtype="float32", **OPTIONS)
        assert data[11]["image"].min() == value


def test_subset_and_row_are_named(frame):
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(frame["image"][30])
    subsets = {"train": frame.iloc[:20], "val": frame.iloc[20:].reset_index(drop=True)}
    with pytest.raises(ValueError, match=r"row 10 of subset 'val': .*30\.png"):
        cache_subsets(subsets, TASKS, READ, cache_dir=None, **OPTIONS)


def test_other_errors(frame, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    fails(frame, "two different results", lambda item: {"image": rng.random((1, 4, 4))})
    fails(frame, r"KeyError: 'image'", lambda item: {"picture": 1})
    fails(frame, r"channel-first image after the transform, got shape \(5,\)", lambda item: {"image": np.arange(5)})
    fails(frame, "one of uint8, float16, float32, got 'int8'", dtype="int8")
    fails(frame.drop(columns="sex"), "got no 'sex'")
    fails(frame.iloc[:0], "at least one row")
    with pytest.raises(ValueError, match="at least one subset"):
        cache_subsets({}, TASKS, READ, cache_dir=None, **OPTIONS)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.raises(OSError, match="choose another cache_dir"):
        CachedImages(frame, TASKS, READ, cache_dir=tmp_path / "cache", **OPTIONS)


def test_float16_keeps_a_normalised_pixel_to_1_part_in_2048(frame):
    normalise = Compose([READ, NormalizeIntensityd("image")])
    half, single = (
        CachedImages(frame, TASKS, normalise, cache_dir=None, dtype=dtype, **OPTIONS).__getitems__(range(40))["image"]
        for dtype in ("float16", "float32")
    )
    torch.testing.assert_close(half, single, rtol=2**-11, atol=2**-24)
    assert not torch.equal(half, single)


def test_uint8_keeps_whole_numbers_exactly_and_refuses_others(frame, tmp_path):
    whole = CachedImages(frame, TASKS, READ, cache_dir=tmp_path, dtype="uint8", **OPTIONS)
    single = CachedImages(frame, TASKS, READ, cache_dir=None, dtype="float32", **OPTIONS)
    assert torch.equal(whole.__getitems__(range(40))["image"], single.__getitems__(range(40))["image"])
    assert whole[3]["image"].dtype == torch.float32 and whole.nbytes * 4 == single.nbytes
    for change in (lambda image: image + 0.5, lambda image: image - 300, lambda image: image + 256):
        with pytest.raises(ValueError, match="row 0: .* not whole numbers from 0 to 255.*use dtype 'float16'"):
            CachedImages(
                frame,
                TASKS,
                lambda item, change=change: {"image": change(READ(item)["image"])},
                cache_dir=None,
                dtype="uint8",
                **OPTIONS,
            )


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_as_stored_the_pixels_are_the_same_in_fewer_bytes(frame, dtype):
    data = cache_subsets({"train": frame, "val": frame[::2]}, TASKS, READ, cache_dir=None, dtype=dtype, **OPTIONS)
    served, stored = (select_subset(data, "train", as_stored=as_stored) for as_stored in (False, True))
    rows = [3, 39, 3]
    batch, plain = stored.__getitems__(rows), served.__getitems__(rows)
    assert batch["image"].dtype == stored[3]["image"].dtype == getattr(torch, dtype)
    assert torch.equal(batch["image"].float(), plain["image"]) and torch.equal(
        stored[3]["image"].float(), served[3]["image"]
    )
    assert torch.equal(batch["label"], plain["label"]) and torch.equal(batch["row"], plain["row"])
    # One set only; and a batch is a copy, whatever is done to it.
    assert all(images.__getitems__([0])["image"].dtype == torch.float32 for images in (served, data["val"]))
    batch["image"].zero_()
    assert torch.equal(stored.__getitems__(rows)["image"].float(), plain["image"])
    in_place = select_subset(data, "train", as_stored=True, gather=False).__getitems__(rows)["image"]
    assert len(in_place) == 3 and in_place.to("cpu").dtype == getattr(torch, dtype)
    in_place.to("cpu").zero_()
    assert torch.equal(in_place.to("cpu", torch.float32), plain["image"])


def test_pixels_left_in_place_keep_their_type(frame):
    data = cache_subsets({"train": frame}, TASKS, READ, cache_dir=None, **OPTIONS)
    with pytest.raises(ValueError, match="gather=False needs as_stored=True"):
        select_subset(data, "train", gather=False)


@pytest.mark.parametrize("in_file", [False, True])
def test_in_place_no_pixel_is_copied_and_workers_send_tensors(frame, tmp_path, in_file, recwarn):
    data = cache_subsets({"train": frame}, TASKS, READ, cache_dir=tmp_path if in_file else None, **OPTIONS)
    stored = select_subset(data, "train", as_stored=True, gather=False)
    batches = [stored.__getitems__([5, 0, 5])["image"] for _ in range(2)]
    assert {images.pixels.data_ptr() for images in batches} == {stored.images.ctypes.data}
    assert batches[0].rows.tolist() == stored.rows[[5, 0, 5]].tolist()
    expected = [batch["image"] for batch in DataLoader(data["train"], 16, collate_fn=keep_batch)]
    for workers, kind in ((0, StoredImages), (1, torch.Tensor)):
        loader = DataLoader(stored, 16, collate_fn=keep_batch, num_workers=workers)
        served = [batch["image"] for batch in loader]
        assert all(isinstance(images, kind) for images in served)
        assert all(torch.equal(a.to(torch.float32), b) for a, b in zip(served, expected, strict=True))
    assert not [str(warning.message) for warning in recwarn if "writable" in str(warning.message)]


@pytest.mark.parametrize("in_file", [False, True])
def test_pickled_after_use_it_is_as_small_as_before(frame, tmp_path, in_file):
    data = cache_subsets({"train": frame}, TASKS, READ, cache_dir=tmp_path if in_file else None, **OPTIONS)
    stored = select_subset(data, "train", as_stored=True, gather=False)
    before = len(pickle.dumps(stored))
    image = stored.__getitems__([3])["image"].to("cpu")
    assert len(pickled := pickle.dumps(stored)) == before
    assert torch.equal(pickle.loads(pickled).__getitems__([3])["image"].to("cpu"), image)


def test_a_batch_of_many_chunks_is_that_of_one(frame, monkeypatch):
    data = CachedImages(frame, TASKS, READ, cache_dir=None, **OPTIONS)
    rows = [7, 39, 7, 0, 21, 5, 6]
    whole = data.__getitems__(rows)["image"]
    monkeypatch.setattr(cache, "_CHUNK_BYTES", 3 * 48 * 2)  # three images
    assert torch.equal(data.__getitems__(rows)["image"], whole)
    monkeypatch.setattr(cache, "_CHUNK_BYTES", 1)
    assert torch.equal(data.__getitems__(rows)["image"], whole)


def _serve_with_little_memory(frame, cache_dir, queue):
    size = 256
    torch.set_num_threads(1)
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + 48 * 2**20,) * 2)
    try:
        np.ones(100 * 2**20, dtype=np.uint8)
        queue.put("the limit has no effect")
    except MemoryError:
        ramp = np.arange(size * size, dtype=np.float32).reshape(1, size, size) / size
        data = CachedImages(
            frame,
            TASKS,
            lambda item: {"image": ramp + int(Path(item["image"]).stem)},
            cache_dir=cache_dir,
            **OPTIONS,
        )
        batch = data.__getitems__([799, 3])["image"]
        queue.put((data.nbytes, batch[:, 0, 0, 0].tolist()))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit counts as it does on Linux")
def test_more_images_than_memory(tmp_path):
    """100 MB of images are built and served by a process that may allocate 48 MB."""
    paths = [tmp_path / f"{i}.bin" for i in range(800)]
    for path in paths:
        path.touch()
    frame = pd.DataFrame({"image": list(map(str, paths)), "sick": 0, "sex": 1})
    # A new process: a fork has what its parent freed, which it need not ask the system for.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_serve_with_little_memory, args=(frame, tmp_path / "cache", queue))
    child.start()
    assert queue.get(timeout=120) == (800 * 256 * 256 * 2, [799.0, 3.0])
    child.join()


def _exit_in_worker(item):
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return READ(item)


def test_a_killed_worker_is_reported(frame):
    with pytest.raises(RuntimeError, match="a worker was killed while caching images"):
        CachedImages(frame, TASKS, _exit_in_worker, cache_dir=None, **{**OPTIONS, "num_workers": 2})


@pytest.mark.parametrize(
    ("in_memory", "available", "place"),
    [
        (True, 10, ", in memory"),
        (False, 10**9, ", served from memory: the system keeps .*npy in the 1.0 GB available"),
        (False, 10, ", served from the disk: .*npy is larger than the 0.0 GB"),
        (False, None, ", mapped from .*npy"),
    ],
)
def test_the_log_says_where_the_images_are(frame, tmp_path, monkeypatch, caplog, in_memory, available, place):
    monkeypatch.setattr(cache, "available_memory", lambda: available)
    monkeypatch.setattr(logging.getLogger("monai_mimmx"), "propagate", True)
    with caplog.at_level(logging.INFO, "monai_mimmx"):
        CachedImages(frame, TASKS, READ, cache_dir=None if in_memory else tmp_path / "cache", **OPTIONS)
    (line,) = caplog.messages
    assert re.fullmatch(rf"40 images of 1x6x8 float16, 0.00 GB{place}.*", line)


def test_available_memory_is_plausible():
    available = cache.available_memory()
    assert available is None or 2**20 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picks=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=60), min_size=1, max_size=3), data=st.data())
def test_no_item_gets_pixels_of_another_file(frame, tmp_path, picks, data):
    subsets = {str(number): frame.iloc[rows].reset_index(drop=True) for number, rows in enumerate(picks)}
    cached = cache_subsets(subsets, TASKS, READ, cache_dir=tmp_path / "cache", **OPTIONS)
    for name, subset in subsets.items():
        asked = data.draw(st.lists(st.integers(0, len(subset) - 1), min_size=1, max_size=10))
        batch = cached[name].__getitems__(asked)
        for place, item in enumerate(asked):
            expected = READ({"image": subset["image"][item]})["image"]
            assert torch.equal(batch["image"][place], torch.as_tensor(expected).float())
            assert batch["label"][place].tolist() == subset[TASKS].iloc[item].tolist()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system does not reserve space")
def test_a_disk_that_others_fill_is_told_before_the_first_image(frame, tmp_path, monkeypatch):
    """Its free space was enough when it was asked for; to write through the map would end the process by a signal."""

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    needed = 40 * 8 * 6 * 2
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 2 * needed})())
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="choose another cache_dir"):
        CachedImages(frame, TASKS, READ, cache_dir=tmp_path / "cache", **OPTIONS)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_slice_of_a_folder_that_changes_is_not_served_from_the_cache(tmp_path):
    series, transform = tmp_path / "series", lambda item: {"image": np.load(Path(item["image"]) / "a.npy")}
    series.mkdir()
    frame = pd.DataFrame({"image": [str(series)], "sick": [0], "sex": [0]})
    for step in (1.0, 2.0):
        with (series / "a.npy").open("r+b" if step > 1 else "wb") as file:  # in its place: the folder does not change
            np.save(file, step * np.arange(4.0).reshape(1, 2, 2))
        data = CachedImages(frame, TASKS, transform, cache_dir=tmp_path / "cache", **OPTIONS)
        assert data[0]["image"].flatten().tolist() == [0, step, 2 * step, 3 * step]


@pytest.mark.parametrize("collate", [None, list_data_collate])
def test_a_loader_that_would_collate_a_whole_batch_is_told_what_to_pass(frame, collate):
    data = CachedImages(frame, TASKS, READ, cache_dir=None, **OPTIONS)
    with pytest.raises(TypeError, match="collate_fn=monai_mimmx.data.keep_batch"):
        next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    for workers in (0, 1):
        batch = next(iter(DataLoader(data, batch_size=4, collate_fn=keep_batch, num_workers=workers)))
        assert batch["image"].shape == (4, 1, 6, 8) and dict(batch).keys() == {"image", "label", "row"}
        with pytest.raises(KeyError, match="mask"):
            batch["mask"]
