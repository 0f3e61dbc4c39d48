// Tables: sorting by header buttons, filtering, and download of what the table holds as CSV at full precision.
"use strict";

AD.cellValue = (cell) => {
  if (cell.dataset.value === undefined) return cell.textContent.trim();
  const text = cell.dataset.value;
  const value = text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
  return text === "" || text === "nan" || Number.isNaN(value) ? (text === "" || text === "nan" ? null : text) : value;
};

AD.sortable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.dataset.sort === "off") return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = head.classList.contains("num") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      for (const h of heads) if (h.hasAttribute("aria-sort")) h.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map((row) => [AD.cellValue(row.cells[column]), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // unknown values last, either way
        if (typeof a === "number" && typeof b === "number") return sign * (a - b);
        return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
};

AD.toCsv = (rows) => rows.map((row) => row.map((v) => (/[",\n]/.test(v) ? `"${v.replace(/"/g, '""')}"` : v)).join(",")).join("\n") + "\n";

AD.tableCsv = (table) => {
  const text = (cell) => cell.textContent.trim().replace(/\s+/g, " ");
  const heads = [...table.tHead.rows[0].cells].map((c) => c.dataset.name || text(c));
  const rows = [...table.tBodies[0].rows].filter((r) => !r.hidden);
  return AD.toCsv([heads, ...rows.map((r) => [...r.cells].map((c) => (c.dataset.value !== undefined ? c.dataset.value : text(c))))]);
};

AD.download = (text, file) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff" + text], { type: "text/csv;charset=utf-8" }));
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

document.querySelectorAll("table.sortable").forEach(AD.sortable);
document.querySelectorAll("button[data-csv]").forEach((button) =>
  button.addEventListener("click", () => AD.download(AD.tableCsv(document.getElementById(button.dataset.csv)), button.dataset.file)));

// What scrolls sideways can be reached, and scrolled, by keyboard; what does not is no stop on the way.
(() => {
  const follow = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0; else target.removeAttribute("tabindex");
  }));
  document.querySelectorAll(".table-wrap, figure").forEach((box) => follow.observe(box));
})();
