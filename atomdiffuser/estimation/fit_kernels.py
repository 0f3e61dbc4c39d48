"""The loops in which the joint fit spends its time, over arrays; `compiled_fit` gives them what they need.

Cells lie in rows, (Y', X') for each of n fits, several of which may be of one pair of frames. Decay fields are bilinear
between G × G nodes: a cell's row has a lower node and a share of the way to the next one, and so has its column. Sums
of images against products of hat functions, or of these and linear functions, are sums of polynomials of second order
between two nodes: moments are collected between nodes, the sums put together from them.

Loops run over parts of arrays from zero: where one begins elsewhere, each number might count from the end, and is
looked at one by one.
"""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32
ONE, HALF = F(1), F(0.5)
BLOCK = 2**13  # cells that are looked at between two passes over them, so that they stay in the cache
LEAST_PIVOT = 1e-12  # of a matrix' diagonal
MOTION, CROSS, FIELD = 4, 4, 3  # images: of the motion, and of the noise in it; motion and fields; fields


@inner
def linear_at(image, y, x):
    """Bilinear value, zero outside."""
    height, width = image.shape
    iy, ix = int(np.floor(y)), int(np.floor(x))
    ty, tx = F(y - iy), F(x - ix)
    total = F(0)
    for k in range(2):
        for m in range(2):
            row, column = iy + k, ix + m
            if 0 <= row < height and 0 <= column < width:
                total += (ty if k else ONE - ty) * (tx if m else ONE - tx) * image[row, column]
    return total


@compiled
def residuals(
    first, last, of, affine, rows, columns, row_node, row_share, column_node, column_share, nodes, structure,
    base_variance, per_count, readout, frame, margin, rim, moving_known, reference_known, warped, residual, contrast,
    variance, inside, total,
):  # fmt: skip
    """Rows `first` to `last` of what n fits are made of, from `warped` moving frames, and their summed variances.

    `of` (n,) says which of m pairs of frames each is of. `frame` is the moving frames' size; with `rim`, cells outside
    it less a margin do not count. `moving_known` (m, Y, X), `reference_known` (m, Y', X') and `inside` (n, Y', X') may
    be empty, where all is known, or inside.
    """
    n, width = warped.shape[0], warped.shape[2]
    count = nodes.shape[2]
    step = max(1, BLOCK // width)
    mean, lines = np.empty((step, width), F), np.empty((2, count, width), F)
    for p in range(n):
        a, pair = affine[p], of[p]
        for kind in range(2):
            for g in range(count):
                spread_nodes(nodes[p, kind, g], column_node, column_share, lines[kind, g])
        for start in range(first, last, step):
            end = min(start + step, last)
            for i in range(start, end):
                g, t = row_node[i], row_share[i]
                blend(lines[0, g], lines[0, g + 1], t, mean[i - start])
                blend(lines[1, g], lines[1, g + 1], t, contrast[p, i])
                if inside.size:
                    line = inside[p, i]
                    for j in range(width):
                        line[j] = reference_known[pair, i, j] if reference_known.size else ONE
                    y0, x0 = a[0, 0] * rows[i] + a[0, 2], a[1, 0] * rows[i] + a[1, 2]
                    if rim:
                        mask_outside(line, y0, a[0, 1], x0, a[1, 1], columns, frame, margin)
                    if moving_known.size:
                        mask_unknown(line, y0, a[0, 1], x0, a[1, 1], columns, moving_known[pair])
            model(
                mean[: end - start].reshape(-1), contrast[p, start:end].reshape(-1),
                structure[pair, 0, start:end].reshape(-1), structure[pair, 1, start:end].reshape(-1),
                base_variance[pair, start:end].reshape(-1), per_count, readout, warped[p, start:end].reshape(-1),
                residual[p, start:end].reshape(-1), variance[p, start:end].reshape(-1),
            )  # fmt: skip
            if inside.size:
                total[p] += sum_of_product(inside[p, start:end].reshape(-1), variance[p, start:end].reshape(-1))
            else:
                total[p] += sum_of(variance[p, start:end].reshape(-1))


@inner
def spread_nodes(nodes, column_node, column_share, line):
    """Linear between the nodes of a row."""
    for j in range(len(line)):
        k = np.uint32(column_node[j])
        line[j] = nodes[k] + column_share[j] * (nodes[k + np.uint32(1)] - nodes[k])


@inner
def blend(lower, upper, share, line):
    """`share` of the way from one row to the other."""
    for j in range(len(line)):
        line[j] = lower[j] + share * (upper[j] - lower[j])


@inner
def model(mean, contrast, base, lattice, base_variance, per_count, readout, warped, residual, variance):
    """Residuals and variances; `mean` becomes intensity·base."""
    for j in range(len(mean)):
        mean[j] *= base[j]
    for j in range(len(mean)):
        residual[j] = warped[j] - mean[j] - contrast[j] * lattice[j]
    for j in range(len(mean)):
        variance[j] = mean[j] * per_count + readout + contrast[j] * contrast[j] * base_variance[j]


@inner
def sum_of(line):
    """Σ line."""
    total = 0.0
    for j in range(len(line)):
        total += line[j]
    return total


@inner
def sum_of_product(one, other):
    """Σ one·other."""
    total = 0.0
    for j in range(len(one)):
        total += one[j] * other[j]
    return total


@inner
def mask_outside(known, y0, dy, x0, dx, columns, frame, margin):
    """Zero where a row's cells lie outside the moving frame less its margin."""
    bottom, right = F(frame[0] - 1 - margin), F(frame[1] - 1 - margin)
    low = F(margin)
    for j in range(len(known)):
        y, x = F(y0 + dy * columns[j]), F(x0 + dx * columns[j])
        if not (y >= low and y <= bottom and x >= low and x <= right):
            known[j] = F(0)


@inner
def mask_unknown(known, y0, dy, x0, dx, columns, moving_known):
    """Zero where a row's cells look at what is not known of the moving frame."""
    for j in range(len(known)):
        if not linear_at(moving_known, y0 + dy * columns[j], x0 + dx * columns[j]) > F(0.99):
            known[j] = F(0)


@compiled
def weights(first, last, lowest, misfit, inside, precision, weight):
    """Rows of inverse variances, from variances in `precision`, which are bounded from below pair by pair, and of
    weights, which count `misfit` and what is not `inside`; either may be empty, and with both `weight` is not written.
    """
    for p in range(precision.shape[0]):
        low, inverse, own = lowest[p], precision[p, first:last].reshape(-1), weight[p, first:last].reshape(-1)
        for j in range(len(inverse)):
            inverse[j] = ONE / max(inverse[j], low)
        if misfit.size:
            more = misfit[p, first:last].reshape(-1)
            for j in range(len(inverse)):
                own[j] = inverse[j] / more[j]
        if inside.size:
            known, whole = inside[p, first:last].reshape(-1), own if misfit.size else inverse
            for j in range(len(inverse)):
                own[j] = whole[j] * known[j]


@inner
def add_product(one, other, shares, sums):
    """Add the product of two lines times three shares to `sums` (3, X')."""
    first, second, third = sums[0], sums[1], sums[2]
    a, b, c = shares[0], shares[1], shares[2]
    for j in range(len(one)):
        value = one[j] * other[j]
        first[j] += a * value
        second[j] += b * value
        third[j] += c * value


@compiled
def along_columns(powers, column_start, column_hats, moments):
    """`moments` (…, G − 1, 3): sums of the lines of `powers` (…, X') between two nodes, times the products of two hat
    functions in `column_hats` (X', 3).
    """
    lines, sums = powers.reshape(-1, powers.shape[-1]), moments.reshape(-1, len(column_start) - 1, 3)
    lower, mixed, upper = column_hats[:, 0].copy(), column_hats[:, 1].copy(), column_hats[:, 2].copy()
    for i in range(len(lines)):
        for h in range(len(column_start) - 1):
            first, last = column_start[h], column_start[h + 1]
            line, both_lower = lines[i, first:last], lower[first:last]
            one_of_each, both_upper = mixed[first:last], upper[first:last]
            one, two, three = 0.0, 0.0, 0.0
            for j in range(len(line)):
                one += both_lower[j] * line[j]
                two += one_of_each[j] * line[j]
                three += both_upper[j] * line[j]
            sums[i, h, 0], sums[i, h, 1], sums[i, h, 2] = one, two, three


@compiled
def put_together(moments, low_y, step_y, low_x, step_x, cross, band):
    """`cross` (n, 6, 2G²) and `band` (n, 2G², w), the lower band of the fields' matrix, from `moments`
    (n, G − 1, 7, 3, G − 1, 3) between nodes: images of motion and fields, then of fields, times products of two hat
    functions along y and x: both of the lower node, one of each, both of the upper one.
    """
    n, count = moments.shape[0], moments.shape[1] + 1
    nodes = np.empty((4, 3))  # of an interval: (lower, upper) along y × x, times u, v, 1
    for p in range(n):
        for g in range(count - 1):
            for h in range(count - 1):
                below, above = 2 * (g * count + h), 2 * ((g + 1) * count + h)
                for c in range(CROSS + FIELD):
                    m0, m1, m2 = moments[p, g, c, 0, h], moments[p, g, c, 1, h], moments[p, g, c, 2, h]
                    if c < CROSS:
                        by_node(nodes, m0, m1, m2, low_y[g], step_y, low_x[h], step_x)
                        row, kind = 3 * (c // 2), c % 2
                        for k in range(3):
                            cross[p, row + k, below + kind] -= nodes[0, k]
                            cross[p, row + k, below + 2 + kind] -= nodes[1, k]
                            cross[p, row + k, above + kind] -= nodes[2, k]
                            cross[p, row + k, above + 2 + kind] -= nodes[3, k]
                    else:
                        for one in range(4):
                            first = (above if one // 2 else below) + 2 * (one % 2)
                            for other in range(4):
                                second = (above if other // 2 else below) + 2 * (other % 2)
                                value = moments[p, g, c, one // 2 + other // 2, h, one % 2 + other % 2]
                                add_products(band[p], first, second, c - CROSS, value)


@inner
def by_node(nodes, m0, m1, m2, u0, du, v0, dv):
    """Sums times the hat functions of an interval's four nodes and u, v, 1, from those times products of two hat
    functions; u is u0 + du times the upper node's.
    """
    for b in range(2):  # the lower node along y, then the upper one
        z0, z1, z2 = (
            (m1[0] + m2[0], m1[1] + m2[1], m1[2] + m2[2]) if b else (m0[0] + m1[0], m0[1] + m1[1], m0[2] + m1[2])
        )
        r0, r1, r2 = (m2[0], m2[1], m2[2]) if b else (m1[0], m1[1], m1[2])
        low, up = 2 * b, 2 * b + 1
        nodes[low, 0] = u0 * (z0 + z1) + du * (r0 + r1)
        nodes[up, 0] = u0 * (z1 + z2) + du * (r1 + r2)
        nodes[low, 1], nodes[up, 1] = v0 * (z0 + z1) + dv * z1, v0 * (z1 + z2) + dv * z2
        nodes[low, 2], nodes[up, 2] = z0 + z1, z1 + z2


@inner
def add_products(band, one, other, kind, value):
    """Products of fields at two nodes, whose means are numbers `one` and `other`, in the lower band: row i holds
    columns i − w + 1 to i.
    """
    last = band.shape[1] - 1
    if kind == 0 and one >= other:
        band[one, last + other - one] += value
    elif kind == 2 and one >= other:
        band[one + 1, last + other - one] += value
    elif kind == 1:
        if one + 1 >= other:
            band[one + 1, last + other - one - 1] += value
        if one > other:
            band[one, last + other + 1 - one] += value


@compiled
def normal_sums(
    of, weight, contrast, slopes, clean, structure, share, per_count, readout, floor, row_start, row_hats, rows_u,
    whole, powers,
):  # fmt: skip
    """Sums over rows for n normal matrices, of the pairs of frames `of` (n,): `whole` (n, 4, 3, X'), images yy, yx, xx
    of the motion and the noise's own times 1, u, u², and `powers` (n, G − 1, 7, 3, X'), those of motion and fields and
    of the fields times products of two hat functions; `rows_u` (Y', 3) and `row_hats` (Y', 3) hold both.

    Sums between two nodes are kept as precisely as the images are given.
    """
    n, width = weight.shape[0], weight.shape[2]
    twice, weighted, down, along = np.empty(width, F), np.empty(width, F), np.empty(width, F), np.empty(width, F)
    every, one, motion = share.shape[1] * share.shape[2] > 1, np.ones(width, F), np.empty((MOTION, 3, width), F)
    for p in range(n):
        q = of[p]
        for g in range(len(row_start) - 1):
            motion[:] = F(0)
            fields = powers[p, g]
            for i in range(row_start[g], row_start[g + 1]):
                w, kappa, base, lattice = weight[p, i], contrast[p, i], structure[q, 0, i], structure[q, 1, i]
                clean_y, clean_x = clean[q, 0, i], clean[q, 1, i]
                times(w, kappa, weighted)
                times(weighted, kappa, twice)
                times(twice, slopes[q, 0, i], down)
                times(twice, slopes[q, 1, i], along)
                add_product(down, clean_y, rows_u[i], motion[0])
                add_product(along, clean_x, rows_u[i], motion[2])
                for j in range(width):
                    down[j] = (down[j] * clean_x[j] + along[j] * clean_y[j]) * HALF
                if every:
                    times(twice, share[q, i], twice)
                else:
                    for j in range(width):
                        twice[j] *= share[q, 0, 0]
                for j in range(width):
                    along[j] = max(readout + per_count * max(base[j] + lattice[j], F(0)), floor)
                add_product(twice, along, rows_u[i], motion[3])
                add_product(one, down, rows_u[i], motion[1])
                times(weighted, clean_y, down)
                times(weighted, clean_x, along)
                add_product(down, base, row_hats[i], fields[0])
                add_product(down, lattice, row_hats[i], fields[1])
                add_product(along, base, row_hats[i], fields[2])
                add_product(along, lattice, row_hats[i], fields[3])
                times(w, base, down)
                times(w, lattice, along)
                add_product(down, base, row_hats[i], fields[4])
                add_product(down, lattice, row_hats[i], fields[5])
                add_product(along, lattice, row_hats[i], fields[6])
            add_to(motion.reshape(-1), whole[p].reshape(-1))


@compiled
def noise_images(
    of, weight, contrast, warped, clean, structure, share, misfit, per_count, readout, floor, shared, left, square
):
    """What n fits make of noise of variance 1, `left` (n, 4, Y', X'): of slopes along y and x, mean and lattice; and
    `square` (n, Y', X') of weight times the reference's own variance, which is left out where it is `shared`.
    """
    n, width = weight.shape[0], weight.shape[2]
    own, scaled = np.empty(width, F), np.empty(width, F)
    every = share.shape[1] * share.shape[2] > 1
    for p in range(n):
        q = of[p]
        for i in range(weight.shape[1]):
            w, kappa, base, lattice = weight[p, i], contrast[p, i], structure[q, 0, i], structure[q, 1, i]
            if shared:
                own[:] = F(0)
            else:
                for j in range(width):
                    own[j] = max(readout + per_count * max(base[j] + lattice[j], F(0)), floor) * kappa[j] * kappa[j]
                if every:
                    times(own, share[q, i], own)
                else:
                    for j in range(width):
                        own[j] *= share[q, 0, 0]
            line, of_own = warped[p, i], square[p, i]
            for j in range(width):
                scaled[j] = max(readout + per_count * max(line[j], F(0)), floor) + own[j]
            if misfit.size:
                times(scaled, misfit[p, i], scaled)
            for j in range(width):
                scaled[j] = w[j] * np.sqrt(scaled[j])
            for j in range(width):
                of_own[j] = (w[j] * own[j]) * (w[j] * own[j])
            times(scaled, base, left[p, 2, i])
            times(scaled, lattice, left[p, 3, i])
            times(scaled, kappa, scaled)
            times(scaled, clean[q, 0, i], left[p, 0, i])
            times(scaled, clean[q, 1, i], left[p, 1, i])


@compiled
def product_sums(left, right, own, row_start, row_hats, rows_u, whole, powers):
    """The same sums as `normal_sums`, of products of n pairs of images (n, 4, Y', X') of motion along y and x, mean and
    lattice, and of the noise's `own` (n, Y', X').
    """
    n, width = left.shape[0], left.shape[3]
    one, motion = np.ones(width, F), np.empty((MOTION, 3, width), F)
    for p in range(n):
        for g in range(len(row_start) - 1):
            motion[:] = F(0)
            fields = powers[p, g]
            for i in range(row_start[g], row_start[g + 1]):
                add_product(left[p, 0, i], right[p, 0, i], rows_u[i], motion[0])
                add_product(left[p, 0, i], right[p, 1, i], rows_u[i], motion[1])
                add_product(left[p, 1, i], right[p, 1, i], rows_u[i], motion[2])
                add_product(own[p, i], one, rows_u[i], motion[3])
                for k in range(2):
                    add_product(left[p, k, i], right[p, 2, i], row_hats[i], fields[2 * k])
                    add_product(left[p, k, i], right[p, 3, i], row_hats[i], fields[2 * k + 1])
                add_product(left[p, 2, i], right[p, 2, i], row_hats[i], fields[4])
                add_product(left[p, 2, i], right[p, 3, i], row_hats[i], fields[5])
                add_product(left[p, 3, i], right[p, 3, i], row_hats[i], fields[6])
            add_to(motion.reshape(-1), whole[p].reshape(-1))


@compiled
def right_side(
    of, weight, residual, contrast, clean, structure, row_start, row_share, rows_u, column_start, column_share,
    columns_v, motion, field,
):  # fmt: skip
    """Sums for the right sides of n fits, of the pairs of frames `of` (n,): `motion` (n, 6) over u, v, 1 for either
    direction, and `field` (n, 2G²).
    """
    n, width = weight.shape[0], weight.shape[2]
    weighted = np.empty(width, F)
    slopes, nodes = np.empty((2, 2, width), F), np.empty((2, 2, width), F)
    for p in range(n):
        q = of[p]
        for g in range(len(row_start) - 1):
            if row_start[g] == row_start[g + 1]:
                continue
            slopes[:] = nodes[:] = F(0)  # sums along y and x, times 1 and u; and of mean and lattice, times 1 and share
            for i in range(row_start[g], row_start[g + 1]):
                times(weight[p, i], residual[p, i], weighted)
                add_line(weighted, structure[q, 0, i], row_share[i], nodes[0])
                add_line(weighted, structure[q, 1, i], row_share[i], nodes[1])
                times(weighted, contrast[p, i], weighted)
                add_line(weighted, clean[q, 0, i], rows_u[i], slopes[0])
                add_line(weighted, clean[q, 1, i], rows_u[i], slopes[1])
            add_nodes(nodes, g, column_start, column_share, field[p])
            for c in range(2):
                plain, by_u, by_v, by_one = slopes[c, 0], 0.0, 0.0, 0.0
                for j in range(width):
                    by_one += plain[j]
                    by_v += plain[j] * columns_v[j]
                    by_u += slopes[c, 1, j]
                motion[p, 3 * c] += by_u
                motion[p, 3 * c + 1] += by_v
                motion[p, 3 * c + 2] += by_one


@inner
def times(one, other, product):
    """Product of two lines."""
    for j in range(len(one)):
        product[j] = one[j] * other[j]


@inner
def add_line(one, other, share, sums):
    """Add the product of two lines times 1 and a share to `sums` (2, X')."""
    plain, scaled = sums[0], sums[1]
    for j in range(len(one)):
        value = one[j] * other[j]
        plain[j] += value
        scaled[j] += share * value


@inner
def add_to(line, total):
    """Add a line."""
    for j in range(len(line)):
        total[j] += line[j]


@inner
def add_nodes(sums, g, column_start, column_share, field):
    """Add sums of rows (mean or lattice, times 1 or share, X') between two nodes to those of `field` (2G²)."""
    count = len(column_start)
    for h in range(count - 1):
        below = 2 * (g * count + h)
        above = below + 2 * count
        first, last = column_start[h], column_start[h + 1]
        shares = column_share[first:last]
        for c in range(2):
            low, high, up_low, up_high = 0.0, 0.0, 0.0, 0.0  # the lower node along y, then the upper one
            plain, scaled = sums[c, 0, first:last], sums[c, 1, first:last]
            for j in range(len(shares)):
                share = shares[j]
                upper = np.float64(scaled[j])
                lower = plain[j] - upper
                low += lower - lower * share
                high += lower * share
                up_low += upper - upper * share
                up_high += upper * share
            field[below + c] += low
            field[below + 2 + c] += high
            field[above + c] += up_low
            field[above + 2 + c] += up_high


@compiled
def multiply_band(band, sides, product):
    """Add sides (n, r, N) times symmetric matrices, given by their lower bands (n, N, w), to `product`."""
    n, size, width = band.shape
    for p in range(n):
        for r in range(sides.shape[1]):
            x, out = sides[p, r], product[p, r]
            for i in range(size):
                own, total = x[i], 0.0
                above = out[max(0, i - width + 1) : i]
                before, row = x[i - len(above) : i], band[p, i, width - 1 - len(above) : width - 1]
                for k in range(len(above)):
                    total += row[k] * before[k]
                for k in range(len(above)):
                    above[k] += row[k] * own
                out[i] += total + band[p, i, width - 1] * own


@compiled
def factor_band(band):
    """Cholesky factors of symmetric matrices in place of their lower bands (n, N, w): row i holds columns i − w + 1
    to i. What rounding leaves of a pivot is taken for no less than that.
    """
    n, size, width = band.shape
    column, least = np.empty(width), np.empty(size)
    for p in range(n):
        f = band[p]
        for j in range(size):
            least[j] = LEAST_PIVOT * f[j, width - 1]
        for j in range(size):
            pivot = np.sqrt(max(f[j, width - 1], least[j]))
            f[j, width - 1] = pivot
            below = min(width - 1, size - 1 - j)
            for k in range(1, below + 1):
                column[k] = f[j + k, width - 1 - k] / pivot
                f[j + k, width - 1 - k] = column[k]
            for k in range(1, below + 1):
                row, own, above = f[j + k, width - k :], column[k], column[1 : k + 1]
                for m in range(len(above)):
                    row[m] -= own * above[m]


@compiled
def solve_band(factor, sides):
    """Solve in place for right sides (n, r, N), from the factors' bands (n, N, w)."""
    for p in range(len(factor)):
        for r in range(sides.shape[1]):
            solve_one(factor[p], sides[p, r])


@inner
def solve_one(factor, x):
    """The same for a right side (N,) of one of them."""
    size, width = factor.shape
    for i in range(size):
        before = x[max(0, i - width + 1) : i]
        row = factor[i, width - 1 - len(before) : width - 1]
        total = x[i]
        for k in range(len(before)):
            total -= row[k] * before[k]
        x[i] = total / factor[i, width - 1]
    for i in range(size - 1, -1, -1):
        before = x[max(0, i - width + 1) : i]
        row = factor[i, width - 1 - len(before) : width - 1]
        value = x[i] / factor[i, width - 1]
        x[i] = value
        for k in range(len(before)):
            before[k] -= row[k] * value


@compiled
def solve_steps(regular, gain, cross, factor, motion, field, nodes, prior, px_from_normalised, step, change):
    """Gauss–Newton steps (n, 6) [px] and changes (n, 2, G, G) of the fields' `nodes`, from the right sides `motion`
    (n, 6) and `field` (n, 2G²), which becomes what is left of it.

    `regular` (n, 6, 6) is what is known of the motion, `gain` and `cross` (n, 6, 2G²) as in `NormalMatrix`, and
    `factor` the bands of the fields' Cholesky factors.
    """
    square, x = np.empty((6, 6)), np.empty(6)
    for p in range(len(motion)):
        side, old, new = field[p], nodes[p].reshape(2, -1), change[p].reshape(2, -1)
        for k in range(old.shape[1]):
            for kind in range(2):
                side[2 * k + kind] += prior * (1 - old[kind, k])
        for m in range(6):
            row, known = gain[p, m], 0.0
            for k in range(len(side)):
                known += row[k] * side[k]
            x[m] = -motion[p, m] - known
            for other in range(6):
                square[m, other] = regular[p, m, other]
        solve_square(square, x)
        for m in range(6):
            row, own = cross[p, m], x[m]
            for k in range(len(side)):
                side[k] -= row[k] * own
        solve_one(factor[p], side)
        for k in range(old.shape[1]):
            for kind in range(2):
                new[kind, k] = side[2 * k + kind]
        for m in range(6):
            total = 0.0
            for other in range(6):
                total += px_from_normalised[m, other] * x[other]
            step[p, m] = total


@inner
def solve_square(square, x):
    """Solve in place by elimination; the largest number left in a column is the pivot."""
    size = len(x)
    for k in range(size):
        pivot = k
        for i in range(k + 1, size):
            if abs(square[i, k]) > abs(square[pivot, k]):
                pivot = i
        for j in range(size):
            square[k, j], square[pivot, j] = square[pivot, j], square[k, j]
        x[k], x[pivot] = x[pivot], x[k]
        for i in range(k + 1, size):
            share = square[i, k] / square[k, k]
            for j in range(k, size):
                square[i, j] -= share * square[k, j]
            x[i] -= share * x[k]
    for k in range(size - 1, -1, -1):
        for j in range(k + 1, size):
            x[k] -= square[k, j] * x[j]
        x[k] /= square[k, k]
