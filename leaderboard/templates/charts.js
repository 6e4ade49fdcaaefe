"use strict";
// Draw the charts that come near the visible part of the page, in place of their pictures. In print, and without this
// script, the pictures are shown. `showCharts(element)` does the same for what is added to the page later.
(() => {
  const INK = "#010203"; // stands for the colour of the text
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // figure -> what undoes its drawing
  const PANEL = 300; // room that a panel takes, in pixels

  function library() {
    if (window.vegaEmbed) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("vega").textContent;
    document.head.append(script);
  }

  // The specification in the colours of the page, not wider than the figure
  function fitted(figure) {
    const ink = getComputedStyle(figure).color;
    const spec = JSON.parse(JSON.stringify(specs[figure.dataset.chart]).replaceAll(INK, ink));
    const width = figure.clientWidth;
    if (spec.concat) {
      const widest = Math.max(PANEL, ...spec.concat.map((view) => view.width + 80));
      spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(width / widest)));
      for (const view of spec.concat) view.width = Math.min(view.width, Math.max(160, width - 140));
    } else if (width < spec.width + 80) {
      spec.width = "container";
    }
    if (width < 480) {
      spec.config.legend.columns = 1;
      spec.config.axis.labelLimit = 0.4 * width;
    }
    // Points that are not in the picture, where the pointer finds the values of a line
    for (const view of spec.concat ?? [spec]) {
      for (const { mark } of view.layer ?? []) {
        if (mark.point === false) mark.point = { opacity: 0, size: 60, filled: true };
      }
    }
    return spec;
  }

  async function draw(figure) {
    library();
    drawn.get(figure)?.();
    const view = figure.querySelector(".view") ?? document.createElement("div");
    const picture = figure.querySelector("img");
    view.className = "view";
    picture.after(view);
    const options = {
      mode: "vega-lite", renderer: "canvas", actions: false, ast: true,
      tooltip: { theme: dark.matches ? "dark" : "light" },
    };
    const result = await vegaEmbed(view, fitted(figure), options);
    view.setAttribute("role", "img"); // afterwards: the library removes them
    view.setAttribute("aria-label", picture.alt);
    figure.classList.add("drawn");
    drawn.set(figure, () => result.finalize());
  }

  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "300px" },
  );
  window.showCharts = (root) => {
    for (const figure of root.querySelectorAll("figure.chart")) observer.observe(figure);
  };
  showCharts(document);
  dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));
})();
