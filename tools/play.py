"""Make what the site's page Play shows, and the front page's moving picture, from a finished run of the phantom.

    python tools/play.py runs/demo

docs/play/ gets the networks of fold 1 as ONNX, with their numbers in 16 bits: the decoder, the proposed
classifier, and the judge of swaps, which has seen no decoded image. Beside them lie lesions.png and grain.png with a
tile for each lesion, strip.png for readers without the networks, and play.json, which holds the codes and says what
all of it is. nbs/images/mixture.png is an animated PNG.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from liverdis.core import CLASS_COLOURS, InputError, write_atomic
from liverdis.method.data import load_split
from liverdis.method.disentangle import encode
from liverdis.method.mixture import CodeBank
from liverdis.method.sharp import random_phases
from liverdis.study.run import Run, Task
from liverdis.use.export import exportables, halve, to_onnx

ROOT = Path(__file__).resolve().parent.parent
FOLD, PER_CLASS = 1, 6
HALF = {"image": 2e-3, "probabilities": 5e-3}  # what 16 bits may change: half a grey level, half a per cent as shown
GRAIN = 0.25  # the noise that is black or white in grain.png


class Lesions:
    """The first test cases of each class, and the codes that phase 3 would mix for them."""

    def __init__(self, run):
        table, self.classes = run.cases(0), run.settings.classes
        roles, labels = table[f"fold_{FOLD}"], table.label
        test, train = (load_split(run.rois(), labels, roles == role, run.settings) for role in ("test", "train"))
        chosen = torch.cat([(test[1] == k).nonzero()[:PER_CLASS, 0] for k in range(len(self.classes))])
        self.x, self.y = test[0][chosen], test[1][chosen]
        self.ids = table.case_id[roles == "test"].iloc[chosen.numpy()].tolist()
        self.net = run.network(Task(0, FOLD, "disentangle"))
        bank = CodeBank(*encode(self.net.spec_encoder, [train]), len(self.classes))
        self.own = encode(self.net.spec_encoder, [(self.x, self.y)])[0]
        self.c = bank.nearest_per_class(self.own, self.y)
        self.r = encode(self.net.unspec_encoder, [(self.x, self.y)])[0]

    @torch.no_grad()
    def mix(self, i, w):
        """The images `(n,1,S,S)` of r of lesion i and its codes mixed by w `(n,K)`."""
        return self.net.decode(w @ self.c[i], self.r[i].expand(len(w), -1))

    @torch.no_grad()
    def grain(self):
        """The noise that the decoder left out of each lesion, in random phases, `(N,1,S,S)`."""
        return random_phases(self.x - self.net.decode(self.own, self.r), torch.Generator().manual_seed(0))


def tour(order, steps, n_classes):
    """Proportions `(n,K)` on a way from class to class."""
    corners, t = torch.eye(n_classes)[list(order)], torch.linspace(0, 1, steps + 1)[:-1, None]
    return torch.cat([*(torch.lerp(a, b, t) for a, b in zip(corners, corners[1:])), corners[-1:]])


# -- networks ----------------------------------------------------------------------------------------------------------


def networks(run):
    """What the page computes with, by name: decoder, proposed classifier, judge."""
    phase3 = exportables(run, FOLD)
    judge = exportables(run, FOLD, arm="swap_classifier")["classifier"]
    return {"decoder": phase3["decoder"], "proposed": phase3["classifier"], "judge": judge}


def inputs_for(name, lesions):
    """Codes for the decoder, images for a classifier; the two kinds that the page has."""
    return {"c": lesions.own, "r": lesions.r} if name == "decoder" else {"image": lesions.x}


@torch.no_grad()
def write_network(exportable, examples, path):
    """Write a network in 16 bits; returns how far its last output is from torch's. `InputError` if that is too far."""
    path.write_bytes(halve(to_onnx(exportable)).SerializeToString())
    ours, session = exportable.net(*examples.values()), onnxruntime.InferenceSession(path)
    theirs = session.run(None, {name: x.numpy() for name, x in examples.items()})[-1]
    off = float(np.abs((ours[-1] if isinstance(ours, tuple) else ours).numpy() - theirs).max())
    limit = HALF[exportable.outputs[-1]]
    if off > limit:
        raise InputError(
            f"{path.name}: 16 bits change it by {off:.1e}, more than {limit}; store all bits in tools/play.py"
        )
    return off


# -- pictures ----------------------------------------------------------------------------------------------------------


def grey(images):
    """Images `(...,H,W)` in [0, 1] in 8 bits."""
    return (255 * images.clamp(0, 1)).round().byte().numpy()


def write_tiles(images, path):
    """Images `(n,1,S,S)` in a row."""
    Image.fromarray(np.hstack(list(grey(images[:, 0])))).save(path, optimize=True)


def draw_row(picture, images, top, side, gap):
    for i, image in enumerate(grey(images[:, 0])):
        picture.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (i * (side + gap), top))


def draw_shares(picture, w, classes, top, high):
    """A bar over the whole width, divided by w, and under it the names of the classes."""
    draw, ends = ImageDraw.Draw(picture), [0, *(picture.width * w.cumsum(0)).round().int().tolist()]
    for k, (name, left, right) in enumerate(zip(classes, ends, ends[1:])):
        colour, x, y = CLASS_COLOURS[name], k * picture.width // len(classes), top + high + 8
        if right > left:
            draw.rectangle((left, top, right - 1, top + high - 1), fill=colour)
        draw.rectangle((x, y + 3, x + 11, y + 14), fill=colour)
        draw.text((x + 17, y), f"{name} {round(100 * w[k].item())} %", "black", ImageFont.load_default(15))


def moving(lesions, side=150, gap=8, steps=10, rest=5):
    """The frames of the moving picture: a lesion of each class above, and below it as it goes from class to class."""
    n = len(lesions.classes)
    rows = [int((lesions.y == k).nonzero()[0]) for k in range(n)]
    w = tour([*range(n), 0], steps, n)[:-1]
    w = w.repeat_interleave(torch.tensor([rest if i % steps == 0 else 1 for i in range(len(w))]), 0)
    for shares, decoded in zip(w, torch.stack([lesions.mix(i, w) for i in rows], 1)):
        picture = Image.new("RGB", (n * side + (n - 1) * gap, 2 * (side + gap) + 44), "white")
        draw_row(picture, lesions.x[rows], 0, side, gap)
        draw_row(picture, decoded, side + gap, side, gap)
        draw_shares(picture, shares, lesions.classes, 2 * (side + gap) + 4, 14)
        yield picture


def indexed(frame, colours):
    """A picture of 128 greys and some colours, with exactly these as its palette."""
    pixels = np.asarray(frame).astype(int)
    index = (pixels[..., 0] * 127 + 127) // 255
    for k, colour in enumerate(colours):
        index[(pixels == colour).all(-1)] = 128 + k
    made = Image.fromarray(index.astype(np.uint8))
    made.putpalette([*np.linspace(0, 255, 128).round().astype(int).repeat(3).tolist(), *sum(colours, ())])
    return made


def write_moving(frames, path, classes, ms=90):
    """An animated PNG that goes round twice, with one palette for all, so that only what moves is stored again."""
    colours = [ImageColor.getrgb(CLASS_COLOURS[name]) for name in classes]
    first, *rest = (indexed(frame, colours) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=ms, loop=2, optimize=True)


# -- what it is --------------------------------------------------------------------------------------------------------


def short(values):
    """Nested lists of numbers with five digits."""
    return [short(v) for v in values] if isinstance(values, list) else float(f"{values:.5g}")


@torch.no_grad()
def followed(lesions, judge):
    """What the judge sees of the class asked for, `(N,K)`, in each lesion with the code of each class alone."""
    alone = torch.eye(len(lesions.classes))
    return torch.stack([judge.net(lesions.mix(i, alone))[1].diagonal() for i in range(len(lesions.y))])


@torch.no_grad()
def strip(lesions, nets, row, steps=4):
    """The images on a way through the classes with one r, and for each the proportions and what the classifiers see."""
    w = tour(range(len(lesions.classes)), steps, len(lesions.classes))
    images = lesions.mix(row, w)
    seen = {name: nets[name].net(images)[1] for name in ("proposed", "judge")}
    return images, {"of": row, "asked": short(w.tolist()), **{name: short(p.tolist()) for name, p in seen.items()}}


def about(run):
    """Which run it is, and how good its networks are on the test cases of the fold."""
    record = lambda kind: run.record(Task(0, FOLD, kind))
    measured = ("swap_to_code", "swap_to_image", "swap_classifier_accuracy", "r_sensitivity", "probe_r_accuracy")
    return {
        "run": {k: run.info[k] for k in ("preset", "data", "data_checksum", "seed", "git_revision", "versions")},
        "fold": FOLD,
        "measures": {
            "n_test": int((run.cases(0)[f"fold_{FOLD}"] == "test").sum()),
            "proposed_accuracy": record("proposed")["test"]["accuracy"],
            "majority_accuracy": record("measure")["majority_accuracy"],
            **{k: record("measure")[k] for k in measured},
        },
    }


def main(folder):
    run, out = Run(folder), ROOT / "docs/play"
    if run.info.get("data") != "phantom":
        raise InputError(f"{folder}: is not a run of the phantom; the site shows no pictures of patients")
    out.mkdir(parents=True, exist_ok=True)
    lesions, nets = Lesions(run), networks(run)
    off = {n: write_network(e, inputs_for(n, lesions), out / f"{n}.onnx") for n, e in nets.items()}
    follows = followed(lesions, nets["judge"])
    images, shown = strip(lesions, nets, row=int(follows.mean(1).argmax()))
    for name, tiles in {"lesions": lesions.x, "grain": lesions.grain() / (2 * GRAIN) + 0.5, "strip": images}.items():
        write_tiles(tiles, out / f"{name}.png")
    facts = {
        **about(run),
        "off_by": {n: float(f"{v:.1e}") for n, v in off.items()},
        "classes": {name: CLASS_COLOURS[name] for name in lesions.classes},
        "size": run.settings.roi_size,
        "grain": GRAIN,
        "cases": [{"id": i, "class": k} for i, k in zip(lesions.ids, lesions.y.tolist())],
        "strip": shown,
        "followed": dict(zip(lesions.classes, short(follows.mean(0).tolist()))),
        "r": short(lesions.r.tolist()),
        "c": short(lesions.c.tolist()),
    }
    write_atomic(out / "play.json", json.dumps(facts, separators=(",", ":")))
    write_moving(moving(lesions), ROOT / "nbs/images/mixture.png", lesions.classes)
    for path in [*sorted(out.iterdir()), ROOT / "nbs/images/mixture.png"]:
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2] or ["runs/demo"])
    except InputError as e:
        sys.exit(f"play: {e}")
