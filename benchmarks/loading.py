"""One epoch of augmented batches from five loaders, in turn."""

import math
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import torch
from pydicom.data import get_testdata_file

from liverdis.cohort.roi import RoiFile
from liverdis.core import CLASSES
from liverdis.method.data import RandomAffine, dataloaders, load_split
from liverdis.method.learner import keep_memory
from liverdis.settings import Settings, preset

from .timing import in_turn, noise_rois, one_thread, seconds_of

Loader = Callable[[], Iterable[Any]]  # a new epoch


def plain_loader(
    hu: np.ndarray,  # (N,1,S,S)
    labels: np.ndarray,
    train: np.ndarray,  # bool (N,)
    s: Settings,
) -> Loader:
    """Index a tensor and transform the batch with torch, by hand."""
    images, targets = load_split(hu, labels, train, s)
    augment = RandomAffine(s.max_scale, s.max_rotation, s.max_translation)

    def epoch():
        return ((augment.transform(images[i]), targets[i]) for i in torch.randperm(len(images)).split(s.batch_size))

    return epoch


def fastai_loader(
    folder: Path,  # to write the files to
    hu: np.ndarray,  # (N,1,S,S)
    labels: np.ndarray,
    s: Settings,
) -> Loader:
    """fastai's own way: a `DataBlock` over DICOM files and `aug_transforms` on the batch."""
    from fastai.medical.imaging import PILDicom
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, aug_transforms

    _write_dicom(folder, hu, labels)
    no_change = {"do_flip": False, "max_lighting": 0, "max_warp": 0}
    affine = aug_transforms(max_rotate=s.max_rotation, max_zoom=1 + s.max_scale, p_affine=1, **no_change)
    block = DataBlock(
        (ImageBlock(PILDicom), CategoryBlock),
        get_items=lambda p: sorted(Path(p).glob("*.dcm")),
        get_y=lambda f: f.stem.split("-")[1],
        splitter=lambda f: (range(len(f)), []),
        batch_tfms=affine,
    )
    train = block.dataloaders(folder, bs=s.batch_size, num_workers=0).train
    return lambda: train


def _write_dicom(folder, hu, labels):
    for k, (pixels, label) in enumerate(zip(hu[:, 0], labels)):
        ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        ds.set_pixel_data(np.clip(pixels + 1024, 0, 4095).astype(np.uint16), "MONOCHROME2", 12)
        ds.save_as(folder / f"{k}-{label}.dcm")


def monai_loader(
    hu: np.ndarray,  # (N,1,S,S)
    labels: np.ndarray,
    s: Settings,
) -> Loader:
    """MONAI: a `CacheDataset` with windowing in the cached part, `RandAffine` an item, in MONAI's `DataLoader`."""
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, RandAffined, ScaleIntensityRanged

    low, shift = s.window_centre - s.window_width / 2, s.max_translation * s.roi_size
    affine = RandAffined(
        "image",
        prob=1,
        rotate_range=math.radians(s.max_rotation),
        translate_range=(shift, shift),
        scale_range=(s.max_scale, s.max_scale),
        padding_mode="reflection",
    )
    steps = Compose([ScaleIntensityRanged("image", low, low + s.window_width, 0, 1, clip=True), affine])
    items = [{"image": torch.from_numpy(roi), "label": CLASSES.index(label)} for roi, label in zip(hu, labels)]
    cached = CacheDataset(items, steps, progress=False)
    loader = DataLoader(cached, batch_size=s.batch_size, shuffle=True, num_workers=0)
    return lambda: loader


def all_loaders(
    folder: Path,  # for files
    hu: np.ndarray,  # (N,1,S,S)
    labels: np.ndarray,
    s: Settings,
) -> dict[str, Loader]:
    """The five loaders over the same regions; ours keep four for validation."""
    roles = np.where(np.arange(len(hu)) < len(hu) - 4, "train", "valid")
    np.save(folder / "rois.npy", hu)
    in_memory = dataloaders(hu, labels, roles, s).train
    from_file = dataloaders(RoiFile(folder / "rois.npy"), labels, roles, s, on_device=False).train
    return {
        "plain": plain_loader(hu, labels, roles == "train", s),
        "in memory": lambda: in_memory,
        "from file": lambda: from_file,
        "PILDicom": fastai_loader(folder, hu, labels, s),
        "MONAI": monai_loader(hu, labels, s),
    }


def count_images(loader: Loader) -> int:
    """Go through an epoch and count its images."""
    return sum(len(b["label"] if isinstance(b, dict) else b[1]) for b in loader())


def bench_loading(
    n: int = 512,  # regions of 128x128
    rounds: int = 5,
) -> pd.DataFrame:  # round, what, seconds (an epoch), images
    """One epoch of augmented batches from five loaders, in turn: no worker processes, one thread."""
    one_thread()
    keep_memory()
    s, (hu, labels) = preset("paper", views=1), noise_rois(n, 128)
    with tempfile.TemporaryDirectory() as tmp:
        loaders = all_loaders(Path(tmp), hu, labels, s)
        images = {what: count_images(loader) for what, loader in loaders.items()}
        ways = {what: partial(seconds_of, partial(count_images, f)) for what, f in loaders.items()}
        rows = [
            {"round": k, "what": what, "images": images[what], "seconds": s} for k, what, s in in_turn(ways, rounds)
        ]
    return pd.DataFrame(rows)


def loading_rates(
    table: pd.DataFrame,  # of `bench_loading`
) -> pd.DataFrame:  # one row a loader
    """Images a second, and as a share of what images in memory give in the same round: median and range."""
    rate = (table.images / table.seconds).groupby([table["round"], table.what]).first().unstack()
    share = rate.div(rate["in memory"], axis=0)
    return pd.DataFrame(
        {
            "images/s": rate.median().map("{:.3g}".format),
            "relative to memory": share.median().round(3),
            "from": share.min().round(3),
            "to": share.max().round(3),
        }
    )
