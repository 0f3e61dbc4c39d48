// The degradation model D(x, τ): between two measured states the affine follows exp(τ·log A) and the maps λ₁·(λ₂/λ₁)^τ.
"use strict";

AD.multiply = (a, b) => {
  const c = new Array(9);
  for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  return c;
};

AD.affine = (six) => [...six, 0, 0, 1]; // rows (y, x, 1)

AD.inverse = ([a, b, ty, c, d, tx]) => {
  const det = a * d - b * c;
  const i = [d / det, -b / det, -c / det, a / det];
  return [i[0], i[1], -(i[0] * ty + i[1] * tx), i[2], i[3], -(i[2] * ty + i[3] * tx), 0, 0, 1];
};

// log and exp by their series: drift between two frames of a series is close to the identity in its linear part
AD.log = (m) => {
  const x = m.map((v, i) => v - (i % 4 === 0 ? 1 : 0));
  let power = x.slice(), sum = x.slice();
  for (let n = 2; n <= 60; n++) {
    power = AD.multiply(power, x);
    sum = sum.map((v, i) => v + ((n % 2 ? 1 : -1) * power[i]) / n);
  }
  return sum;
};

AD.exp = (m) => {
  let term = [1, 0, 0, 0, 1, 0, 0, 0, 1], sum = term.slice();
  for (let n = 1; n <= 24; n++) {
    term = AD.multiply(term, m).map((v) => v / n);
    sum = sum.map((v, i) => v + term[i]);
  }
  return sum;
};

// affine at the share τ of the way from a to b: b_from_a^τ applied after a
AD.between = (a, b, tau) => {
  if (tau <= 0) return a;
  if (tau >= 1) return b;
  return AD.multiply(AD.exp(AD.log(AD.multiply(b, AD.inverse(a))).map((v) => v * tau)), a);
};

// exponential kinetics composes; where a value is not positive only the linear blend is defined
AD.decayBetween = (a, b, tau) => (a > 0 && b > 0 ? a * Math.pow(b / a, tau) : a + (b - a) * tau);

AD.decodeMap = (text, steps, unseen) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    const v = view.getInt16(2 * i, true);
    values[i] = v === unseen ? NaN : v / steps;
  }
  return values;
};

// Bilinear places of image pixels on a grid of block means `ratio` image pixels wide: lower neighbour, upper, weight, nearest
AD.places = (pixels, samples, ratio) => {
  const low = new Int32Array(pixels), high = new Int32Array(pixels), weight = new Float32Array(pixels), own = new Int32Array(pixels);
  for (let i = 0; i < pixels; i++) {
    const at = Math.min(samples - 1, Math.max(0, (i + 0.5) / ratio - 0.5));
    low[i] = Math.floor(at); high[i] = Math.min(samples - 1, low[i] + 1); weight[i] = at - low[i]; own[i] = weight[i] < 0.5 ? low[i] : high[i];
  }
  return { low, high, weight, own };
};

// Local mean by three box blurs, close to a Gaussian
AD.blur = (image, width, height, radius) => {
  let from = Float32Array.from(image), to = new Float32Array(image.length);
  const pass = (n, lines, stride, step) => {
    for (let l = 0; l < lines; l++) {
      let sum = 0, count = 0;
      const at = (i) => l * step + i * stride;
      for (let i = 0; i < Math.min(radius, n); i++) { sum += from[at(i)]; count++; }
      for (let i = 0; i < n; i++) {
        if (i + radius < n) { sum += from[at(i + radius)]; count++; }
        if (i - radius - 1 >= 0) { sum -= from[at(i - radius - 1)]; count--; }
        to[at(i)] = sum / count;
      }
    }
    [from, to] = [to, from];
  };
  for (let k = 0; k < 3; k++) { pass(width, height, 1, width); pass(height, width, width, 1); }
  return from;
};
