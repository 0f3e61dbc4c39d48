// Numbers as text: the same rules as report/formatting.py, for values that exist only while the slider moves.
"use strict";
const AD = {};

AD.superscript = (n) => String(n).replace(/-/g, "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);

AD.number = (value, digits = 3) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const x = Number(value.toExponential(digits - 1));
  const size = Math.abs(x);
  const exponent = size >= 1e-3 && size < 1e4 ? 0 : Math.floor(Math.log10(size) + 1e-12);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size) - exponent + 1e-12));
  let text = (x / 10 ** exponent).toFixed(decimals);
  if (text.includes(".")) text = text.replace(/0+$/, "").replace(/\.$/, "");
  return text.replace("-", "−") + (exponent ? ` × 10${AD.superscript(exponent)}` : "");
};

AD.unit = { e_per_A2: "e⁻/Å²", s: "s", frame: "" };
