"use strict";
// Added to the page by `python -m leaderboard --serve`: shows what is running, and loads the page again once it was
// rebuilt.
(() => {
  const BUILD = document.currentScript.dataset.build;
  const SECONDS = 2;
  const POSITION = "leaderboard-position";

  const element = (name, text = "", attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  const style = element("style", `
    #running-now { border: 1px solid; border-radius: 6px; padding: .25rem 1rem .5rem; margin: 0 0 1rem; }
    #running-now h2 { border: 0; font-size: 1.1em; margin: .4rem 0; padding: 0; }
    #running-now p { margin: .4rem 0; }
    #running-now .numbers { overflow-x: auto; }
    #running-now table { border-collapse: collapse; width: 100%; }
    #running-now :is(th, td) { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
    #running-now progress { width: 8rem; }
    @media print { #running-now { display: none; } }`);
  // A change of what runs is announced; numbers that change every two seconds are not
  const region = element("section", "", { id: "running-now", role: "region", "aria-live": "polite", "aria-label": "Running now" });
  const title = element("h2", "Running now");
  const summary = element("p", "Looking …");
  const numbers = element("div", "", { class: "numbers", "aria-live": "off", tabindex: "0", role: "group", "aria-label": "Progress" });
  region.append(title, summary, numbers);
  document.head.append(style);
  (document.querySelector("header") || document.body).prepend(region);

  const duration = (seconds) => {
    if (seconds === null) return "";
    const minutes = Math.round(seconds / 60);
    if (seconds < 90) return `${Math.round(seconds)} s`;
    return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };
  const many = (number, one, more) => `${number} ${number === 1 ? one : more}`;
  const say = (text) => { if (summary.textContent !== text) summary.textContent = text; };

  function line(run) {
    const row = element("tr");
    const name = element("th", run.row ? `${run.table}: ${run.row}` : run.path, { scope: "row", title: run.path });
    const data = [run.seed === null ? "" : `seed ${run.seed}`, run.place].filter(Boolean).join(", ");
    const stage = run.running ? run.stage : `${run.stage}: interrupted; the same command continues`;
    const step = element("td");
    if (run.step !== null) {
      const of = run.steps === null ? "" : ` of ${run.steps.toLocaleString("en")}`;
      if (run.steps) step.append(element("progress", "", { value: run.step, max: run.steps, "aria-label": "progress" }), " ");
      step.append(`${run.step.toLocaleString("en")}${of}`);
    }
    const values = run.values.map(([key, value]) => `${key} ${Number(value.toPrecision(3))}`).join(", ");
    const left = run.left === null ? "" : `${duration(run.left)} left`;
    row.append(name, element("td", data), element("td", stage), step, element("td", values));
    row.append(element("td", left || (run.elapsed === null ? "" : `for ${duration(run.elapsed)}`)));
    return row;
  }

  function show(state) {
    const busy = state.running.filter((run) => run.running).length;
    const idle = state.running.length - busy;
    const parts = [busy ? `${many(busy, "stage is", "stages are")} running` : "Nothing is running"];
    if (idle) parts.push(`${many(idle, "training was", "trainings were")} interrupted`);
    say(`${parts.join("; ")}.${state.problem && BUILD ? ` The report could not be rebuilt: ${state.problem}` : ""}`);
    const table = element("table");
    const head = element("tr");
    for (const text of ["row", "seed, data", "stage", "step", "losses", "time"]) head.append(element("th", text, { scope: "col" }));
    table.createTHead().append(head);
    table.createTBody().append(...state.running.map(line));
    numbers.replaceChildren(...(state.running.length ? [table] : []));
    numbers.hidden = !state.running.length;
  }

  // Whoever is typing, or has something open, is not interrupted: the page is loaded again afterwards
  const occupied = () => Boolean(document.activeElement?.matches("input, select, textarea") || document.querySelector("dialog[open]"));

  async function look() {
    try {
      if (!document.hidden) {
        const answer = await fetch("/state.json", { cache: "no-store" });
        if (!answer.ok) throw new Error(answer.statusText);
        const state = await answer.json();
        show(state);
        if (state.build !== BUILD && !occupied()) {
          sessionStorage.setItem(POSITION, JSON.stringify([scrollX, scrollY]));
          history.scrollRestoration = "manual";
          location.reload();  // of this address, with its state
          return;
        }
      }
    } catch {
      say("The server has ended; this is the report of its last build.");
      numbers.replaceChildren();
    }
    setTimeout(look, 1000 * SECONDS);
  }

  addEventListener("load", () => {
    const position = JSON.parse(sessionStorage.getItem(POSITION) || "null");
    sessionStorage.removeItem(POSITION);
    const restore = () => { if (position) scrollTo(...position); };
    // Parts of the page that scripts fill in have their height only after the first frame, and the list of what runs
    // after the first answer
    requestAnimationFrame(async () => {
      restore();
      await look();
      restore();
    });
  });
})();
