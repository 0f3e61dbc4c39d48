// Session table: words and verdicts narrow it down together.
"use strict";

(() => {
  const rows = [...document.querySelectorAll("#series tbody tr")], find = document.getElementById("find");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  let group = "";
  const apply = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !((!group || row.dataset.group === group) && words.every((w) => texts[i].includes(w)));
      shown += row.hidden ? 0 : 1;
    });
    document.getElementById("found").textContent = `${shown} of ${rows.length} rows shown`;
  };
  find.addEventListener("input", apply);
  document.querySelectorAll("button[data-group]").forEach((button) => button.addEventListener("click", () => {
    group = button.dataset.group;
    document.querySelectorAll("button[data-group]").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    apply();
  }));
})();
