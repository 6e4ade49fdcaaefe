"use strict";
// What the page shows lies in its address, after the fragment: "#row-x?table-y.sort=gFID.up&compare=row-x,row-z".
const state = (() => {
  const read = () => {
    const [anchor, query] = location.hash.slice(1).split("?");
    return { anchor, values: new URLSearchParams(query) };
  };
  let { anchor, values } = read();
  const address = () => {
    const query = values.toString();
    return `#${anchor}${query && `?${query}`}`;
  };
  return {
    get anchor() { return anchor; },
    get: (key) => values.get(key) ?? "",
    set(key, value) {
      if (value) values.set(key, value); else values.delete(key);
      history.replaceState(null, "", address());
    },
    go(name) {
      if (name === anchor) return;
      anchor = name;
      history.pushState(null, "", address());
    },
    reread() { ({ anchor, values } = read()); },
  };
})();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// The leading number of a text such as "1,092 ± 3"; NaN if it begins with none.
const leading = (text) => parseFloat(text.trim().replace(/,(?=\d{3})/g, ""));
const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const AT_ONCE = 50;  // rows shown before "show all" is asked for

// A table that sorts, filters, searches, chooses its columns, and gives itself as a file.
class Board {
  constructor(table) {
    this.table = table;
    this.body = table.tBodies[0];
    const late = this.body.querySelector("template.late");
    const all = [...this.body.rows, ...(late ? late.content.children : [])];
    late?.remove();
    this.heads = Board.cells(table.tHead.rows[0]);
    this.first = this.heads.findLastIndex((head) => head.parentNode === table.tHead.rows[0]) + 1;
    this.floor = all.find((row) => row.classList.contains("floor"));
    this.rows = all.filter((row) => row !== this.floor);
    this.cells = new Map(all.map((row) => [row, Board.cells(row)]));
    this.everything = this.rows.length <= AT_ONCE;
    this.name = table.id;
    this.addSorting();
    table.closest(".scroll").before(this.controls());
    this.read();
  }

  // All cells of a row in the order of the columns: those in sight, then those in its template.
  static cells(row) {
    const template = [...row.children].find((child) => child.localName === "template");
    return [...row.cells, ...(template ? template.content.children : [])];
  }

  key(index) { return this.heads[index].dataset.key; }
  index(key) { return this.heads.findIndex((head) => head.dataset.key === key); }
  get = (name) => state.get(`${this.name}.${name}`);
  set(name, value) { state.set(`${this.name}.${name}`, value); this.apply(); }

  addSorting() {
    this.heads.forEach((head, index) => {
      head.dataset.key ??= head.textContent.trim().replace(/\W+/g, "-");
      const text = [...head.childNodes].filter((node) => !node.classList?.contains("why"));
      const button = make("button", { type: "button", class: "sort", onclick: () => this.turn(index) });
      button.append(...text);
      head.prepend(button);
      this.heads[index].title = head.querySelector(".why")?.title ?? "";
    });
  }

  turn(index) {
    const [key, way] = [this.key(index), this.get("sort")];
    this.set("sort", way === `${key}.up` ? `${key}.down` : way === `${key}.down` ? "" : `${key}.up`);
  }

  controls() {
    this.search = make("input", { type: "search", oninput: () => this.set("q", this.search.value) });
    this.selects = (this.table.dataset.selects ?? "").split(" ").filter(Boolean).map((name) => {
      const values = [...new Set(this.rows.map((row) => row.dataset[name]))].sort();
      const select = make("select", { onchange: () => this.set(name, select.value) },
        make("option", { value: "" }, "all"), ...values.map((value) => make("option", {}, value)));
      return { name, select, label: make("label", { hidden: values.length < 2 }, `${name} `, select) };
    });
    this.ranges = (this.table.dataset.ranges ?? "").split(" ").filter(Boolean).flatMap((key) =>
      ["from", "to"].map((end) => {
        const name = `${key}.${end}`, words = key.replace("params_m", "parameters (M)");
        const input = make("input", { type: "number", "aria-label": `${words} ${end}`, oninput: () => this.set(name, input.value) });
        return { name, key, end, input, label: make("label", {}, end === "from" ? `${words} ` : "to ", input) };
      }));
    this.chooser = make("details", { class: "chooser" }, make("summary", {}, "Columns"));
    this.chooser.addEventListener("toggle", () => this.chooser.open && this.listColumns(), { once: true });
    this.shown = make("span", { role: "status" });
    this.all = make("button", { type: "button", onclick: () => { this.everything = true; this.apply(); } }, "show all");
    const file = (kind) => make("button", { type: "button", onclick: () => this.save(kind), title: `these rows with all columns as ${kind}` }, kind);
    return make("div", { class: "controls" }, make("label", {}, "search ", this.search),
      ...this.selects.map(({ label }) => label), ...this.ranges.map(({ label }) => label),
      ...(this.heads.length > 3 ? [this.chooser] : []), file("CSV"), file("JSON"), this.shown, this.all);
  }

  listColumns() {
    const chosen = new Set(this.columns);
    const boxes = this.heads.slice(1).map((head, i) => {
      const box = make("input", { type: "checkbox", value: i + 1 });
      box.checked = chosen.has(i + 1);
      box.addEventListener("change", () => {
        const keys = boxes.filter(({ box }) => box.checked).map(({ box }) => this.key(+box.value));
        this.set("cols", keys.join(",") || "none");
      });
      return { box, label: make("label", {}, box, ` ${head.querySelector(".sort").textContent}`) };
    });
    const usual = make("button", { type: "button", onclick: () => {
      this.set("cols", "");
      const now = new Set(this.columns);
      for (const { box } of boxes) box.checked = now.has(+box.value);
    } }, "usual columns");
    this.chooser.append(make("div", {}, ...boxes.map(({ label }) => label), usual));
  }

  get columns() {
    const keys = this.get("cols").split(",");
    const indices = this.heads.map((_, index) => index);
    return indices.filter((index) => index === 0 || (keys[0] ? keys.includes(this.key(index)) : index < this.first));
  }

  matches(row) {
    const cells = this.cells.get(row);
    if (row.content === undefined) row.content = cells.map((cell) => cell.textContent).join(" ").toLowerCase();
    const within = ({ key, end, input }) => {
      if (!input.value) return true;
      const value = leading(cells[this.index(key)].textContent);
      return end === "from" ? value >= +input.value : value <= +input.value;
    };
    return words(this.search.value).every((word) => row.content.includes(word))
      && this.selects.every(({ name, select }) => !select.value || row.dataset[name] === select.value)
      && this.ranges.every(within);
  }

  sorted(rows) {
    const [, key, way] = /^(.*)\.(up|down)$/.exec(this.get("sort")) ?? [];
    const index = this.index(key);
    this.heads.forEach((head, i) => {
      if (i === index) head.setAttribute("aria-sort", way === "up" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    if (index < 0) return rows;
    const numeric = this.heads[index].classList.contains("number");
    const value = (row) => {
      const text = (this.cells.get(row)[index]?.textContent ?? "").trim();
      return numeric ? leading(text) : text;
    };
    const blank = (v) => v === "" || v !== v;
    const sign = way === "up" ? 1 : -1;
    return rows.map((row) => [value(row), row]).sort(([a], [b]) => {
      if (blank(a) || blank(b)) return blank(a) - blank(b);  // blanks last in both directions
      return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    }).map(([, row]) => row);
  }

  read() {
    this.search.value = this.get("q");
    for (const { name, select } of this.selects) select.value = this.get(name);
    for (const { name, input } of this.ranges) input.value = this.get(name);
    this.apply();
  }

  apply() {
    const columns = this.columns;
    const place = (row) => row.replaceChildren(...columns.map((i) => this.cells.get(row)[i]).filter(Boolean));
    this.found = this.sorted(this.rows.filter((row) => this.matches(row)));
    const rows = this.everything ? this.found : this.found.slice(0, AT_ONCE);
    this.table.tHead.rows[0].replaceChildren(...columns.map((i) => this.heads[i]));
    [...rows, ...(this.floor ? [this.floor] : [])].forEach(place);
    this.body.replaceChildren(...rows, ...(this.floor ? [this.floor] : []));
    this.shown.textContent = `${rows.length} of ${this.rows.length} rows`;
    this.all.hidden = rows.length === this.found.length;
  }

  showRow(row) {
    if (!row.isConnected) this.everything = true;
    if (!this.found.includes(row)) {
      for (const name of ["q", ...this.selects.map((s) => s.name), ...this.ranges.map((r) => r.name)]) state.set(`${this.name}.${name}`, "");
      this.read();
    }
    if (!row.isConnected) this.apply();
  }

  save(kind) {
    const heads = this.heads.map((head) => head.querySelector(".sort").textContent.replace(/\s+/g, " ").trim());
    const text = (cell) => (cell?.textContent ?? "").replace(/\s+/g, " ").trim();
    const rows = this.found.map((row) => this.heads.map((_, i) => text(this.cells.get(row)[i])));
    // A spreadsheet must not take a text for a formula
    const field = (value) => `"${(/^[=+\-@＝＋－＠]/.test(value) && isNaN(value) ? `'${value}` : value).replace(/"/g, '""')}"`;
    const content = kind === "CSV"
      ? [heads, ...rows].map((row) => row.map(field).join(",")).join("\n") + "\n"
      : JSON.stringify(rows.map((row) => Object.fromEntries(row.map((value, i) => [heads[i], value]))), null, 2);
    const link = make("a", { href: URL.createObjectURL(new Blob([content])), download: `${this.name}.${kind.toLowerCase()}` });
    link.click();
    URL.revokeObjectURL(link.href);
  }
}

const boards = [...document.querySelectorAll("table.board")].map((table) => new Board(table));
