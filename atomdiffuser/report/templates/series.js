// The series page: one time slider moves the decay map, the charts' cursors and the path's dot.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  AD.data = data;
  const $ = (id) => document.getElementById(id);
  if (!data.picture || !data.maps) return;

  const frames = data.frames;
  const used = frames.valid.map((v, k) => k).filter((k) => frames.valid[k] && frames.x[k] !== null);
  const xFirst = frames.x[used[0]], xLast = frames.x[used[used.length - 1]];
  const unit = AD.unit[data.axis.unit];
  const COLOURS = { contrast: "var(--contrast)", intensity: "var(--intensity)" };
  const state = { x: frames.x[data.last] ?? xLast, witness: "contrast", region: 0, opacity: 0.65, drift: false };

  let pending = false;
  const later = () => { if (!pending) { pending = true; requestAnimationFrame(() => refresh()); } };
  const setTime = (x) => { state.x = snap(x); later(); };

  // ---- where a moment lies among the measured frames
  const locate = (x) => {
    let hi = used.findIndex((k) => frames.x[k] >= x);
    if (hi < 0) hi = used.length - 1;
    if (frames.x[used[hi]] === x || hi === 0) return { a: used[hi], b: used[hi], tau: 0, measured: true };
    const a = used[hi - 1], b = used[hi];
    return { a, b, tau: (x - frames.x[a]) / (frames.x[b] - frames.x[a]), measured: false };
  };
  const snap = (x) => {
    let best = used[0];
    for (const k of used) if (Math.abs(frames.x[k] - x) < Math.abs(frames.x[best] - x)) best = k;
    const near = Math.min(0.004, 0.2 / Math.max(1, used.length - 1)) * (xLast - xFirst);
    return Math.abs(frames.x[best] - x) <= near ? frames.x[best] : Math.min(xLast, Math.max(xFirst, x));
  };
  const timeAt = (place) => {
    const [ta, tb] = [frames.time[place.a], frames.time[place.b]];
    return ta === null || tb === null ? null : ta + (tb - ta) * place.tau;
  };

  // ---- maps
  const { maps } = data;
  const states = maps.states.map((s) => ({
    frame: s.frame, x: frames.x[s.frame],
    contrast: AD.decodeMap(s.contrast, maps.steps, maps.unseen), intensity: AD.decodeMap(s.intensity, maps.steps, maps.unseen),
  }));
  const mapAt = (witness, x) => {
    let hi = states.findIndex((s) => s.x >= x);
    if (hi < 0) hi = states.length - 1;
    if (hi === 0 || states[hi].x === x) return { values: states[hi][witness], from: states[hi], to: states[hi] };
    const [p, q] = [states[hi - 1], states[hi]], tau = (x - p.x) / (q.x - p.x), values = new Float32Array(p[witness].length);
    for (let i = 0; i < values.length; i++) {
      const a = p[witness][i], b = q[witness][i];
      values[i] = a > 0 && b > 0 ? a * Math.exp(tau * Math.log(b / a)) : a + (b - a) * tau;
    }
    return { values, from: p, to: q };
  };

  // ---- canvas: the modelled image at this moment, coloured by the map
  const canvas = $("map-canvas"), context = canvas.getContext("2d");
  const W = canvas.width, H = canvas.height;
  const picture = { ready: false };
  const buffer = document.createElement("canvas");
  buffer.width = W; buffer.height = H;
  const bufferContext = buffer.getContext("2d", { willReadFrequently: true });
  const pixels = bufferContext.createImageData(W, H);
  const ratio = maps.stride_px / data.picture.factor;
  const py = AD.places(H, maps.shape[0], ratio), px = AD.places(W, maps.shape[1], ratio);
  const lut = Uint8ClampedArray.from(data.lut);

  // index into the colours for ratios 0 … 2 in steps of 1/2000
  const colourOf = Uint8Array.from({ length: 4001 }, (_, i) => {
    const change = Math.max(-1, Math.min(1, ((i / 2000 - 1) * 100) / data.limit));
    return Math.round((Math.sign(change) * Math.abs(change) ** data.power + 1) * 127.5);
  });

  const paint = () => {
    if (!picture.ready) return;
    const m = { contrast: mapAt("contrast", state.x), intensity: mapAt("intensity", state.x) };
    const colour = m[state.witness].values, mu = m.intensity.values, kappa = m.contrast.values;
    const n = maps.shape[1], out = pixels.data, strength = state.opacity, zero = picture.zero;
    const sample = (v, i00, i01, i10, i11, wy, wx, own) => {
      const a = v[i00], b = v[i01], c = v[i10], d = v[i11];
      const value = (a * (1 - wx) + b * wx) * (1 - wy) + (c * (1 - wx) + d * wx) * wy;
      return value === value ? value : v[own];
    };
    for (let y = 0; y < H; y++) {
      const r0 = py.low[y] * n, r1 = py.high[y] * n, ro = py.own[y] * n, wy = py.weight[y];
      for (let x = 0; x < W; x++) {
        const i = y * W + x, c0 = px.low[x], c1 = px.high[x], wx = px.weight[x], own = ro + px.own[x];
        const l = sample(colour, r0 + c0, r0 + c1, r1 + c0, r1 + c1, wy, wx, own);
        let grey = picture.grey[i];
        if (l !== l) {
          const line = (x + y) % 12 < 3;
          out[4 * i] = out[4 * i + 1] = out[4 * i + 2] = line ? 235 : grey;
          out[4 * i + 3] = 255;
          continue;
        }
        const other = sample(state.witness === "contrast" ? mu : kappa, r0 + c0, r0 + c1, r1 + c0, r1 + c1, wy, wx, own);
        const [u, k] = state.witness === "contrast" ? [other, l] : [l, other];
        const base = picture.base[i] - zero;
        grey = zero + base * (u === u ? u : 1) + (grey - picture.base[i]) * (k === k ? k : 1);
        const at = 3 * colourOf[Math.max(0, Math.min(4000, Math.round(l * 2000)))];
        out[4 * i] = grey + (lut[at] - grey) * strength;
        out[4 * i + 1] = grey + (lut[at + 1] - grey) * strength;
        out[4 * i + 2] = grey + (lut[at + 2] - grey) * strength;
        out[4 * i + 3] = 255;
      }
    }
    bufferContext.putImageData(pixels, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#808080";
    context.fillRect(0, 0, W, H);
    if (state.drift) {
      const place = locate(state.x), f = data.picture.factor;
      const A = AD.between(AD.affine(frames.affine[place.a]), AD.affine(frames.affine[place.b]), place.tau);
      // (y, x) of frame pixels → canvas: centres of shrunk pixels sit at (i·f + (f − 1)/2)
      const h = (f - 1) / 2, k = 0.5;
      const tx = (A[3] * h + A[4] * h + A[5] - h) / f + k - A[4] * k - A[3] * k;
      const ty = (A[0] * h + A[1] * h + A[2] - h) / f + k - A[0] * k - A[1] * k;
      context.setTransform(A[4], A[1], A[3], A[0], tx, ty);
    }
    context.drawImage(buffer, 0, 0);
  };
  AD.paint = paint;

  canvas.addEventListener("pointermove", (event) => {
    if (state.drift) return;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * W, ((event.clientY - box.top) / box.height) * H].map(Math.floor);
    if (x < 0 || y < 0 || x >= W || y >= H) return;
    const l = mapAt(state.witness, state.x).values[py.own[y] * maps.shape[1] + px.own[x]], f = data.picture.factor;
    const value = l === l ? `${l >= 1 ? "+" : ""}${AD.number(100 * (l - 1), 2)} %` : "not seen";
    $("map-label").textContent = `${state.witness} ${value} at y ${Math.round((y + 0.5) * f)}, x ${Math.round((x + 0.5) * f)} px`;
  });
  canvas.addEventListener("pointerleave", () => later());

  const first = $("img-first");
  const prepare = () => {
    bufferContext.drawImage(first, 0, 0, W, H);
    const rgba = bufferContext.getImageData(0, 0, W, H).data;
    picture.grey = new Float32Array(W * H);
    for (let i = 0; i < W * H; i++) picture.grey[i] = rgba[4 * i];
    picture.base = AD.blur(picture.grey, W, H, Math.max(2, Math.round(Math.max(W, H) / 40)));
    const { low, high, dark } = data.picture;
    picture.zero = ((dark - low) / (high - low)) * 255; // grey value of no signal at all
    picture.ready = true;
    paint();
  };
  if (first.complete && first.naturalWidth) prepare(); else first.addEventListener("load", prepare);

  // ---- charts
  const region = () => data.damage[state.region];
  const decaySpec = () => {
    const r = region(), xs = r.frame.map((k) => frames.x[k]);
    const critical = data.critical.filter((c) => c.region === r.region);
    let high = xLast;
    for (const c of critical) if (!c.bound && c.value <= 1.6 * xLast) high = Math.max(high, c.value * 1.04);
    const values = ["contrast", "intensity"].flatMap((w) => [...r[w], ...r[w + "_lo95"], ...r[w + "_hi95"]]);
    const start = xFirst <= 0.25 * xLast ? Math.min(0, xFirst) : xFirst - 0.03 * (xLast - xFirst);
    const fits = critical.filter((c) => !c.bound && c.model === "exponential");
    const height = (c, x) => c.amplitude * Math.exp(-x / c.value);
    const [low, top] = AD.extent([...values, 1, 0.95, ...fits.map((c) => height(c, start))]);
    const range = [Math.max(Math.min(0, low), Math.min(low - 0.05 * (top - low), low)), top + 0.06 * (top - low)];
    const curves = [], lines = [{ at: 1, axis: "y", colour: "var(--muted)", dash: "1 3" }];
    // a fraction 1/e of the fit before any beam: where this level, the fit and the critical fluence meet
    for (const c of fits) if (c.witness === "contrast" && c.amplitude / Math.E > range[0]) lines.push({ at: c.amplitude / Math.E, axis: "y", colour: "var(--muted)", dash: "1 3", text: "1/e of the fit at zero" });
    for (const [w, marker, dash] of [["intensity", "s", "6 3"], ["contrast", "o", ""]])
      curves.push({ x: xs, y: r[w], lo: r[w + "_lo95"], hi: r[w + "_hi95"], colour: COLOURS[w], dash, marker });
    for (const c of critical) {
      if (c.bound) continue;
      if (c.model === "exponential") {
        const steps = Array.from({ length: 60 }, (_, i) => start + ((high - start) * i) / 59);
        curves.push({ x: steps, y: steps.map((x) => height(c, x)), colour: COLOURS[c.witness], dash: "2 3", width: 1.2 });
      }
      if (c.value <= high) lines.push({ at: c.value, axis: "x", colour: COLOURS[c.witness], dash: "8 3 2 3", text: c.witness === "contrast" ? "1/e" : "" });

    }
    const times = frames.time.some((t) => t !== null) && data.axis.unit === "e_per_A2";
    const top2 = times && used.length > 1 ? timeAxis() : null;
    const critText = critical.filter((c) => c.witness === "contrast").map((c) => `contrast falls to 1/e at ${c.text}`);
    return { x: { label: data.axis.label, range: [start, high + 0.012 * (high - start)] }, y: { label: "ratio to reference frame", range }, curves, lines, top: top2,
      pick: setTime, describe: `${r.region}: contrast and intensity against ${data.axis.label}. ${critText.join("; ")}` };
  };
  const timeAxis = () => {
    const t = used.map((k) => frames.time[k]), x = used.map((k) => frames.x[k]);
    const place = (v) => { let i = t.findIndex((s) => s >= v); i = Math.max(1, i < 0 ? t.length - 1 : i); return x[i - 1] + ((v - t[i - 1]) / (t[i] - t[i - 1])) * (x[i] - x[i - 1]); };
    const most = t[t.length - 1], inMinutes = most >= 600;
    const scale = inMinutes ? 60 : 1;
    return { label: inMinutes ? "time (min)" : "time (s)", ticks: AD.ticks(t[0] / scale, most / scale, 5).map((v) => [place(v * scale), AD.number(v, 4)]) };
  };
  const decay = AD.chart($("decay-chart"), decaySpec);
  const legend = () => {
    const own = data.critical.filter((c) => c.region === region().region);
    AD.legend($("decay-legend"), [
      { text: "contrast", colour: COLOURS.contrast, marker: "o" }, { text: "intensity", colour: COLOURS.intensity, dash: "6 3", marker: "s" },
      ...(own.some((c) => !c.bound && c.model === "exponential") ? [{ text: "fit", colour: "var(--muted)", dash: "2 3" }] : []),
      ...own.filter((c) => c.witness === "contrast").map((c) => ({ text: `contrast falls to 1/e at ${c.text}`, colour: c.bound ? "transparent" : COLOURS.contrast, dash: "8 3 2 3" })),
    ]);
  };

  const driftX = frames.time.some((t) => t === null) ? { values: frames.x.map((_, k) => k), label: "frame number" } : { values: frames.time, label: "time (s)" };
  const only = (values) => used.map((k) => values[k]);
  const bandOf = (values, sign) => used.map((k) => (values[k] === null || data.drift.sigma[k] === null ? null : values[k] + sign * 1.96 * data.drift.sigma[k]));
  const drift = AD.chart($("drift-chart"), () => ({
    x: { label: driftX.label, range: AD.extent(only(driftX.values)) },
    y: { label: `drift (${data.drift.unit})`, range: AD.extent([...only(data.drift.y), ...only(data.drift.x)], 0.08) },
    curves: [["y", "var(--contrast)", "", "o"], ["x", "var(--intensity)", "6 3", "s"]].map(([name, colour, dash, marker]) =>
      ({ x: only(driftX.values), y: only(data.drift[name]), lo: bandOf(data.drift[name], -1), hi: bandOf(data.drift[name], 1), colour, dash, marker, size: 2.2 })),
    describe: `Drift along y and x against ${driftX.label}`,
  }));
  AD.legend($("drift-legend"), [{ text: "y (down)", colour: "var(--contrast)", marker: "o" }, { text: "x (right)", colour: "var(--intensity)", dash: "6 3", marker: "s" }]);
  const path = AD.chart($("path-chart"), () => ({
    x: { label: `x (${data.drift.unit})`, range: AD.extent(only(data.drift.x), 0.1) }, y: { label: `y (${data.drift.unit})`, range: AD.extent(only(data.drift.y), 0.1), flip: true }, equal: true,
    curves: [
      { x: only(data.drift.x), y: only(data.drift.y), colour: "var(--accent)" },
      { x: [data.drift.x[used[0]]], y: [data.drift.y[used[0]]], colour: "var(--ink)", fill: "var(--surface)", marker: "o", size: 5, marksOnly: true },
      { x: [data.drift.x[used[used.length - 1]]], y: [data.drift.y[used[used.length - 1]]], colour: "var(--contrast)", marker: "d", size: 5, marksOnly: true },
    ],
    describe: "Path of the frame's centre",
  }));

  // ---- the slider
  const slider = $("time"), read = $("time-read");
  const share = (x) => (xLast > xFirst ? (x - xFirst) / (xLast - xFirst) : 0);
  const drawTicks = () => {
    const svg = $("ticks"), width = svg.clientWidth, thumb = 16;
    svg.replaceChildren(...used.map((k) => {
      const carried = states.some((s) => s.frame === k), x = thumb / 2 + share(frames.x[k]) * (width - thumb);
      return AD.svg("line", { x1: x, x2: x, y1: 0, y2: carried ? 10 : 5, style: `stroke:var(--${carried ? "ink" : "muted"})`, "stroke-width": carried ? 1.6 : 1 });
    }));
  };
  new ResizeObserver(drawTicks).observe($("ticks"));

  const blend = (values, place) => {
    const [a, b] = [values[place.a], values[place.b]];
    return a === null || b === null ? null : a + (b - a) * place.tau;
  };
  const curveAt = (witness, place) => {
    const r = region(), index = (k) => r.frame.indexOf(k), [i, j] = [index(place.a), index(place.b)];
    if (i < 0 || j < 0 || r[witness][i] === null || r[witness][j] === null) return null;
    return AD.decayBetween(r[witness][i], r[witness][j], place.tau);
  };
  const span = (...parts) => { const s = document.createElement("span"); s.append(...parts); return s; };

  const describe = (place) => {
    const t = timeAt(place), where = place.measured ? `Frame ${place.a}` : `Between frames ${place.a} and ${place.b}`;
    const when = [data.axis.unit === "e_per_A2" ? `${AD.number(state.x)} ${unit}` : "", t === null ? "" : `${AD.number(t)} s`].filter(Boolean).join(", ");
    const carried = states.some((s) => s.x === state.x);
    const near = mapAt(state.witness, state.x);
    const how = !place.measured ? "interpolated, not measured" : carried ? "measured" : `measured; map interpolated from frames ${near.from.frame} and ${near.to.frame}`;
    const values = ["contrast", "intensity"].map((w) => {
      const v = curveAt(w, place);
      return v === null ? "" : `${w} ${place.measured ? "" : "≈ "}${AD.number(v)}`;
    }).filter(Boolean).join(", ");
    return { where, when, how, values, inter: !place.measured || !carried, mapped: !place.measured || !carried ? "interpolated, not measured" : "measured" };
  };

  const refresh = () => {
    pending = false;
    const place = locate(state.x), text = describe(place);
    slider.value = String(share(state.x));
    slider.setAttribute("aria-valuetext", `${text.where}, ${text.when}: ${text.how}. ${text.values}`);
    const how = span(text.how);
    how.className = text.inter ? "how inter" : "how";
    read.replaceChildren(span(`${text.where}${text.when ? ` · ${text.when}` : ""} · `), how, span(text.values ? ` · ${region().region}: ${text.values}` : ""));
    $("map-label").textContent = `${state.witness} · ${text.mapped}`;
    const dots = (["contrast", "intensity"]).map((w) => ({ x: state.x, y: curveAt(w, place), colour: COLOURS[w], hollow: !place.measured }));
    decay.cursor({ line: state.x, dots });
    const at = blend(driftX.values, place), [dy, dx] = [blend(data.drift.y, place), blend(data.drift.x, place)];
    drift.cursor({ line: at, dots: [{ x: at, y: dy, colour: "var(--contrast)", hollow: !place.measured }, { x: at, y: dx, colour: "var(--intensity)", hollow: !place.measured }] });
    path.cursor({ dots: [{ x: dx, y: dy, colour: "var(--accent)", hollow: !place.measured }] });
    paint();
  };
  AD.setTime = (x) => { state.x = snap(x); refresh(); };
  AD.setTau = (u) => { state.x = Math.min(xLast, Math.max(xFirst, xFirst + u * (xLast - xFirst))); refresh(); };
  AD.state = state;

  slider.addEventListener("input", () => setTime(xFirst + Number(slider.value) * (xLast - xFirst)));
  const step = (direction) => {
    const beyond = used.map((k) => frames.x[k]).filter((x) => (direction > 0 ? x > state.x : x < state.x));
    if (beyond.length) { state.x = direction > 0 ? beyond[0] : beyond[beyond.length - 1]; later(); }
  };
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  slider.addEventListener("keydown", (event) => {
    const move = { PageUp: 1, PageDown: -1 }[event.key];
    const nudge = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (move) { step(move); event.preventDefault(); }
    if (nudge) { state.x = Math.min(xLast, Math.max(xFirst, state.x + (nudge * (xLast - xFirst)) / 200)); later(); event.preventDefault(); }
  });

  // ---- controls of the map
  document.querySelectorAll("button[data-witness]").forEach((button) => button.addEventListener("click", () => {
    state.witness = button.dataset.witness;
    document.querySelectorAll("button[data-witness]").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    later();
  }));
  $("opacity").addEventListener("input", (event) => { state.opacity = Number(event.target.value) / 100; later(); });
  $("with-drift").addEventListener("change", (event) => { state.drift = event.target.checked; later(); });

  // ---- flicker
  const layers = [...$("flicker").children], button = $("flicker-button"), calm = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null, shown = 0;
  const show = (which) => { shown = which; layers.forEach((layer, i) => layer.classList.toggle("off", i !== which)); };
  const wording = () => { button.textContent = calm.matches ? `Show ${shown ? "first" : "last"}` : timer ? "Stop" : "Flicker"; };
  const flicker = () => {
    if (calm.matches) show(1 - shown);
    else if (timer) { clearInterval(timer); timer = null; show(0); }
    else { show(1); timer = setInterval(() => show(1 - shown), 800); }
    button.setAttribute("aria-pressed", String(Boolean(timer) || (calm.matches && shown === 1)));
    wording();
  };
  button.addEventListener("click", flicker);
  calm.addEventListener("change", wording);
  wording();
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button, input, select, textarea, summary, a, [data-region]")) return;
    event.preventDefault();
    flicker();
  });

  // ---- regions: table, outlines and the chart's menu choose together
  const menu = $("region-select");
  menu.replaceChildren(...data.damage.map((r, i) => new Option(r.region === "whole" ? "whole field" : r.region, String(i))));
  const mark = (name, on) => document.querySelectorAll("[data-region], [data-outline]").forEach((node) => {
    if ((node.dataset.region || node.dataset.outline) === name) node.classList.toggle("active", on);
  });
  const choose = (index) => {
    mark(region().region, false);
    state.region = index;
    mark(region().region, true);
    menu.value = String(index);
    legend();
    decay.draw();
    later();
  };
  menu.addEventListener("change", () => choose(Number(menu.value)));
  document.querySelectorAll("tr[data-region]").forEach((row) => {
    const index = data.damage.findIndex((r) => r.region === row.dataset.region);
    row.tabIndex = 0;
    row.addEventListener("pointerenter", () => mark(row.dataset.region, true));
    row.addEventListener("pointerleave", () => { if (region().region !== row.dataset.region) mark(row.dataset.region, false); });
    row.addEventListener("click", () => { if (index >= 0) choose(index); });
    row.addEventListener("keydown", (event) => { if ((event.key === "Enter" || event.key === " ") && index >= 0) { event.preventDefault(); choose(index); } });
  });

  // ---- pairs: a row a lag, a column a moving frame
  const pairs = data.pairs, lags = [...new Set(pairs.lag)].sort((a, b) => a - b), pairMap = $("pair-map");
  if (pairMap && lags.length) {
    const anchors = [[0, 32, 77], [54, 71, 107], [109, 110, 113], [153, 141, 120], [192, 176, 101], [255, 234, 70]]; // cividis
    const cividis = (t) => { const p = Math.min(0.9999, Math.max(0, t)) * 5, i = Math.floor(p), f = p - i; return anchors[i].map((v, c) => Math.round(v + (anchors[i + 1][c] - v) * f)); };
    const rowHeight = 22;
    pairMap.style.height = `${rowHeight * lags.length}px`;
    $("lag-names").replaceChildren(...lags.map((lag) => span(`lag ${lag}`)));
    let quantity = "residual_px";
    const names = { residual_px: "residual (px)", hop_probability: "hop probability", score: "score" };
    const drawPairs = () => {
      const width = pairMap.clientWidth * devicePixelRatio, height = rowHeight * lags.length * devicePixelRatio;
      if (!width) return;
      pairMap.width = width; pairMap.height = height;
      const g = pairMap.getContext("2d"), values = pairs[quantity], sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
      const low = quantity === "score" ? sorted[0] : 0;
      const high = quantity === "hop_probability" ? 1 : Math.max(low + 1e-9, sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.98))]);
      const cw = width / frames.x.length, ch = height / lags.length;
      for (let i = 0; i < values.length; i++) {
        const x = pairs.moving[i] * cw, y = lags.indexOf(pairs.lag[i]) * ch, gap = cw > 5 ? 1 : 0;
        if (values[i] !== null) { g.fillStyle = `rgb(${cividis((values[i] - low) / (high - low)).join(",")})`; g.fillRect(x, y + 1, cw - gap, ch - 2); }
        if (!pairs.valid[i]) {
          g.strokeStyle = values[i] !== null ? "#fff" : getComputedStyle(pairMap).getPropertyValue("color"); g.lineWidth = devicePixelRatio;
          g.beginPath(); g.moveTo(x + cw * 0.2, y + ch * 0.25); g.lineTo(x + cw * 0.8, y + ch * 0.75); g.moveTo(x + cw * 0.8, y + ch * 0.25); g.lineTo(x + cw * 0.2, y + ch * 0.75); g.stroke();
        }
      }
      $("pair-scale").textContent = sorted.length ? `${names[quantity]}: dark ${AD.number(low)}, bright ${AD.number(high)}${quantity === "residual_px" ? " and more" : ""}` : "nothing measured";
    };
    new ResizeObserver(drawPairs).observe(pairMap);
    document.querySelectorAll("button[data-pairs]").forEach((b) => b.addEventListener("click", () => {
      quantity = b.dataset.pairs;
      document.querySelectorAll("button[data-pairs]").forEach((o) => o.setAttribute("aria-pressed", String(o === b)));
      drawPairs();
    }));
    pairMap.addEventListener("pointermove", (event) => {
      const box = pairMap.getBoundingClientRect(), moving = Math.floor(((event.clientX - box.left) / box.width) * frames.x.length);
      const lag = lags[Math.floor(((event.clientY - box.top) / box.height) * lags.length)];
      const i = pairs.moving.findIndex((m, k) => m === moving && pairs.lag[k] === lag);
      if (i < 0) return;
      $("pair-read").textContent = `Frames ${pairs.reference[i]} → ${moving}: residual ${AD.number(pairs.residual_px[i])} px, hop probability ${AD.number(pairs.hop_probability[i])}, score ${AD.number(pairs.score[i])}${pairs.valid[i] ? "" : `; not used${pairs.reason && pairs.reason[i] ? `: ${pairs.reason[i]}` : ""}`}`;
    });
  }

  $("copy-methods").addEventListener("click", () => {
    const done = () => { $("copied").textContent = "copied"; };
    const select = () => { const r = document.createRange(); r.selectNodeContents($("methods")); getSelection().removeAllRanges(); getSelection().addRange(r); document.execCommand("copy"); done(); };
    if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText($("methods").textContent).then(done, select); else select();
  });

  choose(0);
  refresh();
})();
