"""Loops of `interpolation` over float32 arrays, compiled for the processor."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32
ONE, HALF, SIXTH, TWO_THIRDS = F(1), F(0.5), F(1 / 6), F(2 / 3)
NEXT, SECOND, THIRD = np.uint64(1), np.uint64(2), np.uint64(3)


@compiled
def convolve_rows(first, last, images, taps, out):
    """Correlation with `taps` (odd number) along y, of rows `first` to `last` of images (n, Y, X) mirrored at edges."""
    n, height, width = images.shape
    reach = len(taps) // 2
    for p in range(n):
        for i in range(first, last):
            line = out[p, i]
            for j in range(width):
                line[j] = F(0)
            for k in range(0, len(taps) - 3, 4):
                a, b = images[p, mirrored(i + k - reach, height)], images[p, mirrored(i + k + 1 - reach, height)]
                c, d = images[p, mirrored(i + k + 2 - reach, height)], images[p, mirrored(i + k + 3 - reach, height)]
                t0, t1, t2, t3 = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
                for j in range(width):
                    line[j] += (t0 * a[j] + t1 * b[j]) + (t2 * c[j] + t3 * d[j])
            for k in range(len(taps) // 4 * 4, len(taps)):
                a, t0 = images[p, mirrored(i + k - reach, height)], taps[k]
                for j in range(width):
                    line[j] += t0 * a[j]


@compiled
def convolve_columns(first, last, images, taps, out):
    """The same along x."""
    n, _, width = images.shape
    reach = len(taps) // 2
    padded = np.empty(width + 2 * reach, F)
    for p in range(n):
        for i in range(first, last):
            source, line = images[p, i], out[p, i]
            for j in range(width):
                padded[reach + j] = source[j]
                line[j] = F(0)
            for j in range(reach):
                padded[j] = source[mirrored(j - reach, width)]
                padded[reach + width + j] = source[mirrored(width + j, width)]
            for k in range(0, len(taps) - 3, 4):
                here = padded[k : k + width + 3]
                t0, t1, t2, t3 = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
                for j in range(width):
                    line[j] += (t0 * here[j] + t1 * here[j + 1]) + (t2 * here[j + 2] + t3 * here[j + 3])
            for k in range(len(taps) // 4 * 4, len(taps)):
                here, t0 = padded[k : k + width], taps[k]
                for j in range(width):
                    line[j] += t0 * here[j]


@inner
def mirrored(index, size):
    """A place beyond the edges, folded back at the outer edges of the outermost pixels."""
    while index < 0 or index >= size:
        index = -index - 1 if index < 0 else 2 * size - 1 - index
    return index


@compiled
def sample_points(first, last, coefficients, y, x, values):
    """Cubic B-splines of coefficients (n, Y, X) at places (n, P), from `first` to `last` of each."""
    height, width = coefficients.shape[1:]
    bottom, right = F(height - 2), F(width - 2)
    for p in range(len(coefficients)):
        image = coefficients[p]
        flat = image.reshape(-1)
        for j in range(first, last):
            down, along = y[p, j], x[p, j]
            if down >= ONE and along >= ONE and down < bottom and along < right:
                values[p, j] = spline_inside(flat, width, down, along)
            else:
                values[p, j] = spline_near_edge(image, down, along)


@compiled
def sample_grid(first, last, coefficients, of, affine, rows, columns, values):
    """Cubic B-splines of coefficients (m, Y, X) where affines (n, 3, 3) put rows × columns, of rows `first` to `last`;
    `of` (n,) says which image each affine belongs to.

    Along a line the shares of the pixels around, and the first one's number, are found for all places before any is
    looked up: two such loops are quicker than one that does both.
    """
    height, width = coefficients.shape[1:]
    count, down = len(columns), np.uint64(width)
    y_0, y_1, y_2, y_3 = np.empty(count, F), np.empty(count, F), np.empty(count, F), np.empty(count, F)
    x_0, x_1, x_2, x_3 = np.empty(count, F), np.empty(count, F), np.empty(count, F), np.empty(count, F)
    corner = np.empty(count, np.int64)
    for p in range(len(affine)):
        a, image = affine[p], coefficients[of[p]]
        flat = image.reshape(-1)
        for i in range(first, last):
            line = values[p, i]
            y0, x0 = a[0, 0] * rows[i] + a[0, 2], a[1, 0] * rows[i] + a[1, 2]
            dy, dx = a[0, 1], a[1, 1]
            low, high = well_inside(y0, dy, columns, height)
            left, right = well_inside(x0, dx, columns, width)
            low, high = max(low, left), min(high, right)
            if high <= low:
                low = high = count
            places, inside = columns[low:high], line[low:high]
            for j in range(len(places)):  # from zero, as only so it is known that no number counts from the end
                y, x = F(y0 + dy * places[j]), F(x0 + dx * places[j])
                iy, ix = np.int32(y), np.int32(x)
                y_0[j], y_1[j], y_2[j], y_3[j] = four_shares(y - F(iy))
                x_0[j], x_1[j], x_2[j], x_3[j] = four_shares(x - F(ix))
                corner[j] = np.int64(iy - 1) * width + np.int64(ix - 1)
            for j in range(len(places)):
                b = np.uint64(corner[j])
                c, d, e = b + down, b + down + down, b + down + down + down
                t, u, v, w = y_0[j], y_1[j], y_2[j], y_3[j]
                one = t * flat[b] + u * flat[c] + v * flat[d] + w * flat[e]
                two = t * flat[b + NEXT] + u * flat[c + NEXT] + v * flat[d + NEXT] + w * flat[e + NEXT]
                three = t * flat[b + SECOND] + u * flat[c + SECOND] + v * flat[d + SECOND] + w * flat[e + SECOND]
                four = t * flat[b + THIRD] + u * flat[c + THIRD] + v * flat[d + THIRD] + w * flat[e + THIRD]
                inside[j] = (x_0[j] * one + x_1[j] * two) + (x_2[j] * three + x_3[j] * four)
            for j in range(low):
                line[j] = spline_near_edge(image, F(y0 + dy * columns[j]), F(x0 + dx * columns[j]))
            for j in range(high, count):
                line[j] = spline_near_edge(image, F(y0 + dy * columns[j]), F(x0 + dx * columns[j]))


@inner
def four_shares(t):
    """Of the pixels around a place that is `t` of the way from the second to the third."""
    u = ONE - t
    first, last = u * u * u * SIXTH, t * t * t * SIXTH
    second = TWO_THIRDS - t * t * (ONE - HALF * t)
    return first, second, ONE - first - second - last, last


@inner
def well_inside(start, step, columns, size):
    """First and one past the last of `columns` for which start + step·column has four of `size` pixels around it."""
    first, last = 0, len(columns)
    while first < last and not (1.01 <= start + step * columns[first] <= size - 2.01):
        first += 1
    while last > first and not (1.01 <= start + step * columns[last - 1] <= size - 2.01):
        last -= 1
    return first, last


@inner
def spline_inside(flat, width, y, x):
    """Cubic B-spline at one place that has four pixels around it along either axis."""
    iy, ix = np.int32(y), np.int32(x)
    x_0, x_1, x_2, x_3 = four_shares(x - F(ix))
    y_0, y_1, y_2, y_3 = four_shares(y - F(iy))
    stride = np.uint64(width)
    a = np.uint64(iy - 1) * stride + np.uint64(ix - 1)
    b, c = a + stride, a + stride + stride
    d = c + stride
    return (
        y_0 * (x_0 * flat[a] + x_1 * flat[a + NEXT] + x_2 * flat[a + SECOND] + x_3 * flat[a + THIRD])
        + y_1 * (x_0 * flat[b] + x_1 * flat[b + NEXT] + x_2 * flat[b + SECOND] + x_3 * flat[b + THIRD])
        + y_2 * (x_0 * flat[c] + x_1 * flat[c + NEXT] + x_2 * flat[c + SECOND] + x_3 * flat[c + THIRD])
        + y_3 * (x_0 * flat[d] + x_1 * flat[d + NEXT] + x_2 * flat[d + SECOND] + x_3 * flat[d + THIRD])
    )


@inner
def spline_near_edge(image, y, x):
    """The same anywhere: coefficients outside the image count as zero, a place that is no number gives none."""
    height, width = image.shape
    if not (abs(y) < F(1e9) and abs(x) < F(1e9)):
        return y + x if y != y or x != x else F(0)
    iy, ix = int(np.floor(y)), int(np.floor(x))
    total = F(0)
    for row in range(max(iy - 1, 0), min(iy + 3, height)):
        along = F(0)
        for column in range(max(ix - 1, 0), min(ix + 3, width)):
            along += cubic(x - F(column)) * image[row, column]
        total += cubic(y - F(row)) * along
    return total


@inner
def cubic(distance):
    """The cubic B-spline."""
    away = abs(distance)
    if away < ONE:
        return TWO_THIRDS - away * away * (ONE - HALF * away)
    away = max(F(2) - away, F(0))
    return away * away * away * SIXTH


@compiled
def banded_product(images, band_y, band_x, out):
    """What matrices along both axes make of images (n, Y, X): `band_y` (Y, 2r + 1) holds columns i − r to i + r of
    row i, and `band_x` (2r + 1, X) the same the other way round.
    """
    n, height, width = images.shape
    reach_y, reach_x = band_y.shape[1] // 2, band_x.shape[0] // 2
    across = np.zeros(width + 2 * reach_x, F)
    for p in range(n):
        for i in range(height):
            inner, line = across[reach_x : reach_x + width], out[p, i]
            for j in range(width):
                inner[j] = line[j] = F(0)
            for m in range(max(0, reach_y - i), min(2 * reach_y + 1, height + reach_y - i)):
                share, row = band_y[i, m], images[p, i + m - reach_y]
                for j in range(width):
                    inner[j] += share * row[j]
            for m in range(2 * reach_x + 1):
                shares, shifted = band_x[m], across[m : m + width]
                for j in range(width):
                    line[j] += shares[j] * shifted[j]


@compiled
def to_knots(first, last, images, down, down_band, along, along_band, back, back_band, out):
    """Knots `first` to `last` along y of what a blur makes of images (n, Y, X): `out` (n, K, X) holds coefficients of
    splines along y at places along x.

    `down` (K, Y) gives the knots along y, `along` (K', X) those along x, and `back` (K', X) what each of these adds to
    the places; a row's numbers lie from the first to the second of its two in `…_band` (…, 2).
    """
    n, _, width = images.shape
    line = np.empty(width, F)
    for p in range(n):
        for g in range(first, last):
            for j in range(width):
                line[j] = F(0)
            start, end = down_band[g]
            add_lines(images[p, start:end], down[g, start:end], line)
            here = out[p, g]
            for j in range(width):
                here[j] = F(0)
            for h in range(len(along)):
                start, end = along_band[h]
                knot = product(along[h, start:end], line[start:end])
                start, end = back_band[h]
                shares, places = back[h, start:end], here[start:end]
                for j in range(len(places)):
                    places[j] += knot * shares[j]


@compiled
def from_knots(first, last, knots, down, down_band, out):
    """Rows `first` to `last` of images (n, Y, X) from lines at the knots (n, K, X) and `down` (Y, K)."""
    for p in range(len(knots)):
        for i in range(first, last):
            line = out[p, i]
            for j in range(len(line)):
                line[j] = F(0)
            start, end = down_band[i]
            add_lines(knots[p, start:end], down[i, start:end], line)


@inner
def add_lines(lines, shares, out):
    """Add so much of each of the lines."""
    for k in range(0, len(shares) - 3, 4):
        a, b, c, d = lines[k], lines[k + 1], lines[k + 2], lines[k + 3]
        t0, t1, t2, t3 = shares[k], shares[k + 1], shares[k + 2], shares[k + 3]
        for j in range(len(out)):
            out[j] += (t0 * a[j] + t1 * b[j]) + (t2 * c[j] + t3 * d[j])
    for k in range(len(shares) // 4 * 4, len(shares)):
        a, t0 = lines[k], shares[k]
        for j in range(len(out)):
            out[j] += t0 * a[j]


@inner
def product(one, other):
    """Σ one·other."""
    total = F(0)
    for j in range(len(one)):
        total += one[j] * other[j]
    return total
