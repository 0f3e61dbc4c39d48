// The decay map over the modelled image: what a frame at this moment would show, coloured by the chosen map.
// Maps are coarse and smooth: each line of the canvas is interpolated down from them, so a state costs a few milliseconds.
"use strict";

AD.decodeBits = (text, n) => {
  const bits = new Uint8Array(n);
  if (text) {
    const bytes = atob(text);
    for (let i = 0; i < n; i++) bits[i] = (bytes.charCodeAt(i >> 3) >> (i & 7)) & 1;
  }
  return bits;
};

// Values with holes filled from their neighbours, so that interpolation does not eat into what was seen
AD.fillHoles = (values, rows, columns) => {
  const filled = Float32Array.from(values);
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    if (values[y * columns + x] === values[y * columns + x]) continue;
    let sum = 0, count = 0;
    for (let v = Math.max(0, y - 1); v <= Math.min(rows - 1, y + 1); v++) for (let u = Math.max(0, x - 1); u <= Math.min(columns - 1, x + 1); u++) {
      const value = values[v * columns + u];
      if (value === value) { sum += value; count++; }
    }
    filled[y * columns + x] = count ? sum / count : 1;
  }
  return filled;
};

AD.mapStates = (data) => {
  const { maps } = data, [rows, columns] = maps.shape, n = rows * columns;
  return maps.states.map((s) => {
    const state = { frame: s.frame, x: data.frames.x[s.frame] };
    for (const w of ["contrast", "intensity"]) {
      const values = AD.decodeMap(s[w], maps.steps, maps.unseen);
      state[w] = { values, filled: AD.fillHoles(values, rows, columns), unsure: AD.decodeBits(s[w + "_unsure"], n) };
    }
    return state;
  });
};

// places(x) → {from, to, tau}: the two states around a moment
AD.around = (states, x) => {
  let hi = states.findIndex((s) => s.x >= x);
  if (hi < 0) hi = states.length - 1;
  if (hi === 0 || states[hi].x === x) return { from: states[hi], to: states[hi], tau: 0 };
  return { from: states[hi - 1], to: states[hi], tau: (x - states[hi - 1].x) / (states[hi].x - states[hi - 1].x) };
};

AD.mapPainter = (data, states, canvas, image, onReady) => {
  const context = canvas.getContext("2d", { alpha: false }), W = canvas.width, H = canvas.height;
  const { maps } = data, [rows, columns] = maps.shape, n = rows * columns;
  const buffer = document.createElement("canvas");
  buffer.width = W; buffer.height = H;
  const bufferContext = buffer.getContext("2d", { willReadFrequently: true });
  const pixels = bufferContext.createImageData(W, H), out = new Uint32Array(pixels.data.buffer);
  const factor = (data.picture.factor * data.picture.width) / W; // pixels of the frame per pixel of the canvas
  const ratio = maps.stride_px / factor;
  const py = AD.places(H, rows, ratio), px = AD.places(W, columns, ratio);
  const lut = data.lut, SEEN = 0, UNSURE = 1, UNSEEN = 2;
  const picture = { ready: false, base: null, detail: null, zero: 0 };
  const levels = 4001, red = new Float32Array(levels), green = new Float32Array(levels), blue = new Float32Array(levels);
  for (let i = 0; i < levels; i++) { // colours of ratios 0 … 2 in steps of 1/2000
    const change = Math.max(-1, Math.min(1, ((i / 2000 - 1) * 100) / data.limit));
    const at = 3 * Math.round((Math.sign(change) * Math.abs(change) ** data.power + 1) * 127.5);
    red[i] = lut[at]; green[i] = lut[at + 1]; blue[i] = lut[at + 2];
  }
  const coarse = { contrast: new Float32Array(n), intensity: new Float32Array(n) }, kind = new Uint8Array(n);
  const line = { contrast: new Float32Array(columns), intensity: new Float32Array(columns) };

  const blend = (witness, near, into) => {
    const p = near.from[witness].filled, q = near.to[witness].filled, tau = near.tau;
    if (tau === 0) { into.set(p); return; }
    for (let i = 0; i < n; i++) into[i] = AD.decayBetween(p[i], q[i], tau);
  };
  const classify = (witness, near) => {
    const p = near.from[witness], q = near.to[witness];
    for (let i = 0; i < n; i++) {
      const unseen = p.values[i] !== p.values[i] || q.values[i] !== q.values[i];
      kind[i] = unseen ? UNSEEN : p.unsure[i] || q.unsure[i] ? UNSURE : SEEN;
    }
  };

  const modelled = (witness, strength) => {
    const { base, detail, zero } = picture, other = witness === "contrast" ? "intensity" : "contrast";
    const chosen = line[witness], mu = line.intensity, kappa = line.contrast;
    const veil = 0.18 * strength; // uncertain values keep a hint of their colour
    for (let y = 0; y < H; y++) {
      const r0 = py.low[y] * columns, r1 = py.high[y] * columns, ro = py.own[y] * columns, wy = py.weight[y];
      for (const name of [witness, other]) {
        const from = coarse[name], into = line[name];
        for (let c = 0; c < columns; c++) into[c] = from[r0 + c] + (from[r1 + c] - from[r0 + c]) * wy;
      }
      for (let x = 0; x < W; x++) {
        const i = y * W + x, c0 = px.low[x], c1 = px.high[x], wx = px.weight[x], what = kind[ro + px.own[x]];
        if (what === UNSEEN) {
          const g = (x + y) % 12 < 3 ? 235 : Math.max(0, Math.min(255, zero + base[i] + detail[i]));
          out[i] = 0xff000000 | (g << 16) | (g << 8) | g;
          continue;
        }
        const u = mu[c0] + (mu[c1] - mu[c0]) * wx, k = kappa[c0] + (kappa[c1] - kappa[c0]) * wx;
        let grey = zero + base[i] * u + detail[i] * k;
        grey = grey < 0 ? 0 : grey > 255 ? 255.5 : grey + 0.5; // rounded where it is packed
        if (what === UNSURE && x % 6 < 2 && y % 6 < 2) { out[i] = grey > 110 ? 0xff000000 : 0xffdcdcdc; continue; }
        let at = ((chosen[c0] + (chosen[c1] - chosen[c0]) * wx) * 2000 + 0.5) | 0;
        at = at < 0 ? 0 : at > 4000 ? 4000 : at;
        const s = what === UNSURE ? veil : strength;
        out[i] = 0xff000000 | (((grey + (blue[at] - grey) * s) | 0) << 16) | (((grey + (green[at] - grey) * s) | 0) << 8) | ((grey + (red[at] - grey) * s) | 0);
      }
    }
  };

  const paint = ({ x, witness, opacity, affine }) => {
    if (!picture.ready) return;
    const near = AD.around(states, x);
    blend("contrast", near, coarse.contrast);
    blend("intensity", near, coarse.intensity);
    classify(witness, near);
    modelled(witness, opacity);
    bufferContext.putImageData(pixels, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (affine) {
      context.fillStyle = "#808080";
      context.fillRect(0, 0, W, H);
      // (y, x) of frame pixels → canvas: centres of shrunk pixels sit at (i·f + (f − 1)/2)
      const A = affine, f = factor, h = (f - 1) / 2, k = 0.5;
      const tx = (A[3] * h + A[4] * h + A[5] - h) / f + k - A[4] * k - A[3] * k;
      const ty = (A[0] * h + A[1] * h + A[2] - h) / f + k - A[0] * k - A[1] * k;
      context.setTransform(A[4], A[1], A[3], A[0], tx, ty);
    }
    context.drawImage(buffer, 0, 0);
  };

  // value of the chosen map under a pixel of the canvas: null where not seen
  const read = ({ x, witness }, cx, cy) => {
    const near = AD.around(states, x), at = py.own[cy] * columns + px.own[cx];
    const [a, b] = [near.from[witness].values[at], near.to[witness].values[at]];
    if (a !== a || b !== b) return null;
    return { value: AD.decayBetween(a, b, near.tau), unsure: Boolean(near.from[witness].unsure[at] || near.to[witness].unsure[at]) };
  };

  const prepare = () => {
    bufferContext.drawImage(image, 0, 0, W, H);
    const rgba = bufferContext.getImageData(0, 0, W, H).data, grey = new Float32Array(W * H);
    for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
    const { low, high, dark } = data.picture;
    picture.zero = ((dark - low) / (high - low)) * 255; // grey value of no signal at all
    picture.base = AD.blur(grey, W, H, Math.max(2, Math.round(Math.max(W, H) / 40)));
    picture.detail = new Float32Array(grey.length);
    for (let i = 0; i < grey.length; i++) { picture.detail[i] = grey[i] - picture.base[i]; picture.base[i] -= picture.zero; }
    picture.ready = true;
    onReady();
  };
  if (image.complete && image.naturalWidth) prepare(); else image.addEventListener("load", prepare);
  return { paint, read, W, H, factor };
};
