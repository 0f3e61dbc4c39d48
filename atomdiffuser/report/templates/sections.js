// Below the first screen: pair matrix, frame strips, the table of regions with its outlines, weights of the fits, downloads.
"use strict";

(() => {
  const data = AD.data, $ = (id) => document.getElementById(id);

  const copy = $("copy-methods");
  if (copy) copy.addEventListener("click", async () => {
    const references = [...document.querySelectorAll("#citations li")].map((li, i) => `[${i + 1}] ${li.textContent}`).join("\n");
    const text = `${$("methods").textContent}\n\n${references}\n`;
    let done = true;
    try { await navigator.clipboard.writeText(text); } catch {
      // a page opened from a file may lack the clipboard: the old way needs a selection
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    $("copied").textContent = done ? "Copied." : "Could not copy: select the text instead.";
  });

  // ---- frames as CSV: what the strips show, at the tables' precision of six digits
  const download = $("frames-csv");
  if (download && data.strips) download.addEventListener("click", () => {
    const n = data.frames.x.length, unit = data.drift.unit, text = (v) => (v === null || v === undefined ? "" : String(v));
    const columns = [["frame", (k) => k], ["time_s", (k) => data.frames.time[k]], ["used", (k) => data.frames.valid[k]],
      [`drift_y_${unit}`, (k) => data.drift.y[k]], [`drift_x_${unit}`, (k) => data.drift.x[k]],
      ...data.strips.map((s) => [s.unit ? `${s.label} (${s.unit})` : s.label, (k) => s.values[k]])];
    const rows = Array.from({ length: n }, (_, k) => columns.map(([, value]) => text(value(k))));
    AD.download(AD.toCsv([columns.map(([name]) => name), ...rows]), download.dataset.file);
  });
  if (!AD.onTime) return;

  // ---- strips: read the frame under the pointer, follow the slider
  const host = $("strips");
  if (host) {
    const n = data.frames.x.length, lanes = [...host.querySelectorAll(".strip")], values = [...host.querySelectorAll("[data-strip]")];
    lanes.forEach((lane) => { const mark = document.createElement("i"); mark.className = "now"; lane.append(mark); });
    const marks = lanes.map((lane) => lane.querySelector(".now"));
    const tops = values.map((v) => v.textContent);
    let slid = null;
    const at = (k, reading) => {
      for (const mark of marks) { mark.style.left = `${(100 * (k + 0.5)) / n}%`; mark.hidden = false; }
      values.forEach((node, i) => {
        const v = data.strips[i].values[k];
        node.textContent = reading ? (v === null ? "–" : AD.number(v)) : tops[i];
        node.classList.toggle("reading", reading);
      });
      axis.textContent = reading ? `frame ${k}${data.frames.valid[k] ? "" : ", excluded"}` : "frame";
    };
    const axis = host.querySelector(".strip-axis span:nth-child(2)");
    const frameAt = (event, lane) => {
      const box = lane.getBoundingClientRect();
      return Math.max(0, Math.min(n - 1, Math.floor(((event.clientX - box.left) / box.width) * n)));
    };
    lanes.forEach((lane) => {
      lane.addEventListener("pointermove", (event) => at(frameAt(event, lane), true));
      lane.addEventListener("pointerleave", () => at(slid, false));
      lane.addEventListener("click", (event) => AD.goTo(frameAt(event, lane)));
    });
    AD.onTime((place) => { const k = place.tau < 0.5 ? place.a : place.b; if (k !== slid) { slid = k; at(k, false); } });
  }

  // ---- regions
  document.querySelectorAll("tr[data-region]").forEach((row) => {
    const index = data.damage.findIndex((r) => r.region === row.dataset.region);
    if (index < 0) return;
    row.tabIndex = 0;
    row.addEventListener("pointerenter", () => AD.mark(row.dataset.region, true));
    row.addEventListener("pointerleave", () => { if (AD.region().region !== row.dataset.region) AD.mark(row.dataset.region, false); });
    row.addEventListener("click", () => AD.choose(index));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); AD.choose(index); } });
  });
  document.querySelectorAll("path[data-outline]").forEach((path) => {
    const index = data.damage.findIndex((r) => r.region === path.dataset.outline);
    path.addEventListener("pointerenter", () => AD.mark(path.dataset.outline, true));
    path.addEventListener("pointerleave", () => { if (AD.region().region !== path.dataset.outline) AD.mark(path.dataset.outline, false); });
    if (index >= 0) path.addEventListener("click", () => AD.choose(index));
  });

  // ---- kinetics: the chosen region's rows, and the weights of its curves
  const rows = [...document.querySelectorAll("tr[data-kinetics]")], all = $("all-kinetics"), weights = $("weights");
  const node = (name, className, ...children) => { const e = document.createElement(name); if (className) e.className = className; e.append(...children); return e; };
  const narrow = (name) => rows.forEach((row) => { row.hidden = !(all && all.checked) && row.dataset.kinetics !== name && row.dataset.kinetics !== "whole"; });
  if (all) all.addEventListener("change", () => narrow(AD.region().region));
  AD.onRegion((name) => {
    narrow(name);
    const found = data.weights[name];
    if (!weights || !found) return;
    $("weights-region").textContent = name === "whole" ? "the whole field" : name;
    weights.replaceChildren(...Object.entries(found).map(([witness, curves]) => node("div", "", node("h3", "", witness), ...curves.map((c) => {
      const bar = node("span", "");
      bar.style.width = `${(100 * c.weight).toFixed(1)}%`;
      return node("div", c.chosen ? "weight chosen" : "weight", node("span", "model", c.model), node("span", "track", bar), node("span", "share", `${(100 * c.weight).toFixed(0)} %`));
    }))));
  });

  // ---- pairs: a square of frames, or for long series a row a lag
  const pairs = data.pairs, map = $("pair-map"), n = data.frames.x.length;
  if (!map || !pairs.lag.length) return;
  const anchors = [[0, 32, 77], [54, 71, 107], [109, 110, 113], [153, 141, 120], [192, 176, 101], [255, 234, 70]]; // cividis
  const cividis = (t) => { const p = Math.min(0.9999, Math.max(0, t)) * 5, i = Math.floor(p), f = p - i; return anchors[i].map((v, c) => Math.round(v + (anchors[i + 1][c] - v) * f)); };
  const lags = [...new Set(pairs.lag)].sort((a, b) => a - b), square = n <= 120, rowHeight = 24;
  const rowOf = square ? (i) => pairs.reference[i] : (i) => lags.indexOf(pairs.lag[i]);
  const count = square ? n : lags.length;
  if (square) map.parentElement.classList.add("square");
  else { map.style.height = `${rowHeight * lags.length}px`; $("lag-names").replaceChildren(...lags.map((lag) => AD.span(`lag ${lag}`))); }
  const names = { residual_px: "residual (px)", hop_probability: "hop probability", score: "score (correlation)" };
  let quantity = "residual_px";
  const draw = () => {
    const width = Math.round(map.clientWidth * devicePixelRatio), height = Math.round(map.clientHeight * devicePixelRatio);
    if (!width || !height) return;
    map.width = width; map.height = height;
    const g = map.getContext("2d"), values = pairs[quantity], sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
    const low = quantity === "score" && sorted.length ? sorted[0] : 0;
    const high = quantity === "hop_probability" ? 1 : Math.max(low + 1e-9, sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.98))] || 1);
    const cw = width / n, ch = height / count, gap = Math.min(cw, ch) > 6 * devicePixelRatio ? devicePixelRatio : 0;
    for (let i = 0; i < values.length; i++) {
      const x = pairs.moving[i] * cw, y = rowOf(i) * ch;
      if (values[i] !== null) { g.fillStyle = `rgb(${cividis((values[i] - low) / (high - low)).join(",")})`; g.fillRect(x, y, Math.max(1, cw - gap), Math.max(1, ch - gap)); }
      if (!pairs.valid[i]) {
        g.strokeStyle = values[i] !== null ? "#fff" : getComputedStyle(map).color; g.lineWidth = devicePixelRatio;
        g.beginPath(); g.moveTo(x + cw * 0.25, y + ch * 0.25); g.lineTo(x + cw * 0.75, y + ch * 0.75); g.moveTo(x + cw * 0.75, y + ch * 0.25); g.lineTo(x + cw * 0.25, y + ch * 0.75); g.stroke();
      }
    }
    $("pair-low").textContent = AD.number(low);
    $("pair-name").textContent = sorted.length ? names[quantity] : "nothing measured";
    $("pair-high").textContent = AD.number(high) + (quantity === "residual_px" ? " and more" : "");
  };
  new ResizeObserver(draw).observe(map);
  document.querySelectorAll("button[data-pairs]").forEach((b) => b.addEventListener("click", () => {
    quantity = b.dataset.pairs;
    document.querySelectorAll("button[data-pairs]").forEach((o) => o.setAttribute("aria-pressed", String(o === b)));
    draw();
  }));
  const read = $("pair-read"), help = `${square ? "Rows: reference frame, from the top; columns: moving frame." : "Rows: lags; columns: moving frame."} × not used. Point at a pair to read it, or use the arrow keys.`;
  read.textContent = help;
  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect(), moving = Math.floor(((event.clientX - box.left) / box.width) * n), row = Math.floor(((event.clientY - box.top) / box.height) * count);
    tell(pairs.moving.findIndex((m, j) => m === moving && rowOf(j) === row));
  });
  const tell = (i) => {
    if (i < 0) { read.textContent = help; return; }
    const why = pairs.reason && pairs.reason[i] ? ` (${pairs.reason[i]})` : "";
    read.textContent = `${pairs.reference[i]} → ${pairs.moving[i]}: residual ${AD.number(pairs.residual_px[i])} px, hop probability ${AD.number(pairs.hop_probability[i], 2)}, score ${AD.number(pairs.score[i], 2)}${pairs.valid[i] ? "" : ", not used"}${why}`;
  };
  // arrow keys walk through the pairs: left and right within a row, up and down between rows
  const order = pairs.lag.map((_, i) => i).sort((a, b) => rowOf(a) - rowOf(b) || pairs.moving[a] - pairs.moving[b]);
  let current = -1;
  map.tabIndex = 0;
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const sideways = event.key === "ArrowRight" || event.key === "ArrowLeft", row = current < 0 ? -1 : rowOf(order[current]);
    let next = current + step;
    if (!sideways && current >= 0) while (next >= 0 && next < order.length && rowOf(order[next]) === row) next += step;
    if (next < 0 || next >= order.length) return;
    current = next;
    tell(order[current]);
  });
})();
