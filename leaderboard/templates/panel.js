// The origin of a row beside the page, two rows compared, and links to what is not in sight.
const panel = document.getElementById("panel");
const panelContent = document.getElementById("panel-content");
const origins = new Map();  // anchor of a row, or of one of its records -> the template about it
for (const template of document.querySelectorAll("template.origin")) {
  for (const anchor of [template.dataset.anchor, ...template.dataset.records.split(" ")]) origins.set(anchor, template);
}

function originOf(anchor) {
  const content = origins.get(anchor).content.cloneNode(true);
  for (const place of content.querySelectorAll("[data-pictures]")) {
    for (const details of document.querySelectorAll("#pictures details.late")) {
      for (const figure of (details.querySelector("template")?.content ?? details).querySelectorAll("figure")) {
        if (figure.dataset.row === place.dataset.pictures) place.append(figure.cloneNode(true));
      }
    }
  }
  return content;
}

function open(content) {
  panelContent.replaceChildren(content);
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
}

function showOrigin(anchor, value) {
  open(originOf(anchor));
  const record = panelContent.querySelector(`[id="${anchor}"]`);
  if (record) {
    for (const details of panelContent.querySelectorAll(".origin > details")) details.open = details === record;
    record.scrollIntoView();
  }
  for (const row of panelContent.querySelectorAll(".values tbody tr")) {
    if (row.dataset.protocol === value) { row.classList.add("asked"); row.scrollIntoView({ block: "center" }); }
  }
}

// Two rows compared

function flat(config, prefix = "") {
  return Object.entries(config).flatMap(([name, value]) =>
    name === "seed" ? [] : value && typeof value === "object" && !Array.isArray(value)
      ? flat(value, `${prefix}${name}.`) : [[prefix + name, JSON.stringify(value)]]);
}

function sides(anchor) {
  const content = origins.get(anchor).content;
  const facts = [...content.querySelectorAll(".origin > details:first-of-type > dl > dt")]
    .filter((term) => ["commit", "hardware", "software", "data set", "size", "execution"].includes(term.textContent))
    .map((term) => [term.textContent, term.nextElementSibling.textContent]);
  return {
    anchor,
    label: content.querySelector("h2").firstChild.textContent,
    values: new Map([...content.querySelectorAll(".values tbody tr")].map((row) => [row.dataset.protocol, row])),
    config: new Map([...flat(JSON.parse(content.querySelector("pre.config").textContent)), ...facts]),
  };
}

function table(heads, rows, name) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(([first, ...others]) => make("tr", {}, make("th", { scope: "row" }, first), ...others.map((text) => make("td", {}, text)))))));
}

function compared(anchors) {
  const [a, b] = anchors.map(sides);
  const values = [...new Set([...a.values.keys(), ...b.values.keys()])].map((key) => {
    const [x, y] = [a.values.get(key), b.values.get(key)];
    const gap = x && y ? y.dataset.mean - x.dataset.mean : NaN;
    const difference = isNaN(gap) ? "other protocol" : (gap > 0 ? "+" : "") + +gap.toPrecision(3);
    return [(x ?? y).cells[0].textContent, x?.dataset.text ?? "-", y?.dataset.text ?? "-", difference];
  });
  const settings = [...new Set([...a.config.keys(), ...b.config.keys()])]
    .filter((key) => a.config.get(key) !== b.config.get(key))
    .map((key) => [key, a.config.get(key) ?? "-", b.config.get(key) ?? "-"]);
  return make("section", { class: "compared" },
    make("h2", {}, `${a.label} beside ${b.label}`),
    make("p", { class: "soft" }, "Means over seeds; the difference is the second minus the first, for values of one protocol."),
    table(["value", a.label, b.label, "difference"], values, "Values compared"),
    make("h3", {}, "Where their configurations and runs differ"),
    settings.length ? table(["setting", a.label, b.label], settings, "Settings compared") : make("p", {}, "Nowhere but in their seeds."),
    make("p", {}, ...[a, b].flatMap((side) => [make("a", { href: `#${side.anchor}` }, `origin of ${side.label}`), " "])));
}

const tray = make("div", { class: "tray", role: "status", hidden: true });
document.body.append(tray);
const chosen = () => state.get("compare").split(",").filter((anchor) => origins.has(anchor));

function fillTray() {
  const anchors = chosen();
  tray.hidden = !anchors.length;
  for (const box of boxes) box.checked = anchors.includes(box.value);
  const name = (anchor) => origins.get(anchor).content.querySelector("h2").firstChild.textContent;
  tray.replaceChildren(anchors.length === 2 ? `${name(anchors[0])}, ${name(anchors[1])} ` : `${anchors.map(name)}: choose a second row `,
    ...(anchors.length === 2 ? [make("button", { type: "button", onclick: () => visit("compare") }, "Compare")] : []),
    make("button", { type: "button", onclick: () => { state.set("compare", ""); fillTray(); } }, "Clear"));
}

const boxes = boards.filter(({ table }) => "compare" in table.dataset).flatMap(({ rows }) => rows.map((row) => {
  const box = make("input", { type: "checkbox", class: "compare", value: row.id, title: "compare with another row",
    "aria-label": `compare ${row.cells[0].querySelector("a").textContent}` });
  box.addEventListener("change", () => {
    const others = chosen().filter((anchor) => anchor !== row.id);
    state.set("compare", (box.checked ? [...others.slice(-1), row.id] : others).join(","));
    fillTray();
  });
  row.cells[0].prepend(box);
  return box;
}));

// Links

function unfold(details) {
  const template = details.querySelector(":scope > template");
  template?.replaceWith(template.content);
  window.showCharts?.(details);
}
for (const details of document.querySelectorAll("details.late")) {
  if (details.open) unfold(details);
  details.addEventListener("toggle", () => unfold(details));
}

function show(anchor, value) {
  if (anchor === "compare" && chosen().length === 2) return open(compared(chosen()));
  if (origins.has(anchor)) return showOrigin(anchor, value);
  if (panel.open) panel.close();
  const row = boards.flatMap((board) => board.rows.map((row) => [board, row])).find(([, row]) => row.id === anchor);
  row?.[0].showRow(row[1]);
  const target = document.getElementById(anchor);
  if (!target) return;
  for (let parent = target; parent; parent = parent.parentElement) if (parent.localName === "details") parent.open = true;
  target.scrollIntoView();
  target.classList.add("asked");
  setTimeout(() => target.classList.remove("asked"), 2000);
}

function visit(anchor, value) {
  state.go(anchor);
  show(anchor, value);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  visit(link.getAttribute("href").slice(1), link.dataset.value);
});
panel.addEventListener("close", () => { if (origins.has(state.anchor) || state.anchor === "compare") state.go(""); });
panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
addEventListener("popstate", () => {
  state.reread();
  for (const board of boards) board.read();
  fillTray();
  if (state.anchor) show(state.anchor); else if (panel.open) panel.close();
});
fillTray();
if (state.anchor) show(state.anchor);

// Print: the usual columns of all rows, pictures, and the origin of every row as an appendix.

addEventListener("beforeprint", () => {
  for (const board of boards) { board.everything = true; board.apply(); }
  for (const details of document.querySelectorAll("details.late")) unfold(details);
  for (const details of document.querySelectorAll("main details")) details.open = true;
  const rows = [...document.querySelectorAll("template.origin")].map((template) => template.content.cloneNode(true));
  document.getElementById("appendix").replaceChildren(make("h2", {}, "Appendix: the origin of every row"), ...rows);
});
addEventListener("afterprint", () => document.getElementById("appendix").replaceChildren());
