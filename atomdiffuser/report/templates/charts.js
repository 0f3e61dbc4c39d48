// Small SVG line charts: axes, grid, bands, curves, marks and a cursor. Redrawn when their box changes size.
"use strict";

AD.svg = (name, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  for (const child of children) node.append(child);
  return node;
};

AD.ticks = (low, high, count) => {
  const span = high - low;
  if (!(span > 0)) return [low];
  const raw = span / Math.max(1, count);
  const decade = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * decade).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
};

// a common power of ten for an axis keeps its tick labels short
AD.axisPower = (low, high) => {
  const most = Math.max(Math.abs(low), Math.abs(high));
  return most >= 1e4 || (most > 0 && most < 1e-2) ? Math.floor(Math.log10(most)) : 0;
};

AD.extent = (values, pad = 0) => {
  const finite = values.filter((v) => v !== null && Number.isFinite(v));
  if (!finite.length) return [0, 1];
  let low = finite.reduce((a, b) => Math.min(a, b)), high = finite.reduce((a, b) => Math.max(a, b));
  if (high - low < 1e-12) { const d = Math.abs(low) * 0.1 || 1; low -= d; high += d; }
  return [low - pad * (high - low), high + pad * (high - low)];
};

// spec: {x: {label, range}, y: {label, range, flip}, top: {label, ticks: [[x, text]]}, curves: [{x, y, lo, hi, colour, dash, marker}],
//        lines: [{at, axis, colour, dash, text}], spans: [{from, to, colour}], equal, pick(x), describe}; curves may carry
//        `number` (frame numbers, to see gaps) and `step` (usual distance between them)
AD.chart = (host, makeSpec) => {
  let cursorAt = null, place = null, cursor = null;
  const draw = () => {
    const width = host.clientWidth, height = host.clientHeight;
    if (!width || !height) return;
    const spec = makeSpec();
    const margin = { left: 58, right: 14, top: spec.top ? 40 : 12, bottom: 42 };
    const w = Math.max(40, width - margin.left - margin.right), h = Math.max(40, height - margin.top - margin.bottom);
    let [x0, x1] = spec.x.range, [y0, y1] = spec.y.range;
    if (spec.equal) {
      const scale = Math.max((x1 - x0) / w, (y1 - y0) / h), cx = (x0 + x1) / 2, cy = (y0 + y1) / 2;
      x0 = cx - (scale * w) / 2; x1 = cx + (scale * w) / 2; y0 = cy - (scale * h) / 2; y1 = cy + (scale * h) / 2;
    }
    const X = (v) => margin.left + ((v - x0) / (x1 - x0)) * w;
    const Y = (v) => (spec.y.flip ? margin.top + ((v - y0) / (y1 - y0)) * h : margin.top + h - ((v - y0) / (y1 - y0)) * h);
    const root = AD.svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": spec.describe || "" });
    const inside = (v, a, b) => v >= Math.min(a, b) - 1e-9 && v <= Math.max(a, b) + 1e-9;
    const axis = AD.svg("g", { class: "axis" });
    root.append(axis);
    const power = { x: AD.axisPower(x0, x1), y: AD.axisPower(y0, y1) };
    const name = (label, p) => (p ? `${label} · 10${AD.superscript(p)}` : label);
    for (const t of AD.ticks(x0, x1, Math.max(2, w / 80))) {
      axis.append(AD.svg("line", { class: "grid", x1: X(t), x2: X(t), y1: margin.top, y2: margin.top + h, style: "stroke:var(--line)" }));
      axis.append(AD.svg("text", { x: X(t), y: margin.top + h + 16, "text-anchor": "middle" }, AD.number(t / 10 ** power.x, 4)));
    }
    for (const t of AD.ticks(y0, y1, Math.max(3, h / 36))) {
      axis.append(AD.svg("line", { class: "grid", x1: margin.left, x2: margin.left + w, y1: Y(t), y2: Y(t), style: "stroke:var(--line)" }));
      axis.append(AD.svg("text", { x: margin.left - 8, y: Y(t) + 4, "text-anchor": "end" }, AD.number(t / 10 ** power.y, 4)));
    }
    axis.append(AD.svg("path", { d: `M${margin.left} ${margin.top}V${margin.top + h}H${margin.left + w}` }));
    root.append(AD.svg("text", { x: margin.left + w, y: height - 6, "text-anchor": "end", class: "muted" }, name(spec.x.label, power.x)));
    root.append(AD.svg("text", { transform: `translate(13 ${margin.top + h / 2}) rotate(-90)`, "text-anchor": "middle", class: "muted" }, name(spec.y.label, power.y)));
    if (spec.top) {
      for (const [at, text] of spec.top.ticks) {
        if (!inside(at, x0, x1)) continue;
        axis.append(AD.svg("line", { x1: X(at), x2: X(at), y1: margin.top - 5, y2: margin.top }));
        root.append(AD.svg("text", { x: X(at), y: margin.top - 9, "text-anchor": "middle" }, text));
      }
      root.append(AD.svg("text", { x: margin.left + w, y: 11, "text-anchor": "end", class: "muted" }, spec.top.label));
      axis.append(AD.svg("path", { d: `M${margin.left} ${margin.top}H${margin.left + w}` }));
    }
    const clipId = `clip-${host.id}`;
    root.append(AD.svg("clipPath", { id: clipId }, AD.svg("rect", { x: margin.left, y: margin.top, width: w, height: h })));
    const plot = AD.svg("g", { "clip-path": `url(#${clipId})` });
    root.append(plot);
    for (const span of spec.spans || [])
      plot.append(AD.svg("rect", { x: X(span.from), width: Math.max(0, X(Math.min(span.to, x1)) - X(span.from)), y: margin.top, height: h, style: `fill:${span.colour};fill-opacity:.1` }));
    for (const line of spec.lines || []) {
      const vertical = line.axis === "x";
      plot.append(AD.svg("line", vertical
        ? { x1: X(line.at), x2: X(line.at), y1: margin.top, y2: margin.top + h, style: `stroke:${line.colour}`, "stroke-dasharray": line.dash, "stroke-width": line.width || 1 }
        : { x1: margin.left, x2: margin.left + w, y1: Y(line.at), y2: Y(line.at), style: `stroke:${line.colour}`, "stroke-dasharray": line.dash, "stroke-width": line.width || 1 }));
      if (line.text) {
        const room = 6.4 * (line.text.length + (line.sub ? 1 : 0)); // about the text's width
        const late = vertical && X(line.at) + room + 24 > margin.left + w && X(line.at) - room > margin.left; // clear of the cursor at the end
        root.append(AD.svg("text", vertical
          ? { x: X(line.at) + (late ? -6 : 6), y: margin.top + 15, "text-anchor": late ? "end" : "start", style: `fill:${line.colour}` }
          : { x: margin.left + 6, y: Y(line.at) - 5, class: "muted" }, line.text, ...(line.sub ? [AD.svg("tspan", { dy: 3, "font-size": "75%" }, line.sub)] : [])));
      }
    }
    for (const c of spec.curves) {
      const known = c.x.map((v, i) => i).filter((i) => c.x[i] !== null && c.y[i] !== null);
      if (c.lo) {
        const band = known.filter((i) => c.lo[i] !== null && c.hi[i] !== null);
        if (band.length > 1) {
          const d = "M" + band.map((i) => `${X(c.x[i]).toFixed(1)} ${Y(c.hi[i]).toFixed(1)}`).join("L") + "L" +
            band.slice().reverse().map((i) => `${X(c.x[i]).toFixed(1)} ${Y(c.lo[i]).toFixed(1)}`).join("L") + "Z";
          plot.append(AD.svg("path", { d, style: `fill:${c.colour};fill-opacity:.17;stroke:none` }));
        } else for (const i of band) plot.append(AD.svg("line", { x1: X(c.x[i]), x2: X(c.x[i]), y1: Y(c.lo[i]), y2: Y(c.hi[i]), style: `stroke:${c.colour}` }));
      }
      // a gap (frames left out in between) is bridged by a faint line only: nothing was measured there
      const at = (i) => `${X(c.x[i]).toFixed(1)} ${Y(c.y[i]).toFixed(1)}`;
      const runs = known.reduce((all, i, n) => { if (n && c.number && c.number[i] - c.number[known[n - 1]] > (c.step || 1)) all.push([i]); else all[all.length - 1].push(i); return all; }, [[]]);
      if (!c.marksOnly && known.length > 1) {
        if (runs.length > 1) plot.append(AD.svg("path", { d: runs.slice(1).map((run, n) => `M${at(runs[n][runs[n].length - 1])}L${at(run[0])}`).join(""), style: `fill:none;stroke:${c.colour};stroke-width:1;opacity:.45`, "stroke-dasharray": "1 3" }));
        plot.append(AD.svg("path", { d: runs.map((run) => "M" + run.map(at).join("L")).join(""),
          style: `fill:none;stroke:${c.colour};stroke-width:${c.width || 1.6}`, "stroke-dasharray": c.dash || null }));
      }
      if (c.marker && known.length <= 80)
        for (const i of known) {
          const [px, py, r] = [X(c.x[i]), Y(c.y[i]), c.size || 2.6];
          plot.append(c.marker === "o" ? AD.svg("circle", { cx: px, cy: py, r, style: `fill:${c.fill || c.colour};stroke:${c.colour}` })
            : c.marker === "t" ? AD.svg("path", { d: `M${px} ${py - r * 1.3}l${r * 1.25} ${r * 2.2}h${-r * 2.5}z`, style: `fill:${c.colour}` })
            : c.marker === "d" ? AD.svg("path", { d: `M${px} ${py - r * 1.4}l${r * 1.4} ${r * 1.4}l${-r * 1.4} ${r * 1.4}l${-r * 1.4} ${-r * 1.4}z`, style: `fill:${c.colour}` })
              : AD.svg("rect", { x: px - r, y: py - r, width: 2 * r, height: 2 * r, style: `fill:${c.colour}` }));
        }
    }
    cursor = AD.svg("g", {});
    root.append(cursor);
    host.replaceChildren(root);
    place = { X, Y, margin, w, h, x0, x1, spec };
    if (spec.pick) {
      const pick = (event) => {
        const x = event.clientX - root.getBoundingClientRect().left;
        spec.pick(x0 + ((x - margin.left) / w) * (x1 - x0));
      };
      root.style.cursor = "ew-resize";
      root.addEventListener("pointerdown", (event) => { root.setPointerCapture(event.pointerId); pick(event); });
      root.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
    }
    showCursor();
  };
  const showCursor = () => {
    if (!cursor || !place || !cursorAt) return;
    const { X, Y, margin, h } = place;
    cursor.replaceChildren();
    if (cursorAt.line !== undefined) cursor.append(AD.svg("line", { class: "cursor", x1: X(cursorAt.line), x2: X(cursorAt.line), y1: margin.top, y2: margin.top + h }));
    for (const dot of cursorAt.dots || [])
      if (dot.x !== null && dot.y !== null) cursor.append(AD.svg("circle", { cx: X(dot.x), cy: Y(dot.y), r: 5, style: `fill:${dot.hollow ? "var(--surface)" : dot.colour};stroke:${dot.colour};stroke-width:2` }));
  };
  new ResizeObserver(draw).observe(host);
  draw();
  return { draw, cursor: (at) => { cursorAt = at; showCursor(); } };
};

AD.legend = (host, entries) => {
  host.replaceChildren(...entries.map(({ text, colour, dash, marker }) => {
    const key = AD.svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, AD.svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, style: `stroke:${colour};stroke-width:2`, "stroke-dasharray": dash || null }));
    if (marker === "o") key.append(AD.svg("circle", { cx: 13, cy: 5, r: 3.2, style: `fill:${colour}` }));
    if (marker === "t") key.append(AD.svg("path", { d: "M13 1l4 7h-8z", style: `fill:${colour}` }));
    if (marker === "s") key.append(AD.svg("rect", { x: 10, y: 2, width: 6, height: 6, style: `fill:${colour}` }));
    const item = document.createElement("span");
    item.append(key, document.createTextNode(text));
    return item;
  }));
};
