// The first screen: one time slider moves the decay map, the charts' cursors and the path's dot; flicker and map controls.
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
  const WITNESSES = [
    { name: "contrast", colour: "var(--contrast)", marker: "o", dash: "" },
    { name: "intensity", colour: "var(--intensity)", marker: "s", dash: "6 3" },
    { name: "crystallinity", colour: "var(--crystallinity)", marker: "t", dash: "8 3 2 3" },
  ];
  const state = { x: frames.x[data.last] ?? xLast, witness: "contrast", region: 0, opacity: 0.6, drift: false };
  const listeners = [];
  AD.state = state;
  AD.used = used;
  AD.onTime = (listener) => listeners.push(listener); // called with the place of the moment after each change

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

  // ---- the map
  const states = AD.mapStates(data), canvas = $("map-canvas");
  const painter = AD.mapPainter(data, states, canvas, $("img-first"), () => later());
  const affineAt = (place) => AD.between(AD.affine(frames.affine[place.a]), AD.affine(frames.affine[place.b]), place.tau);
  const paint = (place = locate(state.x)) => painter.paint({ ...state, affine: state.drift ? affineAt(place) : null });
  AD.paint = () => paint();
  AD.states = states;
  const label = (text) => { if ($("map-label").textContent !== text) $("map-label").textContent = text; };
  canvas.addEventListener("pointermove", (event) => {
    if (state.drift) return;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * painter.W, ((event.clientY - box.top) / box.height) * painter.H].map(Math.floor);
    if (x < 0 || y < 0 || x >= painter.W || y >= painter.H) return;
    const found = painter.read(state, x, y), f = painter.factor, change = found && 100 * (found.value - 1);
    const value = found ? `${change > 0 ? "+" : ""}${AD.number(change, 2)} %${found.unsure ? " (uncertain)" : ""}` : "not seen";
    label(`${state.witness} ${value} at y ${Math.round((y + 0.5) * f)}, x ${Math.round((x + 0.5) * f)} px`);
  });
  canvas.addEventListener("pointerleave", () => later());

  // ---- decay against fluence
  const region = () => data.damage[state.region];
  AD.region = region;
  const shown = () => WITNESSES.filter((w) => (region()[w.name] || []).some((v) => v !== null));
  const decaySpec = () => {
    const r = region(), xs = r.x, fits = data.critical.filter((c) => c.region === r.region);
    const reached = fits.filter((c) => !c.bound && c.value !== null);
    let high = Math.max(xLast, ...xs.filter((x) => x !== null));
    for (const c of reached) if (c.witness === "contrast" && c.value <= 1.6 * high) high = Math.max(high, c.value * 1.04);
    const drawn = r.frame.length < 3 ? [] : fits.filter((c) => c.fit && c.model !== "constant" && c.witness !== "crystallinity");
    const start = Math.min(xFirst <= 0.25 * xLast ? Math.min(0, xFirst) : xFirst - 0.03 * (xLast - xFirst), ...drawn.map((c) => c.fit.from));
    const values = shown().flatMap((w) => [...r[w.name], ...r[w.name + "_lo95"], ...r[w.name + "_hi95"]]);
    const [low, top] = AD.extent([...values, 1, 0.95, ...drawn.flatMap((c) => c.fit.y)]);
    const range = [Math.max(Math.min(0, low), low - 0.05 * (top - low)), top + 0.06 * (top - low)];
    const lines = [{ at: 1, axis: "y", colour: "var(--muted)", dash: "1 3" }], spans = [], curves = [];
    for (const w of [...shown()].reverse())
      curves.push({ x: xs, y: r[w.name], lo: r[w.name + "_lo95"], hi: r[w.name + "_hi95"], number: r.frame, step: usualStep(r.frame), colour: w.colour, dash: w.dash, marker: w.marker,
        width: w.name === "crystallinity" ? 1 : 1.6, size: w.name === "crystallinity" ? 2 : 2.6 });
    for (const c of drawn) {
      const n = c.fit.y.length - 1, steps = c.fit.y.map((_, i) => c.fit.from + ((c.fit.to - c.fit.from) * i) / n);
      curves.push({ x: steps, y: c.fit.y, colour: `var(--${c.witness})`, dash: "2 3", width: 1.2 });
    }
    for (const c of reached) if (c.witness === "contrast" && c.value <= high) {
      if (c.lo !== null) spans.push({ from: c.lo, to: c.hi === null ? high : c.hi, colour: "var(--contrast)" });
      lines.push({ at: c.value, axis: "x", colour: "var(--contrast)", dash: "8 3 2 3", text: { e_per_A2: "F", s: "t", frame: "n" }[data.axis.unit], sub: "c" });
      if (c.fit && c.fit.amplitude / Math.E > range[0]) lines.push({ at: c.fit.amplitude / Math.E, axis: "y", colour: "var(--muted)", dash: "1 3", text: "1/e" });
    }
    const times = frames.time.every((t) => t !== null) && data.axis.unit === "e_per_A2" && used.length > 1;
    const said = fits.filter((c) => c.text).map((c) => `${c.witness} falls to 1/e at ${c.text}`);
    return { x: { label: data.axis.label, range: [start, high + 0.012 * (high - start)] }, y: { label: `ratio to frame ${data.reference}`, range }, curves, lines, spans, top: times ? timeAxis() : null,
      pick: setTime, describe: `${r.region}: ${shown().map((w) => w.name).join(", ")} against ${data.axis.label}. ${said.join("; ")}` };
  };
  const usualStep = (numbers) => Math.max(1, numbers.length > 1 ? Math.min(...numbers.slice(1).map((k, i) => k - numbers[i])) : 1);
  const timeAxis = () => {
    const t = used.map((k) => frames.time[k]), x = used.map((k) => frames.x[k]);
    const place = (v) => { let i = t.findIndex((s) => s >= v); i = Math.max(1, i < 0 ? t.length - 1 : i); return x[i - 1] + ((v - t[i - 1]) / (t[i] - t[i - 1])) * (x[i] - x[i - 1]); };
    const most = t[t.length - 1], scale = most >= 600 ? 60 : 1;
    return { label: scale > 1 ? "time (min)" : "time (s)", ticks: AD.ticks(t[0] / scale, most / scale, 5).map((v) => [place(v * scale), AD.number(v, 4)]) };
  };
  const decay = AD.chart($("decay-chart"), decaySpec);
  const legend = () => {
    const own = data.critical.filter((c) => c.region === region().region), contrast = own.find((c) => c.witness === "contrast" && c.text);
    AD.legend($("decay-legend"), [
      ...shown().map((w) => ({ text: w.name, colour: w.colour, dash: w.dash, marker: w.marker })),
      ...(region().frame.length > 2 && own.some((c) => c.fit && c.model !== "constant") ? [{ text: "fit", colour: "var(--muted)", dash: "2 3" }] : []),
      ...(contrast ? [{ text: `contrast falls to 1/e at ${contrast.text}`, colour: contrast.bound ? null : "var(--contrast)", dash: "8 3 2 3" }] : []),
    ]);
  };

  // ---- drift
  const driftX = frames.time.some((t) => t === null) ? { values: frames.x.map((_, k) => k), label: "frame number" } : { values: frames.time, label: "time (s)" };
  const only = (values) => used.map((k) => values[k]);
  const bandOf = (values, sign) => used.map((k) => (values[k] === null || data.drift.sigma[k] === null ? null : values[k] + sign * 1.96 * data.drift.sigma[k]));
  const AXES = [{ name: "y", text: "y (down)", colour: "var(--along-y)", dash: "", marker: "o" }, { name: "x", text: "x (right)", colour: "var(--along-x)", dash: "6 3", marker: "s" }];
  const drift = AD.chart($("drift-chart"), () => ({
    x: { label: driftX.label, range: AD.extent(only(driftX.values)) },
    y: { label: `drift (${data.drift.unit})`, range: AD.extent([...only(data.drift.y), ...only(data.drift.x)], 0.08) },
    curves: AXES.map(({ name, colour, dash, marker }) => ({ x: only(driftX.values), y: only(data.drift[name]), lo: bandOf(data.drift[name], -1), hi: bandOf(data.drift[name], 1), number: used, colour, dash, marker, size: 2.2 })),
    describe: `Drift along y and x against ${driftX.label}`,
  }));
  AD.legend($("drift-legend"), AXES);
  const path = AD.chart($("path-chart"), () => ({
    x: { label: `x (${data.drift.unit})`, range: AD.extent(only(data.drift.x), 0.1) }, y: { label: `y (${data.drift.unit})`, range: AD.extent(only(data.drift.y), 0.1), flip: true }, equal: true,
    curves: [
      { x: only(data.drift.x), y: only(data.drift.y), number: used, colour: "var(--ink)", width: 1.2 },
      { x: [data.drift.x[used[0]]], y: [data.drift.y[used[0]]], colour: "var(--ink)", fill: "var(--surface)", marker: "o", size: 5, marksOnly: true },
      { x: [data.drift.x[used[used.length - 1]]], y: [data.drift.y[used[used.length - 1]]], colour: "var(--ink)", marker: "d", size: 5, marksOnly: true },
    ],
    describe: "Path of the frame's centre",
  }));

  // ---- the slider
  const slider = $("time"), read = $("time-read");
  const share = (x) => (xLast > xFirst ? (x - xFirst) / (xLast - xFirst) : 0);
  const drawTicks = () => {
    const svg = $("ticks"), width = svg.clientWidth, thumb = 16;
    const at = (x) => thumb / 2 + share(x) * (width - thumb);
    const out = frames.valid.map((v, k) => k).filter((k) => !frames.valid[k] && frames.x[k] !== null && frames.x[k] > xFirst && frames.x[k] < xLast);
    svg.replaceChildren(
      ...used.map((k) => {
        const carried = states.some((s) => s.frame === k), x = at(frames.x[k]);
        return AD.svg("line", { x1: x, x2: x, y1: 0, y2: carried ? 10 : 5, style: `stroke:var(--${carried ? "ink" : "muted"})`, "stroke-width": carried ? 1.6 : 1 });
      }),
      ...out.map((k) => { const x = at(frames.x[k]); return AD.svg("path", { d: `M${x - 2.5} 2l5 5m0-5l-5 5`, style: "stroke:var(--bad);fill:none", "stroke-width": 1.2 }); }),
    );
  };
  new ResizeObserver(drawTicks).observe($("ticks"));

  const blend = (values, place) => {
    const [a, b] = [values[place.a], values[place.b]];
    return a === null || b === null ? null : a + (b - a) * place.tau;
  };
  const curveAt = (witness, place) => {
    const r = region(), values = r[witness], index = (k) => r.frame.indexOf(k), [i, j] = [index(place.a), index(place.b)];
    if (!values || i < 0 || j < 0 || values[i] === null || values[j] === null) return null;
    return AD.decayBetween(values[i], values[j], place.tau);
  };
  // where the moment lies on the chosen region's own axis: it may have been out of view in some frames
  const regionX = (place) => {
    const r = region(), [i, j] = [r.frame.indexOf(place.a), r.frame.indexOf(place.b)];
    return i < 0 || j < 0 || r.x[i] === null || r.x[j] === null ? state.x : r.x[i] + (r.x[j] - r.x[i]) * place.tau;
  };
  AD.span = (...parts) => { const s = document.createElement("span"); s.append(...parts); return s; };

  const describe = (place) => {
    const t = timeAt(place), where = place.measured ? `Frame ${place.a}` : `Between frames ${place.a} and ${place.b}`;
    const when = [data.axis.unit === "e_per_A2" ? `${AD.number(state.x)} ${unit}` : "", t === null ? "" : `${AD.number(t)} s`].filter(Boolean).join(", ");
    const carried = states.some((s) => s.x === state.x), near = AD.around(states, state.x);
    const how = !place.measured ? "interpolated, not measured" : carried ? "measured" : `measured; map interpolated from frames ${near.from.frame} and ${near.to.frame}`;
    const values = shown().map((w) => {
      const v = curveAt(w.name, place);
      return v === null ? "" : `${w.name} ${place.measured ? "" : "≈ "}${AD.number(v)}`;
    }).filter(Boolean).join(", ");
    return { where, when, how, values, inter: !place.measured || !carried, mapped: !place.measured || !carried ? "interpolated, not measured" : "measured" };
  };

  const refresh = () => {
    pending = false;
    const place = locate(state.x), text = describe(place);
    slider.value = String(share(state.x));
    slider.setAttribute("aria-valuetext", `${text.where}, ${text.when}: ${text.how}. ${text.values}`);
    // the slider speaks for itself while it has the focus
    read.setAttribute("aria-live", document.activeElement === slider ? "off" : "polite");
    const how = AD.span(text.how);
    how.className = text.inter ? "how inter" : "how";
    const name = region().region === "whole" ? "whole field" : region().region;
    read.replaceChildren(AD.span(`${text.where}${text.when ? ` · ${text.when}` : ""} · `), how, AD.span(text.values ? ` · ${name}: ${text.values}` : ""));
    label(`${state.witness} · ${text.mapped}`);
    canvas.parentElement.classList.toggle("inter", text.inter);
    const own = regionX(place);
    const dots = shown().map((w) => ({ x: own, y: curveAt(w.name, place), colour: w.colour, hollow: !place.measured }));
    decay.cursor({ line: own, dots });
    const at = blend(driftX.values, place), [dy, dx] = [blend(data.drift.y, place), blend(data.drift.x, place)];
    drift.cursor({ line: at, dots: [{ x: at, y: dy, colour: "var(--along-y)", hollow: !place.measured }, { x: at, y: dx, colour: "var(--along-x)", hollow: !place.measured }] });
    path.cursor({ dots: [{ x: dx, y: dy, colour: "var(--accent)", hollow: !place.measured }] });
    paint(place);
    for (const listener of listeners) listener(place);
  };
  AD.setTime = (x) => { state.x = snap(x); refresh(); };
  AD.setTau = (u) => { state.x = Math.min(xLast, Math.max(xFirst, xFirst + u * (xLast - xFirst))); refresh(); };
  AD.goTo = (k) => { if (frames.valid[k] && frames.x[k] !== null) { state.x = frames.x[k]; later(); } };

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
  $("with-drift").addEventListener("change", (event) => { state.drift = event.target.checked; canvas.parentElement.classList.toggle("moved", state.drift); later(); });

  // ---- flicker
  const layers = [...$("flicker").children], button = $("flicker-button"), calm = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null, layer = 0;
  const show = (which) => { layer = which; layers.forEach((l, i) => l.classList.toggle("off", i !== which)); };
  const wording = () => { button.textContent = calm.matches ? `Show ${layer ? "first" : "last"}` : timer ? "Stop" : "Flicker"; };
  const flicker = () => {
    if (calm.matches) show(1 - layer);
    else if (timer) { clearInterval(timer); timer = null; show(0); }
    else { show(1); timer = setInterval(() => show(1 - layer), 800); }
    button.setAttribute("aria-pressed", String(Boolean(timer) || (calm.matches && layer === 1)));
    wording();
  };
  button.addEventListener("click", flicker);
  calm.addEventListener("change", wording);
  wording();
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button, input, select, textarea, summary, a, [data-region], [tabindex]")) return;
    event.preventDefault();
    flicker();
  });

  // ---- regions: the table, the outlines, the menu and the fits choose together
  const menu = $("region-select");
  const title = (name) => (name === "whole" ? "whole field" : name);
  menu.replaceChildren(...data.damage.map((r, i) => new Option(title(r.region), String(i))));
  AD.mark = (name, on) => document.querySelectorAll("[data-region], [data-outline]").forEach((node) => {
    if ((node.dataset.region || node.dataset.outline) === name) node.classList.toggle("active", on);
  });
  const chosen = [];
  AD.onRegion = (listener) => { chosen.push(listener); listener(region().region); };
  AD.choose = (index) => {
    AD.mark(region().region, false);
    state.region = index;
    AD.mark(region().region, true);
    menu.value = String(index);
    legend();
    decay.draw();
    later();
    for (const listener of chosen) listener(region().region);
  };
  menu.addEventListener("change", () => AD.choose(Number(menu.value)));
  AD.choose(0);
  refresh();
})();
