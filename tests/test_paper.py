"The audit's search against a second, slower way to the same answer: decimals printed as text, no shared code."

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import pytest

from liverdis.study.paper import CORRECT, TABLE2, search

MODES = {'rounded': (ROUND_HALF_UP, ROUND_HALF_EVEN), 'truncated': (ROUND_DOWN,)}
MODES['either'] = MODES['rounded'] + MODES['truncated']
CASES = 239


def prints(modes):
    "{printed text: {size: [correct, ...]}} for the six values."
    wanted = {str(v) for v in TABLE2.values.ravel()}
    out = {w: {} for w in wanted}
    for n in range(1, CASES - 1):
        for k in range(n + 1):
            for text in {str((Decimal(100 * k) / n).quantize(Decimal('.1'), m)) for m in modes} & wanted:
                out[text].setdefault(n, []).append(k)
    return out


def all_right(fits, total):
    "Counts of three folds that print as wanted and add up to `total`."
    x, y, z = fits
    return [(i, j, total - i - j) for i in x for j in y if total - i - j in z]


def one_wrong(fits, sizes, total, fold):
    "Counts that add up to `total`, where two folds print as wanted and `fold` (from 0) does not."
    first, second = [f for f in range(3) if f != fold]
    found = []
    for i in fits[first]:
        for j in fits[second]:
            rest = total - i - j
            if rest not in fits[fold] and 0 <= rest <= sizes[fold]:
                counts = {first: i, second: j, fold: rest}
                found.append(tuple(counts[f] for f in range(3)))
    return found


def counts_of_arm(fits, sizes, total):
    "(counts, wrong fold from 1 or None) with at most one fold wrong."
    right = [(counts, None) for counts in all_right(fits, total)]
    return right + [(counts, fold + 1) for fold in range(3) for counts in one_wrong(fits, sizes, total, fold)]


def solutions(modes):
    "(sizes, baseline, proposed, wrong arm, wrong fold) with at most one of the six values wrong."
    can, found = prints(modes), set()
    for a in range(1, CASES - 1):
        for b in range(1, CASES - a):
            sizes = a, b, CASES - a - b
            fits = {arm: [can[str(v)].get(n, []) for v, n in zip(TABLE2[arm], sizes)] for arm in TABLE2}
            if sum(not counts for arm in fits.values() for counts in arm) > 1:
                continue  # two values that no count of such a fold can print
            baseline, proposed = (counts_of_arm(fits[arm], sizes, CORRECT[arm]) for arm in ('baseline', 'proposed'))
            for k1, wrong1 in baseline:
                for k2, wrong2 in proposed:
                    if wrong1 is None or wrong2 is None:
                        arm = 'baseline' if wrong1 else 'proposed' if wrong2 else None
                        found.add((sizes, k1, k2, arm, wrong1 or wrong2))
    return found


@pytest.mark.parametrize('rule', MODES)
def test_one_wrong_value(rule):
    found, ours = solutions(MODES[rule]), search(rule, 1)
    assert not [f for f in found if f[3] is None] and search(rule, 0).empty
    assert set(zip(ours.sizes, ours.baseline, ours.proposed, ours.arm, ours.fold)) == found
