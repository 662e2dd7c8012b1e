# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
What holds for every test: a process of pytest-xdist, and whatever it starts, computes on one thread, as tests share the
processors; and every test draws the same random numbers each time, whichever tests ran before it.
"""

import multiprocessing
import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Children of a process that has imported all this and computed nothing: they start at once, and no thread is torn.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["monai.bundle", "monai_mimmx", "tensorboard", "matplotlib.pyplot", "sklearn.manifold"]
)


@pytest.fixture(autouse=True)
def same_random_numbers():
    import torch  # here, as the process that hands out tests needs none

    torch.manual_seed(0)


def _write_dicom(path, photometric, values, **tags):
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PhotometricInterpretation = "DX", photometric
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = values.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if int(pydicom.__version__.split(".")[0]) >= 3:
        data.save_as(path, enforce_file_format=True)
    else:
        data.is_little_endian, data.is_implicit_VR = True, False
        data.save_as(path, write_like_original=False)


@pytest.fixture
def write_dicom():
    """Write a DICOM file: path, photometric interpretation, pixels `(rows, columns)`, and other tags."""
    return _write_dicom


@pytest.fixture
def interruptible():
    """What is started here heeds an interrupt, though these tests may run in the background of a script, which does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
