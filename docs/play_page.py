"""Make the page Play from docs/play.md and docs/play, which tools/play.py writes from a run.

Readers see one lesion on its way through the classes, a picture a stop, without any script. docs/static/play.js puts a
button above it, which loads the networks and takes the place of the pictures.
"""

import json
import re
import shutil
from html import escape

from notebooks import ROOT
from runtime import runtime_or_note

DATA = ROOT / "docs/play"


def percent(share):
    return f"{100 * share:.0f} %"


def in_words(shares, classes):
    "The shares that are not 0, as in `75 % cyst, 25 % metastasis`"
    return ", ".join(f"{percent(p)} {name}" for p, name in zip(shares, classes) if p >= 0.005)


def styled(classes):
    return [f"--colour: {colour}" for colour in classes.values()]


def stop(i, facts):
    "One picture of the strip, with what was asked for and what the classifiers see"
    strip, classes = facts["strip"], facts["classes"]
    asked, views, n = strip["asked"][i], (strip["proposed"][i], strip["judge"][i]), len(strip["asked"])
    rows = "".join(
        f'<tr><th scope="row" style="{style}">{escape(name)}</th>'
        + "".join(f"<td>{percent(p)}</td>" for p in (share, *seen)) + "</tr>"
        for name, style, share, *seen in zip(classes, styled(classes), asked, *views)
    )  # fmt: skip
    bar = "".join(f'<i style="{style}; --share: {share}"></i>' for style, share in zip(styled(classes), asked))
    words = in_words(asked, classes)
    return f"""<input type="radio" name="stop" aria-label="{words}"{" checked" if i == 0 else ""}>
<div class="stop"><div class="bar" aria-hidden="true">{bar}</div>
<img class="tile" src="play/strip.png" alt="decoded image: {words}" style="object-position: {100 * i / (n - 1):.3f}% 0">
<table><thead><tr><th scope="col">class</th><th scope="col">asked</th><th scope="col">proposed sees</th>
<th scope="col">swap classifier sees</th></tr></thead><tbody>{rows}</tbody></table></div>"""


def widget(facts, megabytes):
    "The strip, and what play.js needs to know to put the networks in its place"
    n, who = len(facts["strip"]["asked"]), facts["cases"][facts["strip"]["of"]]
    name = list(facts["classes"])[who["class"]]
    loads = f' data-megabytes="{megabytes}"' if megabytes else ""
    note = (
        ""
        if megabytes
        else "<p><em>This copy of the site was built without the networks; it shows pictures of them.</em></p>"
    )
    stops = "\n".join(stop(i, facts) for i in range(n))
    return f"""```{{raw}} html
<link rel="stylesheet" href="_static/play.css">
<div class="play"{loads}>{note}
<fieldset class="play-strip"><legend>One case on its way through the classes: the {name} case {who["id"]},
in which the swap classifier follows best</legend>
<div class="stops" style="--n: {n}">
{stops}
</div></fieldset></div>
<script type="module" src="_static/play.js"></script>
```"""


def texts(facts):
    "What stands in double braces in play.md, but the widget"
    measures, off = facts["measures"], facts["off_by"]
    shares = {k: percent(v) for k, v in measures.items() if k != "n_test"}
    changed = {"off_decoder": off["decoder"], "off_classifiers": max(off["proposed"], off["judge"])}
    return {
        **{k: f"{v:.2g}" for k, v in changed.items()},
        **shares,
        "followed": ", ".join(f"{percent(p)} for {name}" for name, p in facts["followed"].items()),
        "n_test": str(measures["n_test"]),
        "fold": str(facts["fold"]),
        "preset": facts["run"]["preset"],
    }


def write_play(dest, text):
    "The page, and in extra/play what it loads"
    facts, target = json.loads((DATA / "play.json").read_text(encoding="utf-8")), dest / "extra/play"
    shutil.copytree(DATA, target)
    loaded = runtime_or_note()
    for path in loaded:
        shutil.copy(path, target)
    megabytes = round(sum(p.stat().st_size for p in target.iterdir()) / 1e6) if loaded else 0
    body = text((ROOT / "docs/play.md").read_text(encoding="utf-8"))
    given = {**texts(facts), "widget": widget(facts, megabytes)}
    (dest / "play.md").write_text(re.sub(r"\{\{(\w+)\}\}", lambda m: given[m[1]], body), encoding="utf-8")
