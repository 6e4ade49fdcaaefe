"use strict";
// Filter the claims by their verdict. Without this script all are shown.
(() => {
  const controls = document.getElementById("claims-controls");
  if (!controls) return;
  const verdict = document.getElementById("claims-verdict");
  const shown = document.getElementById("claims-shown");
  const rows = [...document.querySelectorAll("tr[data-verdict]")];

  function filter() {
    for (const row of rows) row.hidden = Boolean(verdict.value) && row.dataset.verdict !== verdict.value;
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  }

  verdict.addEventListener("input", filter);
  controls.hidden = false;
  filter();
})();

// Filter and sort the table of reported rows. Without this script all rows are shown in the order of the source file.
(() => {
  const table = document.getElementById("reported-table");
  const controls = document.getElementById("reported-controls");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const kind = document.getElementById("reported-kind");
  const text = document.getElementById("reported-text");
  const shown = document.getElementById("reported-shown");

  function filter() {
    const [field, value] = kind.value.split(":");
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = (value && row.dataset[field] !== value) || !words.every((word) => content.includes(word));
      visible += row.hidden ? 0 : 1;
    }
    shown.textContent = `${visible} of ${rows.length} rows`;
  }

  function sort(header, index) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const numeric = header.classList.contains("number");
    const key = (row) => row.cells[index].textContent.trim();
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);  // blanks last in both directions
      const order = numeric ? parseFloat(x) - parseFloat(y) : x.localeCompare(y);
      return ascending ? order : -order;
    });
    body.append(...rows);
  }

  [...table.tHead.rows[0].cells].forEach((header, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(header, index));
  });
  kind.addEventListener("input", filter);
  text.addEventListener("input", filter);
  controls.hidden = false;
  filter();
})();
